//! The patterns of ssh_config(5) and known_hosts: `*`, `?`, and `!` before a whole pattern; and the same over files.

use std::path::{Component, Path, PathBuf};

/// Whether one of `patterns` matches `text` and none of those with `!` does.
pub(crate) fn list_matches<'p>(patterns: impl IntoIterator<Item = &'p str>, text: &str) -> bool {
    let mut matched = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if matches(negated, text) => return false,
            Some(_) => {}
            None => matched |= matches(pattern, text),
        }
    }
    matched
}

/// Whether `pattern` matches the whole of `text`. Takes at most the product of both lengths in steps.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last star stands, and up to where the text is taken by it.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// The files that an absolute path with patterns in it names, in order. A leading dot must be given.
pub(crate) fn glob(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in path.components() {
        let pattern = match component {
            Component::Normal(name) => name.to_str().filter(|name| name.contains(['*', '?'])),
            _ => None,
        };
        found = match pattern {
            None => found.into_iter().map(|path| path.join(component)).collect(),
            Some(pattern) => found.iter().flat_map(|directory| entries(directory, pattern)).collect(),
        };
    }
    found.retain(|path| path.exists());
    found
}

fn entries(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            matches(pattern, &name) && (pattern.starts_with('.') || !name.starts_with('.'))
        })
        .map(|entry| entry.path())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_in_ssh_config() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "web1", true),
            ("web?", "web1", true),
            ("web?", "web", false),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", "example.org", false),
            ("10.*.0.?", "10.1.2.0.3", true),
            ("a*b*c", "aXbXbYc", true),
            ("a*b*c", "aXbXbY", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_negated_pattern_overrules_every_other() {
        assert!(list_matches(["*", "!db*"], "web1"));
        assert!(!list_matches(["*", "!db*"], "db1"));
        assert!(!list_matches(["!db*"], "web1"), "negation alone never matches");
    }
}
