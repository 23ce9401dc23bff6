//! The help of the real program. That this suite is here also makes cargo build the program for the suites in `tests/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::process::{Command, Output};

fn sortie(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sortie")).args(args).output().unwrap()
}

#[test]
fn every_verb_explains_itself_on_standard_output() {
    let help = sortie(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("Exit status"));
    for verb in ["exec", "sh", "put", "get", "pipe", "doctor", "runners", "completions"] {
        assert!(text.contains(&format!("\n  {verb} ")), "{verb}");
        let help = sortie(&[verb, "--help"]);
        assert!(help.status.success() && help.stderr.is_empty(), "{verb}");
        assert!(String::from_utf8(help.stdout).unwrap().contains(&format!("Usage: sortie {verb}")), "{verb}");
    }
}

#[test]
fn the_version_is_that_of_the_build() {
    let version = sortie(&["--version"]);
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("sortie {}\n", env!("CARGO_PKG_VERSION")));
}
