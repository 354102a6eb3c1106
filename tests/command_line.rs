//! The `signalbox` command as an operator meets it: what it prints and how it exits, without a node.

use std::path::Path;
use std::process::{Command, Output};

fn signalbox(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_signalbox")).args(arguments).output().expect("the binary runs")
}

/// A folder with `text` in `a.toml`, and the path of that file.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.toml");
    std::fs::write(&path, text).expect("a file");
    let path = path.to_str().expect("an ASCII path").to_owned();
    (folder, path)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn the_default_configuration_passes_its_own_check() {
    let default = signalbox(&["config", "default"]);
    assert!(default.status.success());
    let (_folder, path) = file(&stdout(&default));
    let check = signalbox(&["config", "check", &path]);
    assert_eq!((check.status.code(), stdout(&check)), (Some(0), format!("{path}: no mistake found\n")));
}

#[test]
fn a_bad_configuration_is_explained_and_exits_with_78() {
    let (_folder, path) = file("[memory]\nmax = \"1 potato\"\n");
    let expected = format!(
        "signalbox: {path}:2: memory.max: found \"1 potato\", allowed: a size from 16MiB to 16TiB, such as \"64KiB\"\n"
    );
    for arguments in [
        &["config", "check", &path][..],
        &["--config", &path],
        &["run", "--config", &path],
        &["control", "--config", &path],
        &["data", "--config", &path],
        &["status", "--config", &path],
    ] {
        let output = signalbox(arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        assert_eq!(stderr(&output), expected, "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_configuration_that_is_not_there_or_not_text_is_named() {
    let (folder, path) = file("");
    std::fs::write(&path, [0xff, 0xfe]).expect("a file");
    let missing = folder.path().join("missing.toml");
    for path in [Path::new(&path), &missing, folder.path()] {
        let path = path.to_str().expect("an ASCII path");
        let output = signalbox(&["config", "check", path]);
        assert_eq!(output.status.code(), Some(78), "{path}");
        assert!(stderr(&output).starts_with(&format!("signalbox: {path}: ")), "{}", stderr(&output));
    }
}

#[test]
fn a_configuration_without_end_is_refused() {
    let output = signalbox(&["config", "check", "/dev/zero"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("/dev/zero: longer than "), "{}", stderr(&output));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for arguments in [&["fly"][..], &["--cores", "3-1"], &["realm", "add", "a..b"], &["config"]] {
        assert_eq!(signalbox(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_names_every_command_and_the_version_is_printed() {
    let help = stdout(&signalbox(&["--help"]));
    for command in ["run", "control", "data", "config", "status", "realm", "version"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
    }
    let version = concat!("signalbox ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(stdout(&signalbox(&["version"])), version);
    assert_eq!(stdout(&signalbox(&["--version"])), version);
}
