//! Regular expressions for lines of files: a small dialect that every larger one understands, in time linear in the line.
//!
//! An expression becomes a program for a machine that keeps all its alternatives side by side (Thompson's construction as Pike
//! runs it: Cox, "Regular Expression Matching: the Virtual Machine Approach"), so that no text can make it slow. The grammar is in
//! docs/COMMANDS.md; what is outside of it is refused, never taken for something else. Knows text alone.

use std::iter::Peekable;
use std::str::Chars;

use crate::failure::Failure;

/// Longest expression, in bytes.
const LONGEST: usize = 4096;

/// Most steps of a program: what a line costs is at most this for each of its characters.
const MOST_STEPS: usize = 2000;

/// Deepest nesting of groups.
const DEEPEST: usize = 32;

/// Places noted of a match: where the whole and each of the first nine groups begin and end.
const PLACES: usize = 20;

/// Characters between two looks at whether to go on.
const LOOK_AGAIN: usize = 4096;

/// Where the match and the groups begin and end, in bytes.
pub(crate) type Places = [Option<usize>; PLACES];

/// One step. Jumps are relative to the step itself, so that a piece of a program can be repeated.
#[derive(Clone)]
enum Step {
    /// A character of any of these ranges; what is no UTF-8 has numbers from [`NO_CHARACTER`].
    Character(Vec<(u32, u32)>),
    /// Both ways, the first preferred.
    Either(i32, i32),
    Jump(i32),
    Note(usize),
    Assert(Assertion),
    Matched,
}

#[derive(Clone, Copy)]
enum Assertion {
    Begin,
    End,
    /// Whether it is one.
    Boundary(bool),
}

/// The number of the byte 0 that is no part of a character; after every character.
const NO_CHARACTER: u32 = 0x11_0000;

/// The largest number of all.
const LAST: u32 = NO_CHARACTER + 0xff;

const DIGIT: &[(u32, u32)] = &[(0x30, 0x39)];
const SPACE: &[(u32, u32)] = &[(9, 13), (32, 32)];
const WORD: &[(u32, u32)] = &[(0x30, 0x39), (0x41, 0x5a), (0x5f, 0x5f), (0x61, 0x7a)];

/// The classes of regex(7), in ASCII.
const NAMED: &[(&str, &[(u32, u32)])] = &[
    ("alnum", &[(0x30, 0x39), (0x41, 0x5a), (0x61, 0x7a)]),
    ("alpha", &[(0x41, 0x5a), (0x61, 0x7a)]),
    ("blank", &[(9, 9), (32, 32)]),
    ("cntrl", &[(0, 31), (127, 127)]),
    ("digit", DIGIT),
    ("graph", &[(33, 126)]),
    ("lower", &[(0x61, 0x7a)]),
    ("print", &[(32, 126)]),
    ("punct", &[(33, 47), (58, 64), (91, 96), (123, 126)]),
    ("space", SPACE),
    ("upper", &[(0x41, 0x5a)]),
    ("xdigit", &[(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)]),
];

/// An expression that has been understood.
pub(crate) struct Regex {
    steps: Vec<Step>,
    groups: usize,
}

impl Regex {
    /// # Errors
    /// `INVALID_PARAMS` naming `field` for what is outside the grammar.
    pub(crate) fn new(field: &str, text: &str) -> Result<Self, Failure> {
        let (text, fold) = text.strip_prefix("(?i)").map_or((text, false), |rest| (rest, true));
        let mut parser = Parser { rest: text.chars().peekable(), fold, groups: 0, depth: 0 };
        let parsed = match text.len() <= LONGEST {
            true => parser.whole(),
            false => Err("is longer than 4096 bytes"),
        };
        match parsed {
            Ok(steps) => Ok(Self { steps, groups: parser.groups }),
            Err(why) => Err(Failure::params([field, ": ", why].concat())),
        }
    }

