//! The feature table, held against what the router announces, against the sources and against its rendering.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use support::{Client, Node, Wire};
use toml_edit::{DocumentMut, Item};

struct Feature {
    name: String,
    section: String,
    announced: Option<String>,
    state: String,
    tests: Vec<String>,
    /// Why it is not there, when that needs to be said.
    note: Option<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(table: &toml_edit::Table, key: &str) -> Option<String> {
    table.get(key).and_then(Item::as_str).map(str::to_owned)
}

fn features() -> Vec<Feature> {
    let toml = std::fs::read_to_string(root().join("tests/conformance/features.toml")).expect("the table");
    let document: DocumentMut = toml.parse().expect("TOML");
    let rows = document["feature"].as_array_of_tables().expect("rows");
    let feature = |row: &toml_edit::Table| Feature {
        name: text(row, "name").expect("a name"),
        section: text(row, "section").expect("a section"),
        announced: text(row, "announced"),
        state: text(row, "state").expect("a state"),
        tests: row
            .get("tests")
            .and_then(Item::as_array)
            .map(|tests| tests.iter().filter_map(|test| test.as_str().map(str::to_owned)).collect())
            .unwrap_or_default(),
        note: text(row, "note"),
    };
    rows.iter().map(feature).collect()
}

#[test]
fn welcome_announces_what_the_table_says_and_nothing_else() {
    let node = Node::start();
    let mut client = Client::connect(&node, Wire::PLAIN);
    let welcome = client.hello("realm1");
    let roles = welcome[2]["roles"].as_object().expect("roles");
    let announced: BTreeSet<String> = roles
        .iter()
        .flat_map(|(role, details)| {
            let features = details["features"].as_object().into_iter().flatten();
            features.filter(|(_, value)| **value == true).map(move |(key, _)| format!("{role}.{key}"))
        })
        .collect();
    let there = |feature: &Feature| feature.state == "yes";
    let table: BTreeSet<String> =
        features().into_iter().filter(there).filter_map(|feature| feature.announced).collect();
    assert_eq!(announced, table);
}

#[test]
fn every_feature_that_is_there_has_a_test_that_exists() {
    for feature in features() {
        assert!(["yes", "no"].contains(&feature.state.as_str()), "{}: {}", feature.name, feature.state);
        assert_eq!(feature.state == "yes", !feature.tests.is_empty(), "{}", feature.name);
        for test in &feature.tests {
            let (file, function) = test.split_once("::").expect("file::function");
            let source =
                std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{test}: {error}"));
            let found = ["fn ", "def ", "function "]
                .iter()
                .any(|word| source.contains(&format!("{word}{function}(")));
            assert!(found, "{}: there is no {test}", feature.name);
        }
    }
}

#[test]
fn the_rendered_table_is_up_to_date() {
    let path = root().join("docs/features.md");
    let wanted = render(&features());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/features.md differs from the table; UPDATE=1 cargo test --test conformance writes it"
    );
}

fn render(features: &[Feature]) -> String {
    let mut out = String::from(
        "# Features of WAMP\n\nMade from [features.toml](../tests/conformance/features.toml); a test holds both against what \
         WELCOME announces.\n\n| feature | specification | announced as | state | proven by |\n| --- | --- | --- | --- | --- |\n",
    );
    for feature in features {
        let key = feature.announced.as_ref().map_or_else(String::new, |key| format!("`{key}`"));
        let tests: Vec<String> = feature.tests.iter().map(|test| linked(test)).collect();
        let Feature { name, section, state, .. } = feature;
        let note = feature.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        out.push_str(&format!("| {name} | {section} | {key} | {state}{note} | {} |\n", tests.join(", ")));
    }
    out
}

fn linked(test: &str) -> String {
    let (file, function) = test.split_once("::").unwrap_or((test, ""));
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or(file);
    format!("[{name}: {}](../{file})", function.replace('_', " "))
}
