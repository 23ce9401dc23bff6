//! The table of what was tried with which command on which kind of host, in `docs/COMMANDS.md`: made of the lines that
//! tests write (`sortie_tests::host::matrix`). It knows no commands and no kinds but those in the lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::workspace::Workspace;

const BEGIN: &str = "<!-- matrix: written by cargo xtask test --full -->\n";
const END: &str = "<!-- end of matrix -->\n";

/// One line of the file.
#[derive(Deserialize)]
struct Line {
    command: String,
    kind: String,
    case: String,
    outcome: String,
}

/// The file that tests add lines to.
pub(crate) struct Matrix(PathBuf);

impl Matrix {
    /// An empty one.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts the table into the document.
    pub(crate) fn write_document(&self, workspace: &Workspace) -> Result<()> {
        let lines =
            fs::read_to_string(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        let path = workspace.root.join("docs/COMMANDS.md");
        let document =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let new = replaced(&document, &tables(&lines)?).with_context(|| path.display().to_string())?;
        if new != document {
            fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))?;
            println!("The matrix in {} has changed: commit it.", path.display());
        }
        Ok(())
    }
}

fn replaced(document: &str, tables: &str) -> Result<String> {
    let Some((before, (_, after))) =
        document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)))
    else {
        bail!("it lacks the lines {} and {} for the matrix between them", BEGIN.trim(), END.trim());
    };
    Ok(format!("{before}{BEGIN}\n{tables}{END}{after}"))
}

/// One table for each command: a row for each case, a column for each kind.
fn tables(lines: &str) -> Result<String> {
    // What came of a case on a kind: more than one thing where it was tried more than once.
    type Cells = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;
    let mut commands: BTreeMap<String, Cells> = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    for line in lines.lines() {
        let Line { command, kind, case, outcome } =
            serde_json::from_str(line).with_context(|| format!("a line of the matrix: {line}"))?;
        kinds.insert(kind.clone());
        let outcomes = commands.entry(command).or_default().entry(case).or_default().entry(kind).or_default();
        outcomes.insert(outcome);
    }
    let row = |cells: &mut dyn Iterator<Item = String>| {
        // A bar ends a cell, wherever it stands.
        let cells = cells.map(|cell| format!(" {} |", cell.replace('|', "\\|").replace('\n', " ")));
        format!("|{}\n", cells.collect::<String>())
    };
    let mut text = String::new();
    for (command, cases) in commands {
        text += &row(&mut [format!("**{command}**")].into_iter().chain(kinds.iter().cloned()));
        text += &row(&mut std::iter::repeat_n("---".to_owned(), kinds.len() + 1));
        for (case, outcomes) in cases {
            let cell = |kind: &String| match outcomes.get(kind) {
                Some(outcomes) => outcomes.iter().cloned().collect::<Vec<_>>().join(" / "),
                None => "–".to_owned(),
            };
            text += &row(&mut [case.clone()].into_iter().chain(kinds.iter().map(cell)));
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_any_order_make_the_same_table() {
        let mut lines = [
            r#"{"command":"b","kind":"two","case":"first run","outcome":"changed"}"#,
            r#"{"command":"a","kind":"one","case":"again | and again","outcome":"unchanged"}"#,
            r#"{"command":"b","kind":"one","case":"first run","outcome":"changed"}"#,
            r#"{"command":"b","kind":"one","case":"first run","outcome":"UNSUPPORTED"}"#,
        ];
        let table = tables(&lines.join("\n")).unwrap();
        assert_eq!(
            table,
            "| **a** | one | two |\n| --- | --- | --- |\n| again \\| and again | unchanged | – |\n\n\
             | **b** | one | two |\n| --- | --- | --- |\n| first run | UNSUPPORTED / changed | changed |\n\n"
        );
        lines.reverse();
        assert_eq!(tables(&lines.join("\n")).unwrap(), table);
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let document = format!("# Title\n{BEGIN}old\n{END}The end.\n");
        let new = replaced(&document, "table\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}\ntable\n{END}The end.\n"));
        assert_eq!(replaced(&new, "table\n").unwrap(), new);
        assert!(replaced("# Title\n", "table\n").is_err());
    }
}
