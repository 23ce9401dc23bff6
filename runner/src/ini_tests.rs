//! Files as php, git, systemd and configparser have them, changed to the byte.

use proptest::prelude::*;

use super::*;

fn fine() -> Result<(), Failure> {
    Ok(())
}

fn ini<'a>(section: &'a str, option: &'a str) -> Ini<'a> {
    Ini {
        section: Some(section).filter(|section| !section.is_empty()),
        option,
        inline_comments: false,
        continued: None,
    }
}

/// What becomes of it, after seeing that a second run leaves it.
fn set(ini: &Ini<'_>, values: Option<&[&str]>, content: &str) -> String {
    let new =
        ini.present(content.as_bytes(), values, &fine).unwrap().content.unwrap_or_else(|| content.into());
    let text = String::from_utf8(new.clone()).unwrap();
    assert_eq!(ini.present(&new, values, &fine).unwrap().action, "already_present", "{text}");
    text
}

fn unset(ini: &Ini<'_>, content: &str) -> String {
    let edited = match ini.option {
        "" => ini.section_absent(content.as_bytes(), &fine),
        _ => ini.absent(content.as_bytes(), &fine),
    };
    String::from_utf8(edited.unwrap().content.unwrap_or_else(|| content.into())).unwrap()
}

const PHP: &str = "[PHP]\n; how much\nmemory_limit = 128M\n;upload_max_filesize = 2M\n\nerror_log =\n\n; dates\n[Date]\ndate.timezone=UTC\n";
const GIT: &str = "[core]\n\tbare = false\n[remote \"origin\"]\n\turl = a\n\tfetch = +refs/x\n\tfetch = +refs/y\n[x]\n\tflag\n";
const UNIT: &str =
    "[Unit]\nDescription=x\n\n[Service]\nExecStart=/bin/a \\\n  --flag=1 \\\n  --last\nRestart=no\n";

#[test]
fn a_value_is_changed_where_it_stands() {
    for (section, option, value, content, before, after) in [
        ("PHP", "memory_limit", "1G", PHP, "= 128M\n", "= 1G\n"),
        ("PHP", "error_log", "syslog", PHP, "error_log =\n", "error_log = syslog\n"),
        ("PHP", "upload_max_filesize", "9M", PHP, "= 2M\n", "= 2M\nupload_max_filesize = 9M\n"),
        ("PHP", "new", "1", PHP, "error_log =\n", "error_log =\nnew = 1\n"),
        ("Date", "date.timezone", "", PHP, "=UTC\n", "=\n"),
        ("Date", "other", "1", PHP, "=UTC\n", "=UTC\nother=1\n"),
        ("core", "bare", "true", GIT, "= false", "= true"),
        ("remote \"origin\"", "url", "b", GIT, "url = a", "url = b"),
        ("remote \"origin\"", "push", "c", GIT, "refs/y\n", "refs/y\n\tpush = c\n"),
        ("remote \"origin\"", "fetch", "z", GIT, "\tfetch = +refs/x\n\tfetch = +refs/y\n", "\tfetch = z\n"),
        ("x", "flag", "1", GIT, "\tflag\n", "\tflag = 1\n"),
        ("Unit", "After", "y", UNIT, "Description=x\n", "Description=x\nAfter=y\n"),
        ("Service", "Restart", "always", UNIT, "Restart=no", "Restart=always"),
    ] {
        let expected = content.replacen(before, after, 1);
        assert_ne!(expected, content);
        assert_eq!(set(&ini(section, option), Some(&[value]), content), expected, "{section} {option}");
    }
}

#[test]
fn sections_and_files_that_are_not_there_are_made() {
    for (section, content, after) in [
        ("s", "", "[s]\no=1\n"),
        ("s", "a=1", "a=1\n\n[s]\no=1\n"),
        ("s", "[a]\r\n x = 1\r\n", "[a]\r\n x = 1\r\n\r\n[s]\r\n o = 1\r\n"),
        ("s", "[a]\n\n", "[a]\n\n[s]\no=1\n"),
        ("s", "[s]", "[s]\no=1\n"),
        ("", "", "o=1\n"),
        ("", "a=1\n[s]\no=2\n", "a=1\no=1\n[s]\no=2\n"),
        ("", "# x\n[s]\no=2\n", "o=1\n# x\n[s]\no=2\n"),
        ("", "# only comments", "# only comments\no=1\n"),
    ] {
        assert_eq!(set(&ini(section, "o"), Some(&["1"]), content), after);
    }
    let made = ini("s", "").section_present(b"a=1\n", &fine).unwrap();
    assert_eq!(made.content.unwrap(), b"a=1\n\n[s]\n");
    assert_eq!(ini("s", "").section_present(b" [ s ] ; x\n", &fine).unwrap().action, "already_present");
}

