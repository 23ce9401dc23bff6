use proptest::prelude::*;

use super::*;

/// Files that exist in a test alone.
pub(crate) struct Files<'a>(pub(crate) &'a [(&'a str, &'a str)]);

impl Source for Files<'_> {
    type Error = std::convert::Infallible;

    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(self.0.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| text.as_bytes().to_vec()))
    }

    fn expand(&mut self, pattern: &str) -> Vec<PathBuf> {
        let (directory, name) = pattern.rsplit_once('/').unwrap();
        let mut found: Vec<PathBuf> = self
            .0
            .iter()
            .filter(|(path, _)| {
                path.rsplit_once('/').is_some_and(|(d, n)| d == directory && glob_matches(name, n))
            })
            .map(|(path, _)| path.into())
            .collect();
        found.sort();
        found
    }
}

pub(crate) fn read(files: &[(&str, &str)]) -> Config {
    let Ok(config) = Config::read(Path::new(files[0].0), &mut Files(files));
    config
}

fn said(line: &str) -> Option<(String, Vec<String>)> {
    directive(line).map(|d| (d.keyword, d.arguments))
}

fn pair(keyword: &str, arguments: &[&str]) -> Option<(String, Vec<String>)> {
    Some((keyword.to_owned(), arguments.iter().map(ToString::to_string).collect()))
}

#[test]
fn a_line_is_taken_apart_as_sshd_does_it() {
    assert_eq!(said("PermitRootLogin no\n"), pair("permitrootlogin", &["no"]));
    assert_eq!(said("\tpermitrootlogin\tNo  \r\n"), pair("permitrootlogin", &["No"]));
    assert_eq!(said("Port=22"), pair("port", &["22"]));
    assert_eq!(said("Port = \"22\""), pair("port", &["22"]));
    assert_eq!(said("\"Port\" 22"), pair("port", &["22"]));
    assert_eq!(said("Banner \"/etc/a file\" # why"), pair("banner", &["/etc/a file"]));
    assert_eq!(said("AllowUsers a b@c#d # e"), pair("allowusers", &["a", "b@c#d"]));
    assert_eq!(said("ForceCommand a=b \\\"x"), pair("forcecommand", &["a=b", "\"x"]));
    assert_eq!(said("  # PermitRootLogin no"), None);
    assert_eq!(said("\n"), None);
    assert_eq!(directive("  Port  22  # x").unwrap().span, 8..10);
}

#[test]
fn includes_are_read_where_they_stand_and_their_match_blocks_end_with_them() {
    let config = read(&[
        ("/m", "Include /d/*.conf\nPort 1\nMatch User a\n  Port 2\n"),
        ("/d/a.conf", "Port 3\nMatch all\nPort 4\n"),
        ("/d/b.conf", "Port 5"),
        ("/d/.c.conf", "Port 6"),
        ("/d/d", "Port 7"),
    ]);
    let ports: Vec<_> = config
        .settings
        .iter()
        .filter(|s| s.said.keyword == "port")
        .map(|s| (&*s.said.arguments[0], s.block.is_some(), config.place(s)))
        .collect();
    let place = |text: &str| text.to_owned();
    assert_eq!(
        ports,
        [
            ("3", false, place("/d/a.conf:1")),
            ("4", true, place("/d/a.conf:3")),
            ("5", false, place("/d/b.conf:1")),
            ("1", false, place("/m:2")),
            ("2", true, place("/m:4")),
        ]
    );
    assert_eq!(config.includes, [(0, 0, vec![1, 2])]);
}

#[test]
fn a_file_that_includes_itself_ends() {
    let config = read(&[("/d/m", "Include /d/m\nPort 1\n")]);
    assert_eq!(config.files.len(), 1);
    assert_eq!(config.global(&["port"]).count(), MOST_DEPTH + 1);
}

#[test]
fn patterns_mean_what_the_manual_says() {
    for (pattern, name, means) in [
        ("*.conf", "50-cloud-init.conf", true),
        ("*.conf", ".hidden.conf", false),
        ("*.conf", "a.conf~", false),
        ("[0-4]?-*", "50-x", false),
        ("[!0-4]?-*", "50-x", true),
        ("[]x]", "]", true),
        ("[x", "[x", true),
    ] {
        assert_eq!(glob_matches(pattern, name), means, "{pattern} {name}");
    }
    assert!(pattern_matches("d*y", "deploy") && pattern_matches("?eploy", "deploy"));
    assert!(!pattern_matches("[d]eploy", "deploy"));
}

proptest! {
    #[test]
    fn any_line_is_taken_apart_without_a_panic(line in "[ \\t#=\"'\\\\a-zA-Z0-9äé\\x0c\\r\\n-]{0,40}") {
        if let Some(said) = directive(&line) {
            prop_assert!(line.get(said.span.clone()).is_some());
            prop_assert_eq!(said.span.is_empty(), said.arguments.is_empty());
        }
    }

    #[test]
    fn plain_words_come_through_whatever_stands_between(
        keyword in "[A-Za-z]{1,12}",
        gap in "( |\t|=| = |  =\t){1}",
        arguments in proptest::collection::vec("[a-z0-9@.*!,:/-]{1,8}", 1..5),
        end in "[ \t]{0,3}(\r?\n)?",
    ) {
        let line = format!("{keyword}{gap}{}{end}", arguments.join(" "));
        prop_assert_eq!(said(&line), Some((keyword.to_ascii_lowercase(), arguments)));
    }
}
