//! A line of ssh_config(5) taken apart: the keyword, the rest as it stands, and the rest as arguments.

/// One line that is neither blank nor a comment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// As written.
    pub(super) keyword: String,
    /// What follows the keyword, for the keywords that take a command as it stands.
    pub(super) rest: String,
    /// The same, split and unquoted, without a comment.
    pub(super) arguments: Vec<String>,
}

impl Line {
    /// `None` for a blank line or a comment. Quoting is that of ssh_config(5): double or single quotes around an
    /// argument or a part of it; a backslash before a quote, a backslash, or (outside quotes) a space.
    ///
    /// # Errors
    /// A keyword alone, a quote that is never closed, a keyword with a quote in it, or text that is not UTF-8.
    pub(super) fn parse(line: &str) -> Result<Option<Self>, String> {
        let line =
            line.trim_end_matches([' ', '\t', '\r', '\n', '\x0c']).trim_start_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        if let Some(bad) = line.chars().find(|c| (c.is_control() && *c != '\t') || *c == '\u{fffd}') {
            return Err(format!("it holds {bad:?}, which is a control character or not UTF-8"));
        }
        let end = line.find([' ', '\t', '=', '"']).unwrap_or(line.len());
        let (keyword, rest) = line.split_at(end);
        if keyword.is_empty() {
            return Err("no keyword at the beginning of the line".into());
        }
        if rest.starts_with('"') {
            return Err(format!("a quote stands right behind {keyword}; put a space between"));
        }
        let rest = rest.trim_start_matches([' ', '\t']);
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Err(format!("nothing follows {keyword}"));
        }
        let arguments = split_arguments(rest)?;
        Ok(Some(Self { keyword: keyword.to_owned(), rest: rest.to_owned(), arguments }))
    }
}

fn split_arguments(text: &str) -> Result<Vec<String>, String> {
    let mut arguments = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(arguments),
            Some(_) => {}
        }
        let mut argument = String::new();
        let mut quote = None;
        while let Some(c) = chars.peek().copied() {
            if quote.is_none() && matches!(c, ' ' | '\t') {
                break;
            }
            chars.next();
            match c {
                '\\' => match chars.peek() {
                    Some('"' | '\'' | '\\') => argument.extend(chars.next()),
                    Some(' ') if quote.is_none() => argument.extend(chars.next()),
                    _ => argument.push('\\'),
                },
                '"' | '\'' if quote == Some(c) => quote = None,
                '"' | '\'' if quote.is_none() => quote = Some(c),
                c => argument.push(c),
            }
        }
        if quote.is_some() {
            return Err("a quote is never closed".into());
        }
        arguments.push(argument);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<String> {
        Line::parse(line).unwrap().unwrap().arguments
    }

    #[test]
    fn blank_lines_and_comments_are_none() {
        for line in ["", "   ", "\t\r", "# Host x", "   # x", "\x0c"] {
            assert_eq!(Line::parse(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn a_keyword_ends_at_a_space_or_an_equals_sign() {
        for line in ["Port 22", "Port=22", "Port = 22", "Port\t=\t22\r\n", "  Port 22 # comment", "Port '22'"]
        {
            assert_eq!(arguments(line), ["22"], "{line:?}");
        }
        assert_eq!(arguments("Port == 22"), ["=", "22"], "only one equals sign belongs to the keyword");
    }

    #[test]
    fn quotes_and_backslashes_keep_arguments_together() {
        assert_eq!(
            arguments(r#"K "a b"c 'd "e' f\ g \"h "\\" \n"#),
            ["a bc", "d \"e", "f g", "\"h", "\\", "\\n"]
        );
        assert_eq!(arguments(r#"K "" a"#), ["", "a"]);
        assert_eq!(arguments("K a#b #c"), ["a#b"]);
    }

    #[test]
    fn a_command_keeps_its_quotes_and_hashes() {
        let line = Line::parse("ProxyCommand = nc \"%h\" %p # x").unwrap().unwrap();
        assert_eq!(line.rest, "nc \"%h\" %p # x");
    }

    #[test]
    fn what_cannot_be_read_for_sure_is_refused() {
        for line in
            ["Port", "Port =", "= 22", "Host \"a", "Host 'a\"", "User\"x\"", "Host a\0b", "User \u{fffd}"]
        {
            assert!(Line::parse(line).is_err(), "{line:?}");
        }
    }
}
