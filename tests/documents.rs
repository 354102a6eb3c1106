//! What README.md and deploy/ tell readers to paste works, and what they name exists.
//!
//! What the machine lacks a tool for is skipped: a line on standard error that begins with `skipped` says so.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn three_nodes_on_one_machine_start_as_the_readme_says() {
    let readme = read("README.md");
    let section = section(&readme, "### Three nodes on one machine in a minute");
    let (shell, python) = (blocks(section, "bash"), blocks(section, "python"));
    let [start, stop] = &shell[..] else { panic!("{} blocks of bash instead of two", shell.len()) };
    for tool in ["bash", "openssl", "curl", "timeout"] {
        if !has(tool) {
            return skip("three nodes on one machine", &format!("{tool} is not installed"));
        }
    }
    let taken = (1..=3).flat_map(|node| (80..85).map(move |port| 10_000 + node * 1_000 + port));
    let taken: Vec<u16> = taken.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()).collect();
    if !taken.is_empty() {
        return skip("three nodes on one machine", &format!("the ports {taken:?} are taken"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut script = String::from("set -e\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n");
    script += start;
    let autobahn = autobahn();
    match &autobahn {
        Some(path) => {
            let program: String = python.concat();
            fs::write(folder.path().join("program.py"), program).expect("the program");
            // Where the block of bash has gone to does not matter.
            script += &format!("\n{:?} {:?}\n", path, folder.path().join("program.py"));
        }
        None => skip(
            "the call from node to node",
            "Autobahn is not installed; `tests/interop/run.sh install` does that",
        ),
    }
    script += stop;
    script += "wait\ntrap - EXIT\n";
    let binary = Path::new(env!("CARGO_BIN_EXE_signalbox")).parent().expect("its folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("timeout")
        .args(["--kill-after=10", "120", "bash", "-c", &script])
        .env("PATH", path)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}:\n{text}\n{}", output.status, logs(folder.path()));
    assert_eq!(text.matches(" alive").count(), 3, "{text}");
    if autobahn.is_some() {
        assert!(text.contains("2 + 3 = 5") && text.contains("event: hello"), "{text}");
    }
}

#[test]
fn every_metric_that_the_documents_name_exists() {
    let mut sources = read("common/src/metrics.rs");
    for folder in ["controlplane/src/admin", "controlplane/src/admin/metrics"] {
        for entry in fs::read_dir(root().join(folder)).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "rs") {
                sources += &fs::read_to_string(entry.path()).expect("a source");
            }
        }
    }
    let mut wrong = BTreeSet::new();
    let mut documents = ["README.md", "deploy/README.md", "tuning.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(root().join("docs")).expect("the folder of documents").flatten() {
        documents.push(format!("docs/{}", entry.file_name().to_string_lossy()));
    }
    for document in documents {
        let text = read(&document);
        for (at, _) in text.match_indices("signalbox_") {
            let is_inside = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '/');
            let name: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_')
                .collect();
            if !is_inside && !sources.contains(&format!("\"{name}\"")) {
                wrong.insert(format!("{document}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_configuration_of_the_kubernetes_manifest_is_accepted() {
    let manifest = read("deploy/kubernetes/signalbox.yaml");
    let block = manifest.split_once("  signalbox.toml: |\n").expect("the configuration").1;
    let lines = block.lines().take_while(|line| line.starts_with("    "));
    let text: String = lines.map(|line| format!("{}\n", &line[4..])).collect();
    let text = text.replace("POD_IP", "10.1.2.3").replace("NAMESPACE", "default");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), text).expect("the configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_signalbox"));
    let output = command.args(["config", "check"]).arg(file.path()).output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_kubernetes_manifest_is_yaml() {
    let program = "import sys, yaml\n\
        kinds = [document['kind'] for document in yaml.safe_load_all(open(sys.argv[1]))]\n\
        assert kinds.count('StatefulSet') == 1 and 'PodDisruptionBudget' in kinds, kinds\n";
    if !succeeds(Command::new("python3").args(["-c", "import yaml"])) {
        return skip("the manifest's syntax", "python3 has no yaml");
    }
    let path = root().join("deploy/kubernetes/signalbox.yaml");
    let output = Command::new("python3").args(["-c", program]).arg(path).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn systemd_accepts_the_unit_files() {
    if !has("systemd-analyze") {
        return skip("the unit files", "systemd-analyze is not installed");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut units = vec![];
    for entry in fs::read_dir(root().join("deploy/systemd")).expect("the units") {
        let entry = entry.expect("a unit");
        let text = fs::read_to_string(entry.path()).expect("a unit is text");
        assert!(text.contains("ExecStart=/usr/local/bin/signalbox "), "{}", entry.path().display());
        let unit = folder.path().join(entry.file_name());
        fs::write(&unit, text.replace("/usr/local/bin/signalbox", env!("CARGO_BIN_EXE_signalbox")))
            .expect("a unit");
        units.push(unit);
    }
    assert_eq!(units.len(), 2);
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    // Complaints about units of the machine are none of ours.
    let complaints: Vec<_> = text.lines().filter(|line| line.contains("signalbox-")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// The text from a heading to the next one of its rank or above.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let text = text.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let end = text.find("\n### ").into_iter().chain(text.find("\n## ")).min();
    &text[..end.unwrap_or(text.len())]
}

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// A Python with Autobahn.
fn autobahn() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let installed = || target.join("interop/venv/bin/python");
    let path = std::env::var_os("AUTOBAHN_PYTHON").map_or_else(installed, PathBuf::from);
    succeeds(Command::new(&path).args(["-c", "import autobahn"])).then_some(path)
}

fn has(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn succeeds(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The logs the nodes left below a folder.
fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() && path.file_name().is_some_and(|name| name == "three") {
            text += &logs(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            text += &format!("--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default());
        }
    }
    text
}

/// Past the capture of the test harness, so that it is seen.
fn skip(what: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped {what}: {reason}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
