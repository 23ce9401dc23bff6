//! Small texts of the command line: durations, `K=V`, and words quoted as in a shell.

use std::time::Duration;

/// `90`, `90s`, `5m`, `2h`, `1d`: at least one second.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let factor: u64 = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => 1,
    };
    let number =
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    // The largest is far beyond any clock's reach and far below any overflow.
    match number.and_then(|number| number.checked_mul(factor)) {
        Some(seconds @ 1..=4_000_000_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("write seconds, at least 1, or a number with s, m, h or d, such as 90, 5m or 2h".into()),
    }
}

/// `NAME=VALUE`.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !name.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("write NAME=VALUE".into()),
    }
}

/// Takes a line apart as a shell would, with its three ways to quote and nothing else of it.
pub(crate) fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(c),
            (Some(_), '\\') => match chars.next() {
                Some(next @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(next),
                Some(next) => word.get_or_insert_default().extend(['\\', next]),
                None => return Err("it ends in a lone backslash".into()),
            },
            (None, '\\') => match chars.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("it ends in a lone backslash".into()),
            },
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is never closed".into());
    }
    words.extend(word);
    if words.is_empty() { Err("it is empty".into()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        for (text, seconds) in [("1", 1), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400)] {
            assert_eq!(duration(text).unwrap(), Duration::from_secs(seconds));
        }
        for bad in
            ["", "0", "0m", "-1", "+1", "1.5", "s", "1w", "99999999999999999999", "18446744073709551615d"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_have_a_name() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(variable("A=").unwrap(), ("A".into(), String::new()));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }

    #[test]
    fn words_are_taken_apart_as_a_shell_does() {
        let words = split(r#"docker exec  -i 'a b' "c \"d\" \n" e\ f '' "#).unwrap();
        assert_eq!(words, ["docker", "exec", "-i", "a b", r#"c "d" \n"#, "e f", ""]);
        for bad in ["", "  ", "'a", "\"a", "a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
