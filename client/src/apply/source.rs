//! YAML 1.2 (JSON too) to a tree in which everything knows its place. What YAML readers disagree about is refused
//! instead of guessed: numbers with leading zeros, names given twice, tags, merge keys. Knows nothing of steps.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::Number;

use super::problem::{Position, Problem, ProblemKind};

/// Longest file, in bytes.
const MOST_BYTES: u64 = 16 * 1024 * 1024;
/// Most values of a file, those that aliases repeat counted each time: a few lines of YAML can stand for billions.
const MOST_NODES: usize = 200_000;
/// Bytes of text that aliases may repeat.
const MOST_REPEATED: usize = 16 * 1024 * 1024;
/// Deepest nesting.
const DEEPEST: usize = 64;

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<(Name, Node)>),
}

/// The name of a member of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) at: Position,
    pub(super) text: String,
}

impl Value {
    /// In words, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    pub(super) fn problem(&self, kind: ProblemKind, message: impl Into<String>) -> Problem {
        Problem::new(&self.at, kind, message)
    }

    /// A value of another type than what was expected.
    pub(super) fn expected(&self, what: &str) -> Problem {
        self.problem(ProblemKind::Value, format!("expected {what}, found {}", self.value.kind()))
    }

    pub(super) fn text(&self) -> Result<&str, Problem> {
        match &self.value {
            Value::Text(text) => Ok(text),
            Value::Number(_) | Value::Bool(_) => Err(quoted(self.expected("text"))),
            _ => Err(self.expected("text")),
        }
    }

    pub(super) fn map(&self) -> Result<&[(Name, Node)], Problem> {
        match &self.value {
            Value::Map(members) => Ok(members),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// Every text in it.
    pub(super) fn each_text<'n>(&'n self, each: &mut dyn FnMut(&'n Node, &'n str)) {
        match &self.value {
            Value::Text(text) => each(self, text),
            Value::List(list) => list.iter().for_each(|node| node.each_text(each)),
            Value::Map(members) => members.iter().for_each(|(_, node)| node.each_text(each)),
            _ => {}
        }
    }

    /// The same without places.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(list) => list.iter().map(Self::to_json).collect(),
            Value::Map(members) => {
                members.iter().map(|(name, node)| (name.text.clone(), node.to_json())).collect()
            }
        }
    }

    /// A tree that stands at one place as a whole.
    pub(super) fn from_json(json: serde_json::Value, at: &Position) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => Value::Number(number),
            Json::String(text) => Value::Text(text),
            Json::Array(list) => {
                Value::List(list.into_iter().map(|item| Self::from_json(item, at)).collect())
            }
            Json::Object(members) => Value::Map(
                members
                    .into_iter()
                    .map(|(text, value)| (Name { at: at.clone(), text }, Self::from_json(value, at)))
                    .collect(),
            ),
        };
        Self { at: at.clone(), value }
    }
}

/// What to do where something else than text stands.
pub(super) fn quoted(mut problem: Problem) -> Problem {
    problem.message.push_str("; put it in quotes");
    problem
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Node, Problem> {
    let at = Position { file: path.into(), line: 1, column: 1 };
    let wrong = |why: String| Problem::nowhere(ProblemKind::File, format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    // What is no regular file may have no end.
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("more than the {MOST_BYTES} bytes that a file of steps may have")));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text".to_owned()))?;
    parse(&text, &at.file)
}

/// Reads text that stands in `file`.
pub(super) fn parse(text: &str, file: &Arc<Path>) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let joined = join_surrogates(text);
    let reader = Reader {
        events: Parser::new_from_str(&joined),
        file: Arc::clone(file),
        anchors: HashMap::new(),
        nodes: 0,
        repeated: 0,
    };
    reader.document()
}

/// JSON writes characters beyond U+FFFF as two escapes (RFC 8259, chapter 7), which YAML does not know. The escape of YAML
/// takes their place.
fn join_surrogates(text: &str) -> Cow<'_, str> {
    if !text.trim_start().starts_with(['{', '[']) || !text.contains("\\u") {
        return Cow::Borrowed(text);
    }
    let escape =
        |text: &str| text.strip_prefix("\\u")?.get(..4).and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, after) = rest.split_at(at);
        joined.push_str(before);
        let pair = escape(after).zip(after.get(6..).and_then(escape));
        let character = pair.and_then(|(high, low)| char::decode_utf16([high, low]).next()?.ok());
        let taken = match character {
            Some(character) if u32::from(character) > 0xffff => {
                joined.push_str(&format!("\\U{:08x}", u32::from(character)));
                12
            }
            // A backslash and what it escapes.
            _ => {
                let taken = 1 + after[1..].chars().next().map_or(0, char::len_utf8);
                joined.push_str(&after[..taken]);
                taken
            }
        };
        rest = &after[taken..];
    }
    joined.push_str(rest);
    Cow::Owned(joined)
}

struct Reader<'t> {
    events: Parser<'t, StrInput<'t>>,
    file: Arc<Path>,
    /// What aliases may stand for, with its number of values and bytes of text.
    anchors: HashMap<usize, (Node, usize, usize)>,
    nodes: usize,
    repeated: usize,
}

