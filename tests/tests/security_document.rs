//! What docs/SECURITY.md says about itself: every promise names the tests that show it, and they exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), ".."].iter().collect()
}

/// The tests that a text names, as `FILE::TEST`.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs"))
}

#[test]
fn every_promise_is_shown_by_tests_that_exist() -> Result<()> {
    let text = std::fs::read_to_string(root().join("docs/SECURITY.md"))?;
    let (_, promises) = text.split_once("\n## Promises\n").context("there are no promises")?;
    let promises = promises.split("\n## ").next().unwrap_or_default();
    let mut count = 0;
    for promise in promises.split("\n\n").filter(|paragraph| paragraph.trim_start().starts_with("**")) {
        let title: String = promise.trim_start().chars().take(60).collect();
        ensure!(named(promise).next().is_some(), "no test shows this: {title}");
        count += 1;
    }
    ensure!(count >= 10, "only {count} promises were found");
    let tests: BTreeSet<(&str, &str)> = named(&text).collect();
    for (file, test) in tests {
        let source =
            std::fs::read_to_string(root().join(file)).with_context(|| format!("{file} of {test}"))?;
        let definition = format!("fn {test}(");
        let at = source.find(&definition).with_context(|| format!("{file} has no test {test}"))?;
        // By an attribute, or by the macro that makes one of it for every kind of host.
        let before = &source[..at];
        let is_test = before.rfind("#[").is_some_and(|at| before[at..].contains("test"))
            || source.contains("for_each_kind!");
        ensure!(is_test, "{test} of {file} is no test");
    }
    Ok(())
}

#[test]
fn whoever_finds_a_hole_is_told_where_to_report_it() -> Result<()> {
    let text = std::fs::read_to_string(root().join("SECURITY.md"))?;
    ensure!(text.contains("private advisory") && text.contains("docs/SECURITY.md"), "{text}");
    ensure!(Path::new(&root().join("docs/SECURITY.md")).exists());
    Ok(())
}