#[test]
fn an_option_may_stand_alone_or_more_than_once() {
    assert_eq!(set(&ini("m", "skip"), None, "[m]\na\n"), "[m]\na\nskip\n");
    assert_eq!(set(&ini("m", "skip"), None, "[m]\nskip = 1\n"), "[m]\nskip\n");
    let reset = ["", "/bin/b"];
    assert_eq!(set(&ini("S", "E"), Some(&reset), "[S]\n"), "[S]\nE=\nE=/bin/b\n");
    assert_eq!(set(&ini("S", "E"), Some(&reset), "[S]\nE=/bin/a\nx=1"), "[S]\nE=\nE=/bin/b\nx=1");
    assert_eq!(set(&ini("S", "E"), Some(&reset), "[S]\nE="), "[S]\nE=\nE=/bin/b\n");
    assert_eq!(set(&ini("S", "E"), Some(&["1"]), "[S]\nE=1\n[T]\n[S]\nE=2\n"), "[S]\nE=1\n[T]\n[S]\n");
}

#[test]
fn comments_behind_values_stay_where_they_are_such() {
    let php = |option| Ini { inline_comments: true, ..ini("s", option) };
    let content = "[s]\na = 1 ; one\nb = \"x ; y\"   # two\nc = ; three\nd = x;y\ne ; alone\n";
    for (option, before, after) in [
        ("a", "= 1 ;", "= v ;"),
        ("b", "\"x ; y\"", "v"),
        ("c", "= ; three", "= v ; three"),
        ("d", "x;y", "v"),
        ("e", "e ; alone", "e = v ; alone"),
    ] {
        assert_eq!(set(&php(option), Some(&["v"]), content), content.replace(before, after), "{option}");
    }
    assert_eq!(set(&ini("s", "a"), Some(&["v"]), content), content.replace("1 ; one", "v"));
}

#[test]
fn what_goes_on_in_the_next_line_is_told_or_refused() {
    let with = |continued, option| Ini { continued, ..ini("Service", option) };
    let refused = |ini: &Ini<'_>, content: &str| {
        let failure = ini.present(content.as_bytes(), Some(&["v"]), &fine).err().unwrap();
        assert_eq!(failure.code, ErrorCode::Conflict);
        assert!(failure.message.contains("`continued`"), "{}", failure.message);
    };
    refused(&with(None, "ExecStart"), UNIT);
    refused(&with(None, "--flag"), UNIT);
    let backslash = with(Some(Continued::Backslash), "ExecStart");
    assert_eq!(
        set(&backslash, Some(&["/bin/b"]), UNIT),
        UNIT.replace("/bin/a \\\n  --flag=1 \\\n  --last", "/bin/b")
    );
    assert_eq!(unset(&backslash, UNIT), "[Unit]\nDescription=x\n\n[Service]\nRestart=no\n");
    let windows = "[Service]\ndir = C:\\temp\\\nother = 1\n";
    refused(&with(None, "dir"), windows);
    assert_eq!(
        set(&with(Some(Continued::None), "dir"), Some(&["D:"]), windows),
        windows.replace("C:\\temp\\", "D:")
    );
    let python = "[Service]\nlist =\n  a=1\n  b\nlast = 1\n";
    refused(&with(None, "list"), python);
    refused(&with(None, "a"), python);
    refused(&with(None, "x"), "[Service]\na = 1\n  [x]\n");
    let by_indent = with(Some(Continued::Indent), "list");
    assert_eq!(set(&by_indent, Some(&["v"]), python), "[Service]\nlist = v\nlast = 1\n");
    assert_eq!(set(&with(Some(Continued::Indent), "a"), Some(&["2"]), python), format!("{python}a = 2\n"));
    // What goes on elsewhere is nobody's business.
    assert_eq!(set(&with(None, "last"), Some(&["2"]), python), python.replace("last = 1", "last = 2"));
}

