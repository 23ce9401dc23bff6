//! Lines and blocks put into files and taken out, to the byte.

use proptest::prelude::*;

use super::*;

fn fine() -> Result<(), Failure> {
    Ok(())
}

fn regex(text: &str) -> Regex {
    Regex::new("regexp", text).unwrap()
}

fn one(line: &str) -> OneLine<'_> {
    OneLine { regexp: None, line, backrefs: false, first: false, place: Place::End }
}

/// What became of the content, and that a second run leaves it.
fn present(line: &OneLine<'_>, content: &[u8]) -> (Vec<u8>, &'static str) {
    let edited = line.present(content, &fine).unwrap();
    let new = edited.content.unwrap_or_else(|| content.to_vec());
    assert!(line.present(&new, &fine).unwrap().content.is_none(), "a second run changes it");
    (new, edited.action)
}

#[test]
fn a_missing_line_is_put_at_the_end_and_ends_as_the_others_do() {
    for (before, after) in [
        (&b""[..], &b"new\n"[..]),
        (b"a\n", b"a\nnew\n"),
        (b"a", b"a\nnew\n"),
        (b"a\r\nb", b"a\r\nb\r\nnew\r\n"),
        (b"a\r\n", b"a\r\nnew\r\n"),
        (b"\xff\xfe\n", b"\xff\xfe\nnew\n"),
        (b"new", b"new"),
        (b"new\r\n", b"new\r\n"),
        (b" new\n", b" new\nnew\n"),
    ] {
        assert_eq!(present(&one("new"), before).0, after);
    }
}

#[test]
fn of_what_matches_the_last_is_replaced_and_the_rest_stays_to_the_byte() {
    let content = b"#Port 22\r\nPort 1\r\n\xff\nPort 2";
    let mut line = OneLine { regexp: Some(regex("^#?Port ")), ..one("Port 22") };
    assert_eq!(present(&line, content), (b"#Port 22\r\nPort 1\r\n\xff\nPort 22".to_vec(), "replaced"));
    line.first = true;
    assert_eq!(present(&line, content).0, b"Port 22\r\nPort 1\r\n\xff\nPort 2");
    // It is there, and only the comment matches.
    let line = OneLine { regexp: Some(regex("^#Port")), ..one("Port 2") };
    assert_eq!(present(&line, content), (content.to_vec(), "already_present"));
    // It is there, and another that matches says something else further down.
    let line = OneLine { regexp: Some(regex("^Port")), ..one("Port 1") };
    assert_eq!(present(&line, content).0, b"#Port 22\r\nPort 1\r\n\xff\nPort 1");
}

#[test]
fn a_new_line_goes_where_it_was_asked_for() {
    let content = b"[a]\nx\n[b]\nx";
    for (place, first, after) in [
        (Place::Begin, false, &b"new\n[a]\nx\n[b]\nx"[..]),
        (Place::End, false, b"[a]\nx\n[b]\nx\nnew\n"),
        (Place::After(regex("x")), false, b"[a]\nx\n[b]\nx\nnew\n"),
        (Place::After(regex("x")), true, b"[a]\nx\nnew\n[b]\nx"),
        (Place::Before(regex("^\\[")), false, b"[a]\nx\nnew\n[b]\nx"),
        (Place::Before(regex("^\\[")), true, b"new\n[a]\nx\n[b]\nx"),
        (Place::After(regex("nowhere")), false, b"[a]\nx\n[b]\nx\nnew\n"),
        (Place::Before(regex("nowhere")), false, b"[a]\nx\n[b]\nx\nnew\n"),
    ] {
        assert_eq!(present(&OneLine { place, first, ..one("new") }, content).0, after);
    }
}

#[test]
fn groups_of_the_match_stand_in_the_new_line() {
    let line = |text, line| OneLine { regexp: Some(regex(text)), backrefs: true, ..one(line) };
    let edited = present(&line("^(\\w+) = (.*) #old$", "\\1=<\\2>\\\\\\9"), b"key = va\xfflue #old\n");
    assert_eq!(edited, (b"key=<va\xfflue>\\\n".to_vec(), "replaced"));
    assert_eq!(present(&line("nowhere", "\\0"), b"a\n"), (b"a\n".to_vec(), "no_match"));
}

#[test]
fn every_line_that_matches_goes() {
    let absent = |line: &OneLine<'_>| line.absent(b"a\nb\r\na", &fine).unwrap();
    let edited = absent(&one("a"));
    assert_eq!((edited.content, edited.action), (Some(b"b\r\n".to_vec()), "removed"));
    assert_eq!(absent(&OneLine { regexp: Some(regex(".")), ..one("") }).content, Some(Vec::new()));
    assert_eq!(absent(&one("c")).action, "already_absent");
}

fn block(lines: &str) -> Block<'_> {
    let markers = ["# BEGIN x".to_owned(), "# END x".to_owned()];
    Block { markers, lines, first: false, place: Place::End }
}

