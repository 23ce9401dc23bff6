//! What fuzzing does with the runner, and the replay of what it found: `fuzz/` of the repository, `cargo xtask fuzz`. In no
//! build that ships. Where a parser is nobody else's business, its module has a `fuzz` of its own.
#![allow(clippy::expect_used, reason = "what is not so is a finding")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sortie_protocol::command::ini_ensure::Continued;
use sortie_protocol::command::sudoers_ensure::SudoersEnsure;
use sortie_protocol::message::{Become, BecomeMethod};

use crate::archive::{Listing, components};
use crate::failure::Failure;
use crate::ini::Ini;
use crate::lines::{Block, Edited, Lines, OneLine, Place};
use crate::package::{MANAGERS, changes, said};
use crate::regex::Regex;
use crate::sshd::config::{Config, Source, directive};
use crate::sshd::edit::{Home, Wanted, plan};
use crate::tool::{Ran, last_lines};
use crate::{facts, hop, scope, service, sshd, sudoers};

/// What programs of a host print, and files that they write for others to read. The first byte says which program it is.
///
/// # Panics
/// Where what is read cannot be.
pub fn programs(data: &[u8]) {
    let Some((which, printed)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(printed);
    match usize::from(*which) {
        manager if manager < MANAGERS.len() => package_manager(manager, &text, printed),
        32 => service::fuzz(&text),
        33 => facts::fuzz(&text),
        34 => becoming(printed),
        35 => scope::fuzz(printed),
        36 => sshd::daemon::fuzz(&text),
        37 => {
            let shown = last_lines(printed, 3);
            assert!(
                shown.len() <= 3 * (printed.len() + 8) && !shown.contains(|c: char| c.is_control()),
                "{shown:?}"
            );
        }
        _ => {}
    }
}

/// What is read are packages that stand there, and who failed is quoted within bounds.
fn package_manager(which: usize, text: &str, printed: &[u8]) {
    let manager = MANAGERS[which];
    let (installed, removing) = ((manager.read_installed)(text), (manager.read_plan)(text, true));
    let plan = (manager.read_plan)(text, false);
    for row in [&installed, &removing, &plan, &(manager.read_available)(text)].into_iter().flatten() {
        assert!(text.contains(row.version.as_str()), "{row:?}");
        assert!(!row.name.contains('\n') && !row.version.contains('\n'), "{row:?}");
    }
    let after = changes::applied(&installed, plan);
    let changed = changes::changes(&installed, &after);
    assert!(changes::diff(changed.iter()).lines().count() <= 4 * (installed.len() + after.len()) + 4);
    let _ = changes::in_words(&changed);
    for line in text.lines() {
        (manager.progress)(line);
    }
    let ran = Ran { exit_code: 1, stdout: printed.to_vec(), stderr: printed.to_vec(), left_running: 0 };
    assert!(!said::failure(manager, "do it", &ran).message.contains('\x1b'));
}

/// What sudo, doas and su say is understood, and a password in it goes nowhere.
fn becoming(printed: &[u8]) {
    const PASSWORD: &str = "hunter2hunter2";
    for method in [BecomeMethod::Sudo, BecomeMethod::Doas, BecomeMethod::Su] {
        let whom = Become {
            user: "root".into(),
            method,
            password: Some(sortie_protocol::Secret::new(PASSWORD.to_owned())),
        };
        let failure = hop::fuzz(&whom, printed);
        assert!(!format!("{failure:?}").contains(PASSWORD), "{failure:?}");
    }
}

/// What tar and unzip list: nothing that is let through can end up elsewhere. Both listings of an archive apart by a NUL, and
/// before them a byte that says which program made them.
///
/// # Panics
/// Where something would.
pub fn archive(data: &[u8]) {
    let Some((which, listed)) = data.split_first() else { return };
    let mut listing = Listing::default();
    let (mut short, mut long) = (listed, &listed[..0]);
    if which & 1 == 1 {
        for line in lines(short) {
            listing.zip_line(line);
        }
    } else {
        if let Some(at) = listed.iter().position(|b| *b == 0) {
            (short, long) = (&listed[..at], &listed[at + 1..]);
        }
        lines(short).for_each(|line| listing.name(line, which & 2 == 2));
        lines(long)
            .for_each(|line| if which & 4 == 4 { listing.complaint(line) } else { listing.tar_line(line) });
    }
    if listing.check(&|| Ok(())).is_err() {
        return;
    }
    let names: Vec<Vec<u8>> = listing.members().map(|(name, _)| name.to_vec()).collect();
    let kinds = lines(long).map(|line| line.first().copied());
    let links: BTreeSet<Vec<&[u8]>> = names
        .iter()
        .zip(kinds)
        .filter(|(_, kind)| *kind == Some(b'l'))
        .map(|(name, _)| components(name).collect())
        .collect();
    for name in &names {
        let parts: Vec<&[u8]> = components(name).collect();
        assert!(!name.starts_with(b"/") && !parts.contains(&&b".."[..]), "{}", name.escape_ascii());
        let below = (1..parts.len()).any(|above| links.contains(&parts[..above]));
        assert!(!below, "below a link: {}", name.escape_ascii());
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    Lines::of(text).map(|line| line.text)
}

/// A configuration of sshd: a main file and one that it includes, apart by a NUL. What was to be set is what sshd reads
/// afterwards, and another time nothing changes.
///
/// # Panics
/// Where that is not so.
pub fn sshd(data: &[u8]) {
    let files: Vec<&[u8]> = data.splitn(2, |b| *b == 0).collect();
    // sshd refuses such files; what a directive in them would mean is nobody's business.
    if data.contains(&b'"') || data.contains(&b'\'') || data.contains(&b'\\') || data.contains(&b'\r') {
        for line in String::from_utf8_lossy(data).lines() {
            directive(line);
        }
        return;
    }
    let mut texts = Texts(files.iter().map(|text| text.to_vec()).collect());
    let wanted = [("PermitRootLogin", "no"), ("Port", "2222"), ("AllowUsers", "deploy ops@10.0.0.0/8")];
    let wanted = wanted.map(|(name, value)| Wanted {
        name: name.into(),
        value: value.into(),
        keywords: vec![name.to_ascii_lowercase()],
    });
    let config = texts.config();
    // One file that is read at several places has no one place for anything.
    if config.includes.iter().map(|(.., files)| files.len()).sum::<usize>() > 1 {
        return;
    }
    for (file, text) in plan(&config, &wanted, Home::Main) {
        texts.0[number(&config.files[file].path)] = text;
    }
    let config = texts.config();
    for wanted in &wanted {
        let keywords = wanted.keywords();
        let said: Vec<_> = config.global(&keywords).map(|setting| setting.said.arguments.join(" ")).collect();
        assert_eq!(said.first(), Some(&wanted.value), "{}", wanted.name);
    }
    assert_eq!(plan(&config, &wanted, Home::Main), []);
}

/// The texts of `/main` and of `/1`, which is what every Include means.
struct Texts(Vec<Vec<u8>>);

fn number(path: &Path) -> usize {
    usize::from(path != Path::new("/main"))
}

impl Texts {
    fn config(&mut self) -> Config {
        let Ok(config) = Config::read(Path::new("/main"), self);
        config
    }
}

impl Source for Texts {
    type Error = std::convert::Infallible;

    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(self.0.get(number(path)).cloned())
    }

    fn expand(&mut self, _: &str) -> Vec<PathBuf> {
        (1..self.0.len()).map(|_| PathBuf::from("/1")).collect()
    }
}

/// Edits of files that anybody may have written: what was asked for is there afterwards, another time nothing changes, and every
/// other line is as it was. An expression, a line of the user's and the file, apart by NULs.
///
/// # Panics
/// Where that is not so.
pub fn edits(data: &[u8]) {
    let mut parts = data.splitn(3, |b| *b == 0);
    let (Some(pattern), Some(line), Some(file)) = (parts.next(), parts.next(), parts.next()) else { return };
    let (Ok(pattern), Ok(line)) = (std::str::from_utf8(pattern), std::str::from_utf8(line)) else { return };
    if line.contains(['\n', '\r']) {
        return;
    }
    for first in [false, true] {
        for regexp in [None, Regex::new("regexp", pattern).ok()] {
            let has_regexp = regexp.is_some();
            let one = OneLine { regexp, line, backrefs: false, first, place: Place::End };
            let after = twice(file, &|content| one.present(content, &|| Ok(())));
            assert!(lines(&after).any(|found| found == line.as_bytes()), "the line is not there");
            if !has_regexp {
                let mut others: Vec<&[u8]> = lines(&after).collect();
                let before: Vec<&[u8]> = lines(file).collect();
                if others.len() > before.len() {
                    others.pop();
                }
                assert_eq!(others, before);
            }
            let after = twice(file, &|content| one.absent(content, &|| Ok(())));
            assert!(has_regexp || lines(&after).all(|found| found != line.as_bytes()), "the line is there");
        }
        let markers = ["# BEGIN", "# END"].map(str::to_owned);
        // As the command does.
        if markers.iter().any(|marker| marker == line) {
            continue;
        }
        let block = Block { markers, lines: line, first, place: Place::Begin };
        if block.present(file, &|| Ok(())).is_ok() {
            let after = twice(file, &|content| block.present(content, &|| Ok(())));
            let without = twice(&after, &|content| block.absent(content, &|| Ok(())));
            let untouched = block.absent(file, &|| Ok(())).is_ok_and(|edited| edited.content.is_none());
            assert!(!untouched || without == file, "{}", without.escape_ascii());
        }
    }
    for continued in [None, Some(Continued::None), Some(Continued::Indent), Some(Continued::Backslash)] {
        for (section, inline_comments) in [(None, true), (Some("mysqld"), false), (Some("Service"), true)] {
            options(file, &Ini { section, option: "key", inline_comments, continued });
        }
    }
    rule(pattern, line);
}

/// What `edit` makes of a file, which it then leaves as it is.
fn twice(file: &[u8], edit: &dyn Fn(&[u8]) -> Result<Edited, Failure>) -> Vec<u8> {
    let once = edit(file).expect("it was or can be edited").content.unwrap_or_else(|| file.to_vec());
    let again = edit(&once).expect("what was edited can be again");
    assert_eq!(again.content, None, "another time it is {:?}", again.action);
    once
}

fn options(file: &[u8], ini: &Ini<'_>) {
    for values in [None, Some(&["1"][..]), Some(&["a b", "c;d"])] {
        let edit = |content: &[u8]| ini.present(content, values, &|| Ok(()));
        if let Some(after) = settled(file, &edit) {
            assert!(after.windows(3).any(|part| part == b"key"));
        }
    }
    let edit = |content: &[u8]| ini.absent(content, &|| Ok(()));
    if let Some(after) = settled(file, &edit) {
        assert!(lines(&after).count() <= lines(file).count());
    }
}

/// What `edit` makes of a file, unless the command would refuse it: what it does not leave alone another time it does not make.
fn settled(file: &[u8], edit: &dyn Fn(&[u8]) -> Result<Edited, Failure>) -> Option<Vec<u8>> {
    let once = edit(file).ok()?.content.unwrap_or_else(|| file.to_vec());
    let again = edit(&once).ok()?;
    again.content.is_none().then_some(once)
}

/// One rule of sudoers(5) is one line, whoever is named in it.
fn rule(user: &str, command: &str) {
    let params = SudoersEnsure {
        user: user.into(),
        commands: vec![command.into()],
        host: user.into(),
        ..Default::default()
    };
    if let Ok(text) = sudoers::text(&params) {
        assert_eq!((text.lines().count(), text.ends_with('\n')), (2, true), "{text:?}");
        assert!(!text.contains(['\r', '\0', '\x0b', '\x0c']), "{text:?}");
    }
    let name = sudoers::file_name(user);
    assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-%".contains(&b)), "{name}");
}

#[cfg(test)]
mod tests {
    type Target = fn(&[u8]);

    #[test]
    fn what_fuzzing_found_stays_mended() {
        let targets: [(&str, Target); 4] = [
            ("programs", super::programs),
            ("archive", super::archive),
            ("sshd", super::sshd),
            ("edits", super::edits),
        ];
        for (name, target) in targets {
            let directory = format!("{}/../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let files: Vec<_> =
                std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!files.is_empty(), "{directory} is empty");
            for file in files {
                target(&std::fs::read(&file).unwrap());
            }
        }
    }
}