impl<'t> Reader<'t> {
    fn document(mut self) -> Result<Node, Problem> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::StreamEnd | Event::DocumentEnd, at) => {
                    return Err(Problem::new(&at, ProblemKind::Syntax, "there is nothing in it"));
                }
                (event, at) => {
                    let node = self.node(event, at, 0)?;
                    return self.end().map(|()| node);
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Problem> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, at) => {
                    let message = "a second document begins here; a file holds one";
                    return Err(Problem::new(&at, ProblemKind::Syntax, message));
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Position), Problem> {
        match self.events.next_event() {
            Some(Ok((event, span))) => {
                let at = self.position(&span);
                Ok((event, at))
            }
            Some(Err(error)) => {
                let at = self.position(&Span::empty(*error.marker()));
                let hint = hint(error.info());
                Err(Problem::new(&at, ProblemKind::Syntax, format!("not YAML: {}{hint}", error.info())))
            }
            None => Ok((Event::StreamEnd, self.position(&Span::default()))),
        }
    }

    fn position(&self, span: &Span) -> Position {
        let start = span.start;
        Position { file: Arc::clone(&self.file), line: start.line().max(1), column: start.col() + 1 }
    }

    fn node(&mut self, event: Event<'t>, at: Position, depth: usize) -> Result<Node, Problem> {
        let syntax = |message: &str| Problem::new(&at, ProblemKind::Syntax, message);
        self.nodes += 1;
        if depth > DEEPEST {
            return Err(syntax("nested too deeply"));
        }
        let (before, tag, anchor) = match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(anchor, tag)
            | Event::MappingStart(anchor, tag) => (self.nodes, tag, *anchor),
            _ => (self.nodes, &None, 0),
        };
        if tag.is_some() {
            return Err(syntax("tags (`!…`) are not taken"));
        }
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => {
                plain(text.into_owned()).map_err(|message| syntax(&message))?
            }
            Event::Scalar(text, ..) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Value::List(list),
                        (event, at) => list.push(self.node(event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => self.map(depth)?,
            Event::Alias(anchor) => {
                let Some((node, nodes, bytes)) = self.anchors.get(&anchor) else {
                    return Err(syntax("an alias of what it stands in"));
                };
                self.nodes += nodes;
                self.repeated += bytes;
                if self.nodes > MOST_NODES || self.repeated > MOST_REPEATED {
                    return Err(syntax("aliases repeat too much"));
                }
                node.value.clone()
            }
            _ => return Err(syntax("not YAML: a value is missing")),
        };
        if self.nodes > MOST_NODES {
            return Err(syntax("more than 200000 values"));
        }
        let node = Node { at, value };
        if anchor != 0 {
            let mut bytes = 0;
            node.each_text(&mut |_, text| bytes += text.len());
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1, bytes));
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut members: Vec<(Name, Node)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            let text = match event {
                Event::MappingEnd => return Ok(Value::Map(members)),
                Event::Scalar(text, ..) => text.into_owned(),
                Event::MappingStart(..) => {
                    let message =
                        "expected a name and `:`, found another mapping; a template needs quotes: '{{ … }}'";
                    return Err(Problem::new(&at, ProblemKind::Syntax, message));
                }
                _ => return Err(Problem::new(&at, ProblemKind::Syntax, "expected a name and `:`")),
            };
            if text == "<<" {
                let message = "merge keys (`<<`) are not taken";
                return Err(Problem::new(&at, ProblemKind::Syntax, message));
            }
            if let Some(first) = places.insert(text.clone(), members.len()) {
                let line = members[first].0.at.line;
                let message = format!("{text} is given twice, first on line {line}");
                return Err(Problem::new(&at, ProblemKind::Twice, message));
            }
            let (event, place) = self.next()?;
            let value = self.node(event, place, depth + 1)?;
            members.push((Name { at, text }, value));
        }
    }
}

/// What to do about the slips that people make most.
fn hint(said: &str) -> &'static str {
    if said.contains("mapping values are not allowed") {
        "; text with `: ` in it needs quotes, and all fields of a mapping begin in the same column"
    } else if said.contains("tab") {
        "; YAML is indented by spaces"
    } else if said.contains("unexpected character") {
        "; put text that begins with it in quotes"
    } else {
        ""
    }
}

/// The value of a scalar without quotes, by the core schema of YAML 1.2 (chapter 10.3).
fn plain(text: String) -> Result<Value, String> {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let based = |prefix: &str, base: u32| {
        digits
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(base)))
    };
    if whole && digits.len() > 1 && digits.starts_with('0') || based("0o", 8) || based("0x", 16) {
        return Err("a number that versions of YAML read differently; put it in quotes for text, or write it in decimal".into());
    }
    let unsigned = text.strip_prefix('+').unwrap_or(&text);
    if whole {
        let number =
            unsigned.parse::<i64>().map(Number::from).or_else(|_| unsigned.parse::<u64>().map(Number::from));
        return number
            .map(Value::Number)
            .map_err(|_| "a number that is too large; put it in quotes for text".into());
    }
    // f64 would also take names such as `inf`.
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|byte| byte.is_ascii_digit())
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'-' | b'+'));
    match unsigned.parse::<f64>().ok().filter(|_| numeric).and_then(Number::from_f64) {
        Some(number) => Ok(Value::Number(number)),
        None => Ok(Value::Text(text)),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
