use super::*;
use serde_json::json;

fn read(text: &str) -> Result<Node, String> {
    parse(text, &Arc::from(Path::new("f.yaml"))).map_err(|problem| problem.to_string())
}

fn value(text: &str) -> serde_json::Value {
    read(text).unwrap().to_json()
}

#[test]
fn scalars_are_those_of_the_core_schema_and_the_rest_is_text() {
    let text = "[a, 'b', \"c\\n\", 1, -2, +3, 1.5, 1e3, .5, true, False, null, ~, yes, on, 1.2.3, 10:20, 2026-01-01, '0644', inf, .nan, 1-2, e5, 18446744073709551615]";
    let expected = json!([
        "a",
        "b",
        "c\n",
        1,
        -2,
        3,
        1.5,
        1000.0,
        0.5,
        true,
        false,
        null,
        null,
        "yes",
        "on",
        "1.2.3",
        "10:20",
        "2026-01-01",
        "0644",
        "inf",
        ".nan",
        "1-2",
        "e5",
        u64::MAX
    ]);
    assert_eq!(value(text), expected);
    assert_eq!(value("a: |\n  x\n   y\nb: >-\n  one\n  two\n"), json!({"a": "x\n y\n", "b": "one two"}));
    assert_eq!(value("a:\nb: ''\n"), json!({"a": null, "b": ""}));
}

#[test]
fn json_is_read_as_it_is() {
    let text = "{\"a\": [1, 2.5e-3, -0.0, {\"b\": null, \"\": \"x\\/\\u00e9\\t\\\"\"}],\n\t\"c\": \"1\", \"d\":true}";
    assert_eq!(value(text), serde_json::from_str::<serde_json::Value>(text).unwrap());
}

#[test]
fn characters_that_json_writes_as_two_are_one() {
    assert_eq!(value(r#" {"a": "\ud83d\uDE00!\\ud83d\\ude00 \u00e9"}"#), json!({"a": "😀!\\ud83d\\ude00 é"}));
    assert!(read(r#"{"a": "\ud83d"}"#).is_err());
}

#[test]
fn a_file_of_another_system_is_read_too() {
    assert_eq!(value("\u{feff}a: 1\r\nb:\r\n  - x\r\n"), json!({"a": 1, "b": ["x"]}));
    assert_eq!(value("%YAML 1.2\n---\na: 1\n...\n"), json!({"a": 1}));
}

#[test]
fn everything_knows_its_place() {
    let node = read("# first\na:\n  - b: 1\n    cé: 'x'\n").unwrap();
    let (name, list) = &node.map().unwrap()[0];
    assert_eq!(name.at.to_string(), "f.yaml:2:1");
    let Value::List(items) = &list.value else { panic!() };
    let (name, value) = &items[0].map().unwrap()[1];
    assert_eq!((name.at.to_string(), value.at.to_string()), ("f.yaml:4:5".into(), "f.yaml:4:9".into()));
}

#[test]
fn what_readers_of_yaml_disagree_about_is_refused_at_its_place() {
    for (text, error) in [
        ("a: 0644", "f.yaml:1:4: a number that versions of YAML read differently"),
        ("- 0o644", "f.yaml:1:3: a number that versions"),
        ("- 0x1F", "f.yaml:1:3: a number that versions"),
        ("- 99999999999999999999", "f.yaml:1:3: a number that is too large"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: a is given twice, first on line 1"),
        ("x: {a: 1, a: 1}", "f.yaml:1:11: a is given twice"),
        ("a: !!str 1", "tags"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "f.yaml:3:3: merge keys"),
        ("? [a]\n: 1", "expected a name"),
        ("a: 1\n---\nb: 2", "a second document begins here"),
        ("", "there is nothing in it"),
        ("# only a comment\n", "there is nothing in it"),
        ("a: [1, 2", "not YAML"),
        ("a: 'x", "not YAML"),
        ("a:\n\t- b", "not YAML"),
        ("a: *nowhere", "not YAML"),
    ] {
        let said = read(text).map(|node| node.to_json().to_string()).unwrap_err();
        assert!(said.contains(error), "{text:?}: {said}");
    }
}

#[test]
fn aliases_repeat_what_they_name_within_limits() {
    assert_eq!(value("a: &x [1, {b: 2}]\nc: *x\n"), json!({"a": [1, {"b": 2}], "c": [1, {"b": 2}]}));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    assert!(read(&bomb).unwrap_err().contains("aliases repeat too much"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(100));
    assert!(read(&long).unwrap_err().contains("aliases repeat too much"));
    assert!(read("a: &a [*a]").is_err());
}

#[test]
fn the_slips_that_are_made_most_are_told_with_what_to_do() {
    for (text, hint) in [
        ("- path: {{ x }}\n", "a template needs quotes"),
        ("- path: {{ x }}/y\n", "a template needs quotes"),
        ("- command: echo a: b\n", "needs quotes"),
        ("- id: a\n   type: b\n", "begin in the same column"),
        ("- id: a\n\ttype: b\n", "indented by spaces"),
        ("- command: %x\n", "in quotes"),
        ("- command: @x\n", "in quotes"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let error = super::read(Path::new("/dev/zero")).unwrap_err();
    assert!(error.message.contains("more than the 16777216 bytes"), "{error}");
}

#[test]
fn nesting_has_a_limit() {
    assert!(read(&"[".repeat(100)).unwrap_err().contains("too deeply"));
    assert!(read(&"[".repeat(100_000)).is_err());
    let blocks: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(read(&blocks).unwrap_err().contains("too deeply"));
}

mod whatever_is_in_a_file {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_tree_or_an_error(text in "[-a-c0-9:{}\\[\\]'\"&*|>#,? \n~!%@`]{0,60}") {
            let _ = read(&text);
        }

        #[test]
        fn what_json_is_comes_back(text in "\\PC{0,30}", number in any::<i64>(), flag in any::<bool>()) {
            // YAML has no surrogate pairs; serde_json writes none.
            let json = json!({"a": [text, number, flag, null], "b": {"c": text}});
            prop_assert_eq!(value(&json.to_string()), json);
        }
    }
}