    /// How many groups it has.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// The leftmost match in a line without its end; of several there the one that comes first in the expression. `go_on` is asked from time to
    /// time.
    pub(crate) fn find(
        &self,
        line: &[u8],
        go_on: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Option<Places>, Failure> {
        let seen = vec![0; self.steps.len()];
        let mut search = Search { steps: &self.steps, length: line.len(), seen, ..Search::default() };
        let mut before = None;
        let mut count = 0;
        for_each_character(line, &mut |at, character| {
            count += 1;
            if count % LOOK_AGAIN == 0 {
                go_on()?;
            }
            let more = search.character(at, before, Some(character));
            before = Some(character);
            Ok(more)
        })?;
        search.character(line.len(), before, None);
        Ok(search.found)
    }
}

/// Calls `each` with the place and number of every character and of every byte that is part of none, as long as it says true; at last
/// nothing is said.
fn for_each_character(
    line: &[u8],
    each: &mut dyn FnMut(usize, u32) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut at = 0;
    for chunk in line.utf8_chunks() {
        for character in chunk.valid().chars() {
            if !each(at, character.into())? {
                return Ok(());
            }
            at += character.len_utf8();
        }
        for byte in chunk.invalid() {
            if !each(at, NO_CHARACTER + u32::from(*byte))? {
                return Ok(());
            }
            at += 1;
        }
    }
    Ok(())
}

fn is_word(character: Option<u32>) -> bool {
    character.is_some_and(|c| within(WORD, c))
}

fn within(ranges: &[(u32, u32)], character: u32) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

/// The machine in the middle of a line.
#[derive(Default)]
struct Search<'a> {
    steps: &'a [Step],
    length: usize,
    /// Where the alternatives stand that are alive, the preferred first, and what each has noted.
    alive: Vec<(usize, Places)>,
    /// Those of the next character.
    next: Vec<(usize, Places)>,
    /// Steps that are still to be followed at this character.
    waiting: Vec<(usize, Places)>,
    /// At which character each step was last come to, counted from 1.
    seen: Vec<usize>,
    found: Option<Places>,
}

impl Search<'_> {
    /// Goes over one character, or over the end; false when nothing can come of the rest.
    fn character(&mut self, at: usize, before: Option<u32>, character: Option<u32>) -> bool {
        // A match may begin here, unless one began further left.
        if self.found.is_none() {
            self.alive.push((0, [None; PLACES]));
        }
        let mut alive = std::mem::take(&mut self.alive);
        for alternative in alive.drain(..) {
            self.waiting.push(alternative);
            if self.follow(at, before, character) {
                // The alternatives behind it are worse.
                break;
            }
        }
        // The emptied one takes those of the character after the next.
        self.alive = std::mem::replace(&mut self.next, alive);
        self.found.is_none() || !self.alive.is_empty()
    }

    /// Follows what waits up to the steps that take a character; whether one came to the end of the program.
    fn follow(&mut self, at: usize, before: Option<u32>, character: Option<u32>) -> bool {
        while let Some((step, mut places)) = self.waiting.pop() {
            if std::mem::replace(&mut self.seen[step], at + 1) == at + 1 {
                continue;
            }
            let to = |offset: i32| step.wrapping_add_signed(offset as isize);
            match &self.steps[step] {
                Step::Character(ranges) => {
                    if character.is_some_and(|c| within(ranges, c)) {
                        self.next.push((step + 1, places));
                    }
                }
                Step::Either(first, second) => {
                    self.waiting.push((to(*second), places));
                    self.waiting.push((to(*first), places));
                }
                Step::Jump(offset) => self.waiting.push((to(*offset), places)),
                Step::Note(place) => {
                    places[*place] = Some(at);
                    self.waiting.push((step + 1, places));
                }
                Step::Assert(assertion) => {
                    let holds = match assertion {
                        Assertion::Begin => at == 0,
                        Assertion::End => at == self.length,
                        Assertion::Boundary(wanted) => (is_word(before) != is_word(character)) == *wanted,
                    };
                    if holds {
                        self.waiting.push((step + 1, places));
                    }
                }
                Step::Matched => {
                    self.found = Some(places);
                    self.waiting.clear();
                    return true;
                }
            }
        }
        false
    }
}

/// A piece of a program, and whether it can match nothing.
type Piece = (Vec<Step>, bool);

type Parsed<T> = Result<T, &'static str>;

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    /// Whether ASCII letters are taken in either case.
    fold: bool,
    groups: usize,
    depth: usize,
}

