//! sshd_config(5) as sshd reads it: files and their includes in order, Match blocks, and every line that says something.
//!
//! Pure: it is handed texts and knows no file system. Bytes that it does not have to change stay as they are.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// How deep files may include files: SERVCONF_MAX_DEPTH of sshd.
const MOST_DEPTH: usize = 16;
/// Beyond so many directives no Include is followed: files that include themselves, which sshd refuses, would double with each level.
const MOST_SETTINGS: usize = 10_000;

/// Between words; sshd's WHITESPACE.
const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

/// A line that says something, as sshd takes it apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directive {
    /// In lower case: keywords have none.
    pub(crate) keyword: String,
    pub(crate) arguments: Vec<String>,
    /// Where the arguments stand in the line, from the first to the last.
    pub(crate) span: Range<usize>,
}

/// Takes a line apart; `None` for an empty one and for a comment.
///
/// Quotes, `Key=Value` and `Key = Value` as in sshd's strdelim and argv_split; a `#` before a word begins a comment.
pub(crate) fn directive(line: &str) -> Option<Directive> {
    let end = line.trim_end_matches(['\x0c', ' ', '\t', '\r', '\n']).len();
    let text = &line[..end];
    let start = end - text.trim_start_matches(BLANK).len();
    let rest = &text[start..];
    if rest.is_empty() || rest.starts_with('#') {
        return None;
    }
    let (keyword, mut at) = match rest.strip_prefix('"') {
        Some(quoted) => {
            let length = quoted.find('"')?;
            (&quoted[..length], start + length + 2)
        }
        None => {
            let length = rest.find(|c| BLANK.contains(&c) || c == '"' || c == '=').unwrap_or(rest.len());
            (&rest[..length], start + length)
        }
    };
    let skip = |at: usize| end - text[at..].trim_start_matches(BLANK).len();
    at = skip(at);
    if text[at..].starts_with('=') {
        at = skip(at + 1);
    }
    let (arguments, span) = words(text, at);
    Some(Directive { keyword: keyword.to_ascii_lowercase(), arguments, span })
}

/// The words from `at` on, and where they stand.
fn words(text: &str, mut at: usize) -> (Vec<String>, Range<usize>) {
    let bytes = text.as_bytes();
    let mut words = Vec::new();
    let mut span = at..at;
    loop {
        while bytes.get(at).is_some_and(|b| BLANK.contains(&char::from(*b))) {
            at += 1;
        }
        if at >= bytes.len() || bytes[at] == b'#' {
            return (words, span);
        }
        if words.is_empty() {
            span.start = at;
        }
        let mut word = Vec::new();
        let mut quote = None;
        while let Some(&byte) = bytes.get(at) {
            match (quote, byte) {
                (None, b' ' | b'\t' | b'\r' | b'\n') => break,
                (None, b'"' | b'\'') => quote = Some(byte),
                (Some(open), _) if open == byte => quote = None,
                (_, b'\\') if matches!(bytes.get(at + 1), Some(b'"' | b'\'' | b'\\')) => {
                    at += 1;
                    word.push(bytes[at]);
                }
                _ => word.push(byte),
            }
            at += 1;
        }
        words.push(String::from_utf8_lossy(&word).into_owned());
        span.end = at;
    }
}

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// `None` for one that is not there yet.
    pub(crate) text: Option<Vec<u8>>,
    /// How many settings are read before it is, the first time.
    pub(crate) first: usize,
}

impl File {
    pub(crate) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.as_deref().unwrap_or_default().split_inclusive(|&b| b == b'\n')
    }
}

/// A directive where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Which of the files, and which line of it, from 0.
    pub(crate) file: usize,
    pub(crate) line: usize,
    pub(crate) said: Directive,
    /// Which of the Match blocks it is in, if any.
    pub(crate) block: Option<usize>,
}

/// Everything that sshd reads, in the order in which it does: of most keywords the first one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// The main file first.
    pub(crate) files: Vec<File>,
    pub(crate) settings: Vec<Setting>,
    /// The criteria of each Match block.
    pub(crate) blocks: Vec<Vec<String>>,
    /// Which files an Include names, by the file and line it stands in.
    pub(crate) includes: Vec<(usize, usize, Vec<usize>)>,
}

/// Where texts come from.
pub(crate) trait Source {
    type Error;
    /// The text of a file; `None` if it is not there.
    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Self::Error>;
    /// The files that the pattern of an Include means, in glob(3)'s order.
    fn expand(&mut self, pattern: &str) -> Vec<PathBuf>;
}