#[test]
fn options_and_sections_are_taken_out() {
    assert_eq!(
        unset(&ini("remote \"origin\"", "fetch"), GIT),
        GIT.replace("\tfetch = +refs/x\n\tfetch = +refs/y\n", "")
    );
    assert_eq!(unset(&ini("core", "url"), GIT), GIT);
    assert_eq!(unset(&ini("core", ""), GIT), GIT.replace("[core]\n\tbare = false\n", ""));
    // The comment above the next section is that one's.
    assert_eq!(unset(&ini("PHP", ""), PHP), "; dates\n[Date]\ndate.timezone=UTC\n");
    assert_eq!(unset(&ini("a", ""), "[a]\nx=1\n\n[a]\ny=1\n"), "");
    assert_eq!(unset(&ini("s", ""), "a=1\r\n\r\n[s]\r\nx=1"), "a=1\r\n");
}

#[test]
fn names_are_whole_names() {
    let content = "[s]\nab = 1\na.b = 2\na b = 3\nA = 4\n[s2]\na = 5\n[ s ]\n; a = 6\n";
    assert_eq!(set(&ini("s", "a"), Some(&["v"]), content), format!("{content}a = v\n"));
    assert_eq!(set(&ini("s", "a b"), Some(&["v"]), content), content.replace("3", "v"));
}

fn file() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("[s]".to_owned()),
        Just("[t] # x".to_owned()),
        "[ab] ?= ?[xy]{0,2}",
        "\t?[ab]",
        "[#;] ?[ab]=1",
        Just(String::new()),
    ];
    let end = prop_oneof![Just("\n"), Just("\r\n")];
    (proptest::collection::vec((line, end), 0..10), any::<bool>()).prop_map(|(lines, ended)| {
        let text: String = lines.into_iter().map(|(line, end)| line + end).collect();
        if ended { text } else { text.trim_end().to_owned() }
    })
}

/// The values of `a` in `[s]`, read as simply as can be.
fn values(content: &str) -> Vec<Option<String>> {
    let mut here = false;
    let mut found = Vec::new();
    for line in content.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            here = line == "[s]";
        } else if here {
            match line.split_once('=') {
                Some((name, value)) if name.trim() == "a" => found.push(Some(value.trim().to_owned())),
                None if line == "a" => found.push(None),
                _ => {}
            }
        }
    }
    found
}

/// All but those, and what may be added around them.
fn others(content: &str) -> Vec<&str> {
    let mut here = false;
    let mut kept = Vec::new();
    for line in content.lines() {
        let text = line.trim();
        if text.starts_with('[') {
            here = text == "[s]";
        }
        let ours = here && (text == "a" || text.split_once('=').is_some_and(|(name, _)| name.trim() == "a"));
        if !ours && !text.is_empty() && text != "[s]" {
            kept.push(line);
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn afterwards_the_option_has_the_values_and_all_else_is_as_it_was(
        content in file(), wanted in proptest::option::of(proptest::collection::vec("[xy]{0,2}", 1..3)),
    ) {
        let ini = Ini { continued: Some(Continued::None), ..ini("s", "a") };
        let list: Option<Vec<&str>> = wanted.as_ref().map(|list| list.iter().map(String::as_str).collect());
        let new = set(&ini, list.as_deref(), &content);
        let expected = wanted.map_or_else(|| vec![None], |list| list.into_iter().map(Some).collect());
        prop_assert_eq!(values(&new), expected, "{}", new);
        prop_assert_eq!(others(&new), others(&content));
        let gone = unset(&ini, &new);
        prop_assert!(values(&gone).is_empty());
        prop_assert_eq!(others(&gone), others(&content));
    }

    #[test]
    fn any_bytes_are_read_in_peace(content in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'['), Just(b']'), Just(b'a'), Just(b'='), Just(b' '), Just(b'\\'), Just(b';'), Just(b'"'), any::<u8>()], 0..60), inline_comments in any::<bool>()) {
        let asked = Ini { inline_comments, ..ini("a", "a") };
        for values in [None, Some(&["v"][..])] {
            if let Ok(edited) = asked.present(&content, values, &fine) {
                let new = edited.content.unwrap_or_else(|| content.clone());
                if let Ok(again) = asked.present(&new, values, &fine) {
                    prop_assert_eq!(again.action, "already_present");
                }
                let _ = asked.absent(&new, &fine);
                let _ = asked.section_absent(&new, &fine);
            }
        }
    }
}
