//! Reads the sources and documents of this repository and checks the rules that no compiler knows.
//!
//! Each rule is one test; a failure lists every place that breaks it.

use common::config::{DEFAULT_TEXT, Key, SCHEMA};
use std::fs;
use std::path::{Path, PathBuf};

/// A source file; `code` has no comments and no unit tests, so words in prose and test clocks do not count.
struct Source {
    path: String,
    text: String,
    code: Vec<(usize, String)>,
}

#[test]
fn only_the_io_folder_names_the_ring_and_its_executor() {
    let found = places(|source| {
        let inside = source.is_in("dataplane/src/io") || source.is_in("benches") || source.is_in("tests");
        if inside { vec![] } else { vec!["glommio::", "io_uring::", "use glommio", "use io_uring"] }
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_store_names_lmdb() {
    let found =
        places(
            |source| if source.is_in("controlplane/src/store") { vec![] } else { vec!["heed::", "use heed"] },
        );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_planes_do_not_name_each_other() {
    let found = places(|source| {
        let mut forbidden = vec![];
        let may_name_both = ["src", "benches", "tests", "fuzz"].iter().any(|folder| source.is_in(folder));
        if !may_name_both && !source.is_in("dataplane") {
            forbidden.extend(["dataplane::", "use dataplane"]);
        }
        if !may_name_both && !source.is_in("controlplane") {
            forbidden.extend(["controlplane::", "use controlplane"]);
        }
        forbidden
    });
    assert!(found.is_empty(), "{found:#?}");
    for (manifest, names) in [
        ("common", &["dataplane", "controlplane", "loadgen", "tokio", "glommio", "heed", "io-uring"][..]),
        ("dataplane", &["controlplane", "loadgen", "tokio", "heed"]),
        ("controlplane", &["dataplane", "loadgen", "glommio", "io-uring"]),
        ("loadgen", &["dataplane", "controlplane", "tokio", "glommio"]),
    ] {
        let dependencies = dependencies(&read(&format!("{manifest}/Cargo.toml")));
        let wrong: Vec<_> = names.iter().filter(|name| dependencies.iter().any(|had| had == *name)).collect();
        assert!(wrong.is_empty(), "{manifest}/Cargo.toml names {wrong:?}");
    }
}

#[test]
fn nothing_is_left_to_do() {
    let found = places(|_| vec!["todo!", "unimplemented!", "dbg!"]);
    assert!(found.is_empty(), "{found:#?}");
}

/// Machines take `now` as an argument; only their drivers look at a clock.
#[test]
fn only_drivers_read_the_clock() {
    let found = places(|source| {
        let machine = source.is_in("common/src") || source.is_in("dataplane/src");
        let driver = source.is_in("dataplane/src/io") || source.is_in("dataplane/src/boot.rs");
        if machine && !driver { vec!["Instant::now", "SystemTime::now"] } else { vec![] }
    });
    assert!(found.is_empty(), "{found:#?}");
}

/// The message path takes no lock and writes no memory that another core writes. What cores share is the heads of the
/// mesh queues and the sleep flags beside them, the tail of the buffer ring (with the kernel), and snapshots, which
/// nobody writes.
#[test]
fn cores_share_no_lock_and_no_counter() {
    let found = places(|source| {
        let shares =
            ["dataplane/src/io/mesh.rs", "dataplane/src/io/buffers.rs"].contains(&source.path.as_str());
        let test = source.is_in("dataplane/src/io/tests");
        if source.is_in("dataplane/src") && !shares && !test {
            vec!["Mutex", "RwLock", "Condvar", "OnceLock", "AtomicBool", "AtomicU", "AtomicI", "AtomicPtr"]
        } else {
            vec![]
        }
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn files_stay_small() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.text.lines().count(), &source.path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, path)| format!("{path}: {lines} lines of {FILE_LINES_MAX}"))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// tuning.md has one row a key, with the default and the bound of the code.
#[test]
fn tuning_tells_every_key_with_its_default_and_bound() {
    let tuning = read("tuning.md");
    let mut wrong = vec![];
    for key in SCHEMA {
        let head = format!("| `{key}` |");
        let rows: Vec<&str> = tuning.lines().filter(|line| line.starts_with(&head)).collect();
        let [row] = rows[..] else {
            wrong.push(format!("{key}: {} rows", rows.len()));
            continue;
        };
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, default, bound, why, evidence] = cells[..] else {
            wrong.push(format!("{key}: {} cells", cells.len()));
            continue;
        };
        let written = default_of(key);
        if default.trim_matches('`') != written {
            wrong.push(format!("{key}: default {default}, the code has {written}"));
        }
        if key.kind.range().is_some_and(|range| !bound.contains(&range)) {
            wrong.push(format!("{key}: bound {bound}, the code has {:?}", key.kind.range()));
        }
        if why.is_empty() || evidence.is_empty() {
            wrong.push(format!("{key}: no reason or no evidence"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tuning_names_no_key_that_is_not_there() {
    let known: Vec<String> = SCHEMA.iter().map(ToString::to_string).collect();
    let rows = read("tuning.md");
    let named =
        rows.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name));
    let wrong: Vec<&str> = named.filter(|name| !known.iter().any(|key| key == name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn architecture_gives_a_reason_for_every_dependency() {
    let text = read("ARCHITECTURE.md");
    let mut missing = vec![];
    for (manifest, _) in MEMBERS {
        for name in dependencies(&read(manifest)) {
            let own = ["common", "dataplane", "controlplane", "signalbox"].contains(&name.as_str());
            if !own && !text.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{name}`")))
            {
                missing.push(format!("{manifest}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    let table = workspace_dependencies(&read("Cargo.toml"));
    let rows =
        text.split_once("## Dependencies").expect("a section").1.split("\n## ").next().unwrap_or_default();
    let named =
        rows.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name));
    let gone: Vec<&str> = named.filter(|name| !table.iter().any(|had| had == name)).collect();
    assert!(gone.is_empty(), "no longer a dependency: {gone:?}");
}

/// A dependency nobody uses costs every build and every audit.
#[test]
fn every_dependency_is_used() {
    let sources = sources();
    let mut unused = vec![];
    for (manifest, folders) in MEMBERS {
        for name in dependencies(&read(manifest)) {
            let ident = name.replace('-', "_");
            let mut own = sources.iter().filter(|source| folders.iter().any(|folder| source.is_in(folder)));
            if !own.any(|source| source.text.lines().any(|line| names(line, &ident))) {
                unused.push(format!("{manifest}: {name}"));
            }
        }
    }
    let members: Vec<String> =
        MEMBERS.iter().flat_map(|(manifest, _)| dependencies(&read(manifest))).collect();
    let table = workspace_dependencies(&read("Cargo.toml"));
    unused
        .extend(table.iter().filter(|name| !members.contains(name)).map(|name| format!("workspace: {name}")));
    assert!(unused.is_empty(), "{unused:#?}");
}

#[test]
fn documents_link_to_files_that_exist() {
    let mut missing = vec![];
    for (document, text) in documents() {
        let folder = Path::new(&document).parent().expect("a file is in a folder").to_owned();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let file = target.split('#').next().unwrap_or(target);
            if !root().join(&folder).join(file).exists() {
                missing.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// What stands in backquotes and begins like a key is one.
#[test]
fn documents_name_no_key_that_is_not_there() {
    let known: Vec<String> = SCHEMA.iter().map(ToString::to_string).collect();
    let is_like_a_key = |text: &str| {
        let mut parts = text.split('.');
        let of_section =
            parts.next().is_some_and(|name| !name.is_empty() && SCHEMA.iter().any(|key| key.section == name));
        let mut rest = parts.peekable();
        let named = rest.peek().is_some();
        let letters =
            |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
        of_section && named && rest.all(letters) && !text.ends_with(".rs") && !text.ends_with(".toml")
    };
    let mut wrong = vec![];
    for (document, text) in documents() {
        let quoted = text.split('`').skip(1).step_by(2);
        let unknown = quoted.filter(|text| is_like_a_key(text) && !known.iter().any(|key| key == text));
        wrong.extend(unknown.map(|text| format!("{document}: {text}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The documents that people read, with their text.
fn documents() -> Vec<(String, String)> {
    let mut documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "tuning.md", "deploy/README.md"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(root().join("docs")).expect("the folder of documents").flatten() {
        documents.push(format!("docs/{}", entry.file_name().to_string_lossy()));
    }
    documents.into_iter().map(|document| (document.clone(), read(&document))).collect()
}

/// Every place where code holds one of the words that are forbidden in its file.
fn places(forbidden: impl Fn(&Source) -> Vec<&'static str>) -> Vec<String> {
    let mut found = vec![];
    for source in sources() {
        let words = forbidden(&source);
        for (number, line) in &source.code {
            for word in words.iter().filter(|word| names(line, word)) {
                found.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    found
}

/// True when `line` holds `word` and not merely as the end of a longer name.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

impl Source {
    fn new(path: String, text: String) -> Self {
        let code = text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()))
            .collect();
        Self { path, text, code }
    }

    fn is_in(&self, folder: &str) -> bool {
        Path::new(&self.path).starts_with(folder)
    }
}

/// All Rust files of the workspace but those that hold unit tests alone.
fn sources() -> Vec<Source> {
    let mut files = vec![];
    for folder in ["src", "common", "dataplane", "controlplane", "loadgen", "tests", "benches", "fuzz"] {
        collect(&root().join(folder), &mut files);
    }
    assert!(files.len() > 20, "the sources were not found");
    files.sort();
    let relative = |file: &PathBuf| file.strip_prefix(root()).expect("below the root").display().to_string();
    files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).expect("a source file is text");
            // A file of unit tests alone has a clock of its own; this file names what it forbids.
            let tests = file.file_stem().is_some_and(|stem| stem == "tests" || stem == "tidy");
            let mut source = Source::new(relative(file), text);
            if tests {
                source.code.clear();
            }
            source
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", "node_modules", "corpus"].contains(&name) && !name.starts_with('.') {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The names in a crate's own dependency tables.
fn dependencies(manifest: &str) -> Vec<String> {
    table(manifest, |head| head.ends_with("dependencies]") && !head.starts_with("[workspace"))
}

fn workspace_dependencies(manifest: &str) -> Vec<String> {
    table(manifest, |head| head == "[workspace.dependencies]")
}

/// The keys of the tables of a manifest whose head `wanted` accepts.
fn table(manifest: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut inside = false;
    let mut names = vec![];
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = wanted(line.trim());
        } else if let (true, Some((name, _))) = (inside, line.split_once(['.', ' ', '=']))
            && !name.is_empty()
            && !name.starts_with('#')
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// The first default of a key, as the default text writes it.
fn default_of(key: &Key) -> &'static str {
    let section = match key.section {
        "" => DEFAULT_TEXT,
        name => DEFAULT_TEXT.split_once(&format!("[{name}]")).expect(name).1,
    };
    let start = format!("{} = ", key.name);
    section
        .lines()
        .find_map(|line| line.strip_prefix("# ").unwrap_or(line).strip_prefix(start.as_str()))
        .expect("every key is in the default text")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

const FILE_LINES_MAX: usize = 700;

/// The manifests, and the folders that each one's crate is made of.
const MEMBERS: &[(&str, &[&str])] = &[
    ("Cargo.toml", &["src", "tests", "benches"]),
    ("common/Cargo.toml", &["common"]),
    ("dataplane/Cargo.toml", &["dataplane"]),
    ("controlplane/Cargo.toml", &["controlplane"]),
    ("loadgen/Cargo.toml", &["loadgen"]),
];
