//! The small dialect against the `regex` crate, and against what it must refuse.

use proptest::prelude::*;

use super::*;

fn find(text: &str, line: &[u8]) -> Option<Places> {
    Regex::new("regexp", text).unwrap().find(line, &|| Ok(())).unwrap()
}

fn matched<'a>(text: &str, line: &'a str) -> Option<&'a str> {
    let places = find(text, line.as_bytes())?;
    Some(&line[places[0].unwrap()..places[1].unwrap()])
}

#[test]
fn lines_of_configuration_files_are_found() {
    for (text, line, expected) in [
        ("^#?\\s*PermitRootLogin\\b", "# PermitRootLogin no", Some("# PermitRootLogin")),
        ("^Listen [0-9]{2,5}$", "Listen 8080", Some("Listen 8080")),
        ("^Listen [0-9]{2,4}$", "Listen 80800", None),
        ("127\\.0\\.0\\.1", "127.0.0.1 localhost", Some("127.0.0.1")),
        ("(?i)^EXPORT path=", "export PATH=/bin", Some("export PATH=")),
        ("[[:space:]]+[^[:space:]#]+", "a \t b#c", Some(" \t b")),
        ("^[]a-]+", "]-a", Some("]-a")),
        ("a{2}|b", "aab", Some("aa")),
        ("<.*?>", "<a><b>", Some("<a>")),
        ("^$", "", Some("")),
        ("ä+.", "xääé!", Some("ääé")),
        ("[^a-z]", "ä", Some("ä")),
        ("[ä-ü]", "ö", Some("ö")),
        ("\\$\\{x\\}", "${x}", Some("${x}")),
    ] {
        assert_eq!(matched(text, line), expected, "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_are_matched_one_by_one() {
    let places = find("^a(.)(.)b[^x]$", b"a\xff\xc3b\xfe").unwrap();
    assert_eq!(places[..6], [0, 5, 1, 2, 2, 3].map(Some));
    assert_eq!(find("\u{ff}", b"\xff"), None);
}

#[test]
fn what_is_outside_the_grammar_is_refused_by_name() {
    let nested = format!("{}{}", "(".repeat(33), ")".repeat(33));
    let long = "a".repeat(4097);
    for (text, why) in [
        ("a)", "a ) too many"),
        ("(a", "a ( without its )"),
        ("*a", "nothing before it"),
        ("a|+", "nothing before it"),
        ("a**", "repeats what is repeated"),
        ("a+{2}", "repeats what is repeated"),
        ("a{", "{ that is no"),
        ("a{2", "{ that is no"),
        ("a{3,2}", "{ that is no"),
        ("a{,2}", "{ that is no"),
        ("a{x}", "{ that is no"),
        ("a{99999999999999999999}", "too large"),
        ("((a{100}){100}){100}", "too large"),
        ("[a", "[ without its ]"),
        ("[[a]]", "[ without its ]"),
        ("[[:wrong:]]", "[:alnum:]"),
        ("[[:space:]-z]", "no single characters"),
        ("[\\d-z]", "no single characters"),
        ("[z-a]", "ends before it begins"),
        ("\\1", "a \\ before"),
        ("\\n", "a \\ before"),
        ("\\pL", "a \\ before"),
        ("a\\", "a \\ before"),
        ("(?P<x>a)", "(? that is no"),
        ("(?=a)", "(? that is no"),
        ("a(?i)b", "(? that is no"),
        (&nested, "32 deep"),
        (&long, "longer than 4096"),
    ] {
        let failure = Regex::new("regexp", text).err().unwrap();
        assert!(
            failure.message.starts_with("regexp: ") && failure.message.contains(why),
            "{text}: {}",
            failure.message
        );
    }
}

#[test]
fn no_text_makes_it_slow() {
    // Each of these takes a backtracking matcher longer than the age of the universe.
    let line = vec![b'a'; 4000];
    for text in ["(a*)*b", "(a|aa)+$b", "(a|a?)+b", "(.*)(.*)(.*)(.*)(.*)b", "(x+x+)+y|(a?){200}b"] {
        assert_eq!(find(text, &line), None, "{text}");
    }
}

#[test]
fn a_long_line_is_given_up_when_the_command_is_ended() {
    let ended = || Err(Failure::params("ended"));
    assert!(Regex::new("regexp", "b").unwrap().find(&[b'a'; 10_000], &ended).is_err());
}

/// Expressions of the dialect, written as this one and the `regex` crate both read them.
fn expression() -> impl Strategy<Value = String> {
    let class = prop_oneof![
        Just("[ab]"),
        Just("[^ab]"),
        Just("[a-c_é]"),
        Just("[[:alpha:]]"),
        Just("[^[:digit:]b]"),
        Just("[\\d\\-a]"),
        Just("[]x]"),
        Just("[^\\s]"),
    ];
    let leaf = prop_oneof![
        4 => "[abcé1 -]".prop_map(|c| c),
        1 => Just(".".to_owned()),
        2 => class.prop_map(str::to_owned),
        1 => prop_oneof![Just("^"), Just("$"), Just("\\b"), Just("\\B")].prop_map(str::to_owned),
        1 => prop_oneof![Just("\\d"), Just("\\W"), Just("\\w"), Just("\\S"), Just("\\."), Just("\\t")].prop_map(str::to_owned),
        1 => Just(String::new()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let repeat = prop_oneof![
            Just("*"),
            Just("+"),
            Just("?"),
            Just("*?"),
            Just("+?"),
            Just("??"),
            Just("{2}"),
            Just("{0,2}"),
            Just("{1,}"),
            Just("{0}"),
            Just("{1,3}?")
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|parts| parts.concat()),
            proptest::collection::vec(inner.clone(), 1..4)
                .prop_map(|parts| format!("(?:{})", parts.join("|"))),
            inner.clone().prop_map(|part| format!("({part})")),
            (inner, repeat).prop_map(|(part, repeat)| format!("({part}){repeat}")),
        ]
    })
}

/// The same in the other dialect: its classes are Unicode's, and repetitions of `^` and the like are taken there.
fn in_theirs(text: &str) -> String {
    let mut theirs = text.to_owned();
    for (ours, other) in [
        ("\\d", "[0-9]"),
        ("\\w", "[0-9A-Za-z_]"),
        ("\\W", "[^0-9A-Za-z_]"),
        ("\\S", "[^\\t-\\r ]"),
        ("\\s", "\\t-\\r "),
        ("\\b", "(?-u:\\b)"),
        ("\\B", "(?-u:\\B)"),
    ] {
        theirs = theirs.replace(ours, other);
    }
    theirs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn matches_and_groups_are_those_of_the_regex_crate(text in expression(), fold in any::<bool>(), line in "[abcABCé1 _.\\-\tx]{0,12}") {
        let fold_mark = if fold { "(?i)" } else { "" };
        // Their (?i) folds é too, and their \B of ASCII finds a place inside of it.
        prop_assume!(!fold || !text.contains('é'));
        prop_assume!(!text.contains("\\B") || !line.contains('é'));
        let Ok(theirs) = regex::bytes::Regex::new(&format!("{fold_mark}{}", in_theirs(&text))) else {
            return Err(TestCaseError::reject("not theirs"));
        };
        let places = find(&format!("{fold_mark}{text}"), line.as_bytes());
        let expected = theirs.captures(line.as_bytes());
        prop_assert_eq!(places.is_some(), expected.is_some(), "{}", text);
        let (Some(places), Some(expected)) = (places, expected) else { return Ok(()) };
        for group in 0..theirs.captures_len().min(PLACES / 2) {
            let found = places[group * 2].zip(places[group * 2 + 1]);
            prop_assert_eq!(found, expected.get(group).map(|m| (m.start(), m.end())), "{} of {:?}", group, text);
        }
    }

    #[test]
    fn whatever_is_not_refused_is_matched_in_peace(text in "[\\[\\]()|*+?{}^$.\\\\a-c0-9,:-]{0,16}", line in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(regex) = Regex::new("regexp", &text)
            && let Some(places) = regex.find(&line, &|| Ok(())).unwrap()
        {
            prop_assert!(places[0] <= places[1] && places[1] <= Some(line.len()));
        }
    }
}
