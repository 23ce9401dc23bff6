//! What has to change in which line, so that settings are in force: as few lines as possible, and nothing else of them.
//!
//! Pure: takes a configuration that was read, gives the new texts.

use super::config::{Config, Setting};

/// A setting as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// As sshd_config(5) spells it.
    pub(crate) name: String,
    /// The arguments, as they are written.
    pub(crate) value: String,
    /// Under which keywords in lower case files may say the same, and `sshd -T` does.
    pub(crate) keywords: Vec<String>,
}

impl Wanted {
    pub(crate) fn keywords(&self) -> Vec<&str> {
        self.keywords.iter().map(String::as_str).collect()
    }

    fn words(&self) -> Vec<String> {
        super::config::directive(&format!("{} {}", self.name, self.value))
            .map(|said| said.arguments)
            .unwrap_or_default()
    }

    fn line(&self) -> String {
        format!("{} {}\n", self.name, self.value)
    }
}

/// Keywords of which every line counts (sshd_config(5): "may be used multiple times" and the like).
pub(crate) fn is_cumulative(keyword: &str) -> bool {
    [
        "port",
        "listenaddress",
        "allowusers",
        "denyusers",
        "allowgroups",
        "denygroups",
        "acceptenv",
        "permitlisten",
        "logverbose",
    ]
    .contains(&keyword)
}

/// Where settings go that stand nowhere yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// This file, of ours alone: it is read before what it has to overrule wherever that is possible.
    DropIn(usize),
    /// The main file, before its first Match block.
    Main,
}

/// What becomes of one line; `None` takes it away.
type Edits = Vec<(usize, usize, Option<Vec<u8>>)>;

/// The files that have to change, with their new texts.
pub(crate) fn plan(config: &Config, wanted: &[Wanted], home: Home) -> Vec<(usize, Vec<u8>)> {
    let mut edits: Edits = Vec::new();
    let mut added = String::new();
    for wanted in wanted {
        let keywords = wanted.keywords();
        let mut said = config.global(&keywords);
        let first = said.next();
        if is_cumulative(keywords[0]) {
            match first {
                None => added += &wanted.line(),
                Some(first) => {
                    replace(config, &mut edits, first, wanted);
                    said.for_each(|more| edits.push((more.file, more.line, None)));
                }
            }
            if keywords[0] == "port" {
                move_addresses(config, &mut edits, &wanted.value);
            }
            continue;
        }
        match (first, home) {
            (None, _) => added += &wanted.line(),
            (Some(first), Home::DropIn(file)) if first.file != file && !is_before(config, first, file) => {
                added += &wanted.line();
            }
            (Some(first), _) => replace(config, &mut edits, first, wanted),
        }
    }
    apply(config, &edits, &added, home)
}

/// Whether the setting is read before the file is.
fn is_before(config: &Config, setting: &Setting, file: usize) -> bool {
    config.settings.iter().position(|s| std::ptr::eq(s, setting)) < Some(config.files[file].first)
}

/// Gives a line other arguments; its indentation, spelling and comment stay.
fn replace(config: &Config, edits: &mut Edits, setting: &Setting, wanted: &Wanted) {
    if setting.said.arguments == wanted.words() {
        return;
    }
    set_arguments(config, edits, setting, &wanted.value);
}

fn set_arguments(config: &Config, edits: &mut Edits, setting: &Setting, value: &str) {
    let line = config.files[setting.file].lines().nth(setting.line).unwrap_or_default();
    // The span counts in bytes of text; where replacing bad bytes has shifted it, the comment behind is given up.
    let span = match std::str::from_utf8(line) {
        Ok(_) => setting.said.span.clone(),
        Err(_) => {
            let indent = line.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let new = format!("{} {value}\n", setting.said.keyword);
            edits.push((setting.file, setting.line, Some([&line[..indent], new.as_bytes()].concat())));
            return;
        }
    };
    // A keyword without arguments is no valid line, but must not run into the value.
    let blank: &[u8] = if span.is_empty() { b" " } else { b"" };
    // Nor may a comment behind it become part of the value.
    let behind: &[u8] = if span.is_empty() && line[span.end..].starts_with(b"#") { b" " } else { b"" };
    let new = [&line[..span.start], blank, value.as_bytes(), behind, &line[span.end..]].concat();
    edits.push((setting.file, setting.line, Some(new)));
}

/// Addresses that name a port of their own listen on the wanted one, as Port says nothing to them.
fn move_addresses(config: &Config, edits: &mut Edits, port: &str) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for setting in config.global(&["listenaddress"]) {
        let mut arguments = setting.said.arguments.clone();
        let moved = arguments.first().and_then(|address| with_port(address, port));
        if let (Some(moved), Some(address)) = (&moved, arguments.first_mut()) {
            address.clone_from(moved);
        }
        if seen.contains(&arguments) {
            edits.push((setting.file, setting.line, None));
        } else if arguments != setting.said.arguments {
            set_arguments(config, edits, setting, &arguments.join(" "));
        }
        seen.push(arguments);
    }
}

/// `host:port` and `[host]:port` with another port; `None` for an address that names none.
fn with_port(address: &str, port: &str) -> Option<String> {
    let (host, _) = address.rsplit_once(':')?;
    // An IPv6 address without brackets has colons and no port.
    (host.ends_with(']') || !host.contains(':')).then(|| format!("{host}:{port}"))
}

fn apply(config: &Config, edits: &Edits, added: &str, home: Home) -> Vec<(usize, Vec<u8>)> {
    let target = match home {
        Home::DropIn(file) => file,
        Home::Main => 0,
    };
    let mut changed = Vec::new();
    for (at, file) in config.files.iter().enumerate() {
        let adds = if at == target { added } else { "" };
        if adds.is_empty() && !edits.iter().any(|(file, ..)| *file == at) {
            continue;
        }
        let mut text = Vec::new();
        let mut adds = adds.as_bytes();
        if file.text.is_none() {
            text.extend_from_slice(b"# Written by sortie harden (sshd_config(5)). It is read first, and the first value counts.\n");
        }
        for (number, line) in file.lines().enumerate() {
            if !adds.is_empty() && begins_match(config, at, number) {
                text.extend_from_slice(std::mem::take(&mut adds));
            }
            match edits.iter().find(|(file, line, _)| (*file, *line) == (at, number)) {
                Some((_, _, new)) => text.extend_from_slice(new.as_deref().unwrap_or_default()),
                None => text.extend_from_slice(line),
            }
        }
        if !adds.is_empty() {
            if text.last().is_some_and(|&last| last != b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(adds);
        }
        changed.push((at, text));
    }
    changed
}

/// Whether the line of the file opens a Match block.
fn begins_match(config: &Config, file: usize, line: usize) -> bool {
    config.settings.iter().any(|s| (s.file, s.line) == (file, line) && s.said.keyword == "match")
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