impl Parser<'_> {
    fn whole(&mut self) -> Parsed<Vec<Step>> {
        let (steps, _) = self.alternatives()?;
        if self.rest.next().is_some() {
            return Err("has a ) too many; a literal one is written \\)");
        }
        let mut whole = noted(0, steps);
        whole.push(Step::Matched);
        Ok(whole)
    }

    fn alternatives(&mut self) -> Parsed<Piece> {
        let mut all = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            all.push(self.sequence()?);
        }
        let (mut steps, mut empty) = all.pop().unwrap_or_default();
        while let Some((first, first_empty)) = all.pop() {
            let mut both = vec![Step::Either(1, first.len() as i32 + 2)];
            both.extend(first);
            both.push(Step::Jump(steps.len() as i32 + 1));
            both.append(&mut steps);
            (steps, empty) = bounded((both, empty || first_empty))?;
        }
        Ok((steps, empty))
    }

    fn sequence(&mut self) -> Parsed<Piece> {
        let mut steps = Vec::new();
        let mut empty = true;
        while let Some(next) = self.rest.next_if(|next| !matches!(next, '|' | ')')) {
            let atom = self.atom(next)?;
            let (piece, piece_empty) = self.repeated(atom)?;
            steps.extend(piece);
            empty &= piece_empty;
            (steps, empty) = bounded((steps, empty))?;
        }
        Ok((steps, empty))
    }

    fn atom(&mut self, first: char) -> Parsed<Piece> {
        let assertion = |assertion| Ok((vec![Step::Assert(assertion)], true));
        let ranges = match first {
            '(' => return self.group(),
            '^' => return assertion(Assertion::Begin),
            '$' => return assertion(Assertion::End),
            '*' | '+' | '?' | '{' => {
                return Err("has one of * + ? { with nothing before it to repeat; a literal one needs a \\");
            }
            '[' => self.class()?,
            '.' => vec![(0, LAST)],
            '\\' => match self.rest.next() {
                Some('b') => return assertion(Assertion::Boundary(true)),
                Some('B') => return assertion(Assertion::Boundary(false)),
                next => self.escaped(next)?,
            },
            literal => self.literal(literal.into())?,
        };
        Ok((vec![Step::Character(ranges)], false))
    }

    fn group(&mut self) -> Parsed<Piece> {
        let mut number = None;
        if self.rest.next_if_eq(&'?').is_some() {
            if self.rest.next() != Some(':') {
                return Err("has a (? that is no (?: group; (?i) may stand at the beginning alone");
            }
        } else {
            self.groups += 1;
            number = Some(self.groups).filter(|number| number * 2 < PLACES);
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("has groups more than 32 deep");
        }
        let (steps, empty) = self.alternatives()?;
        self.depth -= 1;
        if self.rest.next() != Some(')') {
            return Err("has a ( without its )");
        }
        Ok((if let Some(number) = number { noted(number, steps) } else { steps }, empty))
    }

    fn repeated(&mut self, (steps, empty): Piece) -> Parsed<Piece> {
        let (least, most) = match self.rest.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.rest.next();
                self.counts()?
            }
            _ => return Ok((steps, empty)),
        };
        // Of counts the } is left.
        self.rest.next();
        let lazy = self.rest.next_if_eq(&'?').is_some();
        if matches!(self.rest.peek(), Some('*' | '+' | '?' | '{')) {
            return Err("repeats what is repeated already; put it into (?:)");
        }
        let copies = most.unwrap_or(least + 1).max(1);
        if copies.saturating_mul(steps.len() + 2) > MOST_STEPS {
            return Err(TOO_LARGE);
        }
        let either = |on: i32, over: i32| if lazy { Step::Either(over, on) } else { Step::Either(on, over) };
        let length = steps.len() as i32;
        let mut all = Vec::new();
        for _ in 0..least {
            all.extend_from_slice(&steps);
        }
        match most {
            // What can be nothing is (x+)?: in a plain loop the second round would be skipped, and with it what is noted.
            None if least == 0 && empty => {
                all.push(either(1, length + 2));
                all.extend(steps);
                all.push(either(-length, 1));
            }
            None if least == 0 => {
                all.push(either(1, length + 2));
                all.extend(steps);
                all.push(Step::Jump(-length - 1));
            }
            None => all.push(either(-length, 1)),
            Some(most) => {
                // Each of the rest may be the last.
                let left = most - least;
                for done in 0..left {
                    all.push(either(1, (left - done) as i32 * (length + 1)));
                    all.extend_from_slice(&steps);
                }
            }
        }
        bounded((all, empty || least == 0))
    }

    /// What is in braces, up to the closing one.
    fn counts(&mut self) -> Parsed<(usize, Option<usize>)> {
        let least = self.number()?;
        let most = match self.rest.next_if_eq(&',') {
            None => least,
            Some(_) if self.rest.peek() == Some(&'}') => None,
            Some(_) => self.number()?,
        };
        match (least, self.rest.peek()) {
            (Some(least), Some('}')) if most.is_none_or(|most| most >= least) => Ok((least, most)),
            _ => Err("has a { that is no {N}, {N,} or {N,M}; a literal one is written \\{"),
        }
    }

    fn number(&mut self) -> Parsed<Option<usize>> {
        let mut number = None;
        while let Some(digit) = self.rest.peek().and_then(|next| next.to_digit(10)) {
            self.rest.next();
            number = Some(number.unwrap_or(0) * 10 + digit as usize).filter(|number| *number <= MOST_STEPS);
            if number.is_none() {
                return Err(TOO_LARGE);
            }
        }
        Ok(number)
    }

    /// The rest of a class in brackets.
    fn class(&mut self) -> Parsed<Vec<(u32, u32)>> {
        const UNENDED: &str = "has a [ without its ]; a literal [ is written \\[, also in brackets";
        let inverted = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut first = true;
        loop {
            let single = match self.rest.next().ok_or(UNENDED)? {
                ']' if !first => break,
                '[' if self.rest.peek() == Some(&':') => {
                    let rest: String = self.rest.clone().skip(1).take(8).collect();
                    let (name, _) = rest.split_once(":]").ok_or(UNENDED)?;
                    let (_, class) = NAMED.iter().find(|(known, _)| *known == name).ok_or(
                        "has a class that is none of [:alnum:] [:alpha:] [:blank:] [:cntrl:] [:digit:] [:graph:] [:lower:] [:print:] [:punct:] [:space:] [:upper:] [:xdigit:]",
                    )?;
                    ranges.extend_from_slice(class);
                    // The name, and the three characters around it that are left.
                    self.rest.nth(name.len() + 2);
                    None
                }
                '[' => return Err(UNENDED),
                '\\' => {
                    let next = self.rest.next();
                    let escaped = class_of(next);
                    ranges.extend_from_slice(&escaped.clone().unwrap_or_default());
                    if escaped.is_some() { None } else { Some(escape(next)?) }
                }
                literal => Some(literal),
            };
            first = false;
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|next| next != ']');
            let Some(begin) = single else {
                if is_range {
                    return Err("has a range in brackets whose ends are no single characters");
                }
                continue;
            };
            let mut end = begin;
            if is_range {
                self.rest.next();
                end = match self.rest.next() {
                    Some('\\') => {
                        let next = self.rest.next();
                        escape(next)?
                    }
                    Some('[') | None => return Err(UNENDED),
                    Some(literal) => literal,
                };
                if end < begin {
                    return Err("has a range in brackets that ends before it begins");
                }
            }
            ranges.push((begin.into(), end.into()));
        }
        if self.fold {
            ranges = folded(ranges);
        }
        Ok(if inverted { outside(ranges) } else { ranges })
    }

    fn escaped(&mut self, next: Option<char>) -> Parsed<Vec<(u32, u32)>> {
        match class_of(next) {
            Some(ranges) => Ok(ranges),
            None => self.literal(escape(next)?.into()),
        }
    }

    fn literal(&self, character: u32) -> Parsed<Vec<(u32, u32)>> {
        let one = vec![(character, character)];
        Ok(if self.fold { folded(one) } else { one })
    }
}

