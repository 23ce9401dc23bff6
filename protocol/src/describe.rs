//! What is wrong with a piece of JSON, said without echoing it: a value may be a password.

/// Names the field and what was expected there. `text` is what was parsed when `error` came.
pub(crate) fn describe(text: &str, error: &serde_json::Error) -> String {
    let full = error.to_string();
    let said = full.rfind(" at line ").map_or(full.as_str(), |at| &full[..at]);
    let echoes = said.starts_with("invalid type: ") || said.starts_with("invalid value: ");
    let said = if echoes { said.rfind("expected ").map_or("wrong type", |at| &said[at..]) } else { said };
    match field_at(text, error.line(), error.column()) {
        Some(field) => format!("{field}: {said}"),
        None => said.to_owned(),
    }
}

/// The name of the innermost field that is open at a place (both count from 1, columns in bytes).
fn field_at(text: &str, line: usize, column: usize) -> Option<String> {
    let before: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let bytes = text.as_bytes();
    // The error stands at the end of the offending value or just after it.
    let end = (before + column).min(bytes.len());
    let mut open: Vec<Option<String>> = Vec::new();
    let mut last_string = None;
    let mut closed: Option<String> = None;
    let mut at = 0;
    while at < end {
        closed = None;
        match bytes[at] {
            b'{' | b'[' => open.push(None),
            b'}' | b']' => {
                // An error may be reported at the bracket or the comma after the value.
                closed = open.pop().flatten();
            }
            b',' => {
                closed = open.last_mut().and_then(Option::take);
            }
            b':' => {
                if let (Some(field), Some(name)) = (open.last_mut(), last_string.take()) {
                    *field = Some(name);
                }
            }
            b'"' => {
                let begin = at + 1;
                at = begin;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let name = text.get(begin..at.min(bytes.len()))?;
                last_string = Some(name.chars().take(40).collect());
            }
            _ => {}
        }
        at += 1;
    }
    let named: Vec<String> = open.into_iter().flatten().chain(closed).collect();
    (!named.is_empty()).then(|| named.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::exec::Exec;

    fn error(params: &str) -> String {
        describe(params, &serde_json::from_str::<Exec>(params).unwrap_err())
    }

    #[test]
    fn the_field_is_named_and_the_value_is_not() {
        assert_eq!(error(r#"{"command":"x","capture_out":"hunter2"}"#), "capture_out: expected a boolean");
        assert_eq!(error(r#"{"command":"x","sudo_password":12345}"#), "sudo_password: expected a string");
        assert_eq!(error(r#"{"args":["a",5],"command":"x"}"#), "args: expected a string");
        assert_eq!(error("{\"limits\":{\n\"nice\":\"x\"}}"), "limits.nice: expected i32");
        assert!(error(r#"{"umask":"9"}"#).starts_with("umask: mode \"9\" is not"));
        assert_eq!(error("[1]"), "expected a string");
        assert!(error(r#"{"command":"#).contains("EOF"));
    }
}