fn present_block(block: &Block<'_>, content: &str) -> (String, &'static str) {
    let edited = block.present(content.as_bytes(), &fine).unwrap();
    let new = edited.content.unwrap_or_else(|| content.into());
    assert!(block.present(&new, &fine).unwrap().content.is_none(), "a second run changes it");
    (String::from_utf8(new).unwrap(), edited.action)
}

#[test]
fn a_block_is_put_in_replaced_and_taken_out() {
    let (with, action) = present_block(&block("1\n2"), "a\nb");
    assert_eq!((&*with, action), ("a\nb\n# BEGIN x\n1\n2\n# END x\n", "inserted"));
    let (other, action) = present_block(&block("3\n"), &with);
    assert_eq!((&*other, action), ("a\nb\n# BEGIN x\n3\n# END x\n", "replaced"));
    assert_eq!(present_block(&block("3"), &other).1, "already_present");
    let without = block("").absent(other.as_bytes(), &fine).unwrap();
    assert_eq!((without.content, without.action), (Some(b"a\nb\n".to_vec()), "removed"));
    assert_eq!(block("").absent(b"a\n", &fine).unwrap().action, "already_absent");
    let before = Block { place: Place::Before(regex("b")), ..block("1") };
    assert_eq!(present_block(&before, "a\r\nb\r\n").0, "a\r\n# BEGIN x\r\n1\r\n# END x\r\nb\r\n");
    assert_eq!(present_block(&block("1"), "# BEGIN x\n0\n# END x").0, "# BEGIN x\n1\n# END x");
}

#[test]
fn markers_that_are_no_one_pair_are_left_alone() {
    for (content, why) in [
        ("# BEGIN x\n1\n", "line 1: a begin"),
        ("1\n# END x\n", "line 2: an end"),
        ("# END x\n# BEGIN x\n", "line 1: an end"),
        ("# BEGIN x\n# BEGIN x\n# END x\n", "line 2: a second"),
        ("# BEGIN x\n# END x\n# BEGIN x\n# END x\n", "line 3: a second"),
    ] {
        for absent in [false, true] {
            let block = block("1");
            let result = if absent {
                block.absent(content.as_bytes(), &fine)
            } else {
                block.present(content.as_bytes(), &fine)
            };
            let failure = result.err().unwrap();
            assert_eq!(failure.code, ErrorCode::Conflict);
            assert!(failure.message.starts_with(why), "{content:?}: {}", failure.message);
        }
    }
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => "[ab#]{0,3}".prop_map(String::into_bytes),
        1 => Just(b"\xff\xc3".to_vec()),
        1 => Just(b"# BEGIN x".to_vec()),
        1 => Just(b"# END x".to_vec()),
    ];
    let end = prop_oneof![Just(&b"\n"[..]), Just(&b"\r\n"[..])];
    (proptest::collection::vec((line.clone(), end), 0..8), proptest::option::of(line)).prop_map(
        |(lines, last)| {
            let mut content: Vec<u8> =
                lines.into_iter().flat_map(|(line, end)| [&line[..], end].concat()).collect();
            content.extend(last.unwrap_or_default());
            content
        },
    )
}

fn texts(content: &[u8]) -> Vec<&[u8]> {
    Lines::of(content).map(|line| line.text).collect()
}

proptest! {
    #[test]
    fn lines_are_the_whole_file(content in file()) {
        let joined: Vec<u8> = Lines::of(&content).flat_map(|line| [line.text, line.end].concat()).collect();
        prop_assert_eq!(joined, content);
    }

    #[test]
    fn afterwards_the_line_is_there_and_one_line_differs_at_most(
        content in file(), line in "[ab#]{0,3}", expression in proptest::option::of("\\^?#?[ab]\\$?"), first in any::<bool>(),
    ) {
        let asked = OneLine { regexp: expression.as_deref().map(regex), first, ..one(&line) };
        let (new, _) = present(&asked, &content);
        prop_assert!(texts(&new).contains(&line.as_bytes()));
        let (old, new) = (texts(&content), texts(&new));
        let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
        prop_assert!(old.len() - head - tail <= 1 && new.len() - head - tail <= 1);
    }

    #[test]
    fn taking_out_a_block_that_was_put_in_gives_the_file_back(content in file(), lines in "[ab\n]{1,5}", at in 0..4) {
        let place = match at { 0 => Place::Begin, 1 => Place::End, 2 => Place::After(regex("a")), _ => Place::Before(regex("b")) };
        let block = Block { place, ..block(&lines) };
        let Ok(edited) = block.present(&content, &fine) else { return Ok(()) };
        if edited.action == "inserted" {
            let with = edited.content.unwrap();
            prop_assert!(block.present(&with, &fine).unwrap().content.is_none());
            let without = block.absent(&with, &fine).unwrap().content.unwrap();
            let ended = [&content[..], line_end(&content)].concat();
            prop_assert!(without == content || without == ended);
        }
    }
}