impl Config {
    /// Reads the main file and whatever it includes.
    ///
    /// # Errors
    /// Those of the source.
    pub(crate) fn read<S: Source>(main: &Path, source: &mut S) -> Result<Self, S::Error> {
        let mut config = Self::default();
        config.read_file(main, None, 0, source)?;
        Ok(config)
    }

    fn read_file<S: Source>(
        &mut self,
        path: &Path,
        mut block: Option<usize>,
        depth: usize,
        source: &mut S,
    ) -> Result<usize, S::Error> {
        let file = match self.files.iter().position(|file| file.path == path) {
            Some(known) => known,
            None => {
                let text = source.read(path)?;
                self.files.push(File { path: path.to_owned(), text, first: self.settings.len() });
                self.files.len() - 1
            }
        };
        let text = self.files[file].text.clone().unwrap_or_default();
        for (line, bytes) in text.split_inclusive(|&b| b == b'\n').enumerate() {
            let Some(said) = directive(&String::from_utf8_lossy(bytes)) else { continue };
            if said.keyword == "match" {
                self.blocks.push(said.arguments.clone());
                block = Some(self.blocks.len() - 1);
            }
            let goes_on = depth < MOST_DEPTH && self.settings.len() < MOST_SETTINGS;
            let included = (said.keyword == "include" && goes_on).then(|| said.arguments.clone());
            self.settings.push(Setting { file, line, said, block });
            let Some(patterns) = included else { continue };
            let mut files = Vec::new();
            // A Match block of an included file ends with it.
            for path in patterns.iter().flat_map(|pattern| source.expand(pattern)).collect::<Vec<_>>() {
                files.push(self.read_file(&path, block, depth + 1, source)?);
            }
            self.includes.push((file, line, files));
        }
        Ok(file)
    }

    /// The lines outside of Match blocks with one of these keywords.
    pub(crate) fn global<'a>(&'a self, keywords: &'a [&'a str]) -> impl Iterator<Item = &'a Setting> {
        self.settings.iter().filter(|s| s.block.is_none() && keywords.contains(&&*s.said.keyword))
    }

    /// Whether some Include might mean a file of this name.
    pub(crate) fn would_include(&self, name: &str) -> bool {
        let mut patterns =
            self.settings.iter().filter(|s| s.said.keyword == "include").flat_map(|s| &s.said.arguments);
        patterns.any(|pattern| glob_matches(pattern.rsplit('/').next().unwrap_or_default(), name))
    }

    /// `file:line`, as sshd names it.
    pub(crate) fn place(&self, setting: &Setting) -> String {
        format!("{}:{}", self.files[setting.file].path.display(), setting.line + 1)
    }
}

/// Whether glob(7)'s `*`, `?` and `[…]` in the pattern mean this name; a leading dot is only meant by a dot.
pub(crate) fn glob_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    matches(pattern.as_bytes(), name.as_bytes(), true)
}

/// Whether sshd's own patterns of `*` and `?` mean this name (PATTERNS of ssh_config(5)).
pub(crate) fn pattern_matches(pattern: &str, name: &str) -> bool {
    matches(pattern.as_bytes(), name.as_bytes(), false)
}

fn matches(pattern: &[u8], name: &[u8], sets: bool) -> bool {
    match (pattern, name) {
        ([], _) => name.is_empty(),
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..], sets)),
        ([b'[', rest @ ..], [first, more @ ..]) if sets => match set(rest, *first) {
            Some((is_in, length)) => is_in && matches(&rest[length..], more, sets),
            None => *first == b'[' && matches(rest, more, sets),
        },
        ([p, rest @ ..], [first, more @ ..]) => (*p == b'?' || p == first) && matches(rest, more, sets),
        (_, []) => false,
    }
}

/// Whether the byte is in the set that begins here, and how long it is with its bracket; `None` if it never ends.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    // A bracket right at the beginning is one of the set.
    let end = pattern.iter().skip(start + 1).position(|&b| b == b']')? + start + 1;
    let mut members = &pattern[start..end];
    let mut found = false;
    while let [first, rest @ ..] = members {
        members = match rest {
            [b'-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&byte);
                rest
            }
            _ => {
                found |= *first == byte;
                rest
            }
        };
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
#[path = "config_tests.rs"]
pub(crate) mod tests;