const TOO_LARGE: &str = "is too large: with its repetitions written out it has more than 2000 steps";

fn bounded(piece: Piece) -> Parsed<Piece> {
    if piece.0.len() > MOST_STEPS { Err(TOO_LARGE) } else { Ok(piece) }
}

fn noted(number: usize, steps: Vec<Step>) -> Vec<Step> {
    let mut all = vec![Step::Note(number * 2)];
    all.extend(steps);
    all.push(Step::Note(number * 2 + 1));
    all
}

/// What stands for several characters behind a backslash.
fn class_of(next: Option<char>) -> Option<Vec<(u32, u32)>> {
    let next = next?;
    let ranges = match next.to_ascii_lowercase() {
        'd' => DIGIT,
        's' => SPACE,
        'w' => WORD,
        _ => return None,
    }
    .to_vec();
    Some(if next.is_ascii_uppercase() { outside(ranges) } else { ranges })
}

/// What stands for one character behind a backslash.
fn escape(next: Option<char>) -> Parsed<char> {
    match next {
        Some('t') => Ok('\t'),
        Some(literal) if literal.is_ascii_punctuation() || literal == ' ' => Ok(literal),
        _ => Err(
            "has a \\ before something that needs none: behind it may stand d D s S w W b B t and punctuation",
        ),
    }
}

/// Everything that is in none of the ranges.
fn outside(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut others = Vec::new();
    let mut next = 0;
    for (first, last) in ranges {
        if next < first {
            others.push((next, first - 1));
        }
        next = next.max(last + 1);
    }
    others.push((next, LAST));
    others
}

/// With every ASCII letter in both cases.
fn folded(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    for at in 0..ranges.len() {
        let (first, last) = ranges[at];
        for (low, high, other) in [(0x41, 0x5a, 0x20), (0x61, 0x7a, 0x20_u32.wrapping_neg())] {
            if first <= high && low <= last {
                ranges.push((first.max(low).wrapping_add(other), last.min(high).wrapping_add(other)));
            }
        }
    }
    ranges
}

#[cfg(test)]
#[path = "regex_tests.rs"]
mod tests;
