//! The text of one rule of sudoers(5), made of tokens that were checked one by one, and the name of its file. Pure: it
//! knows no files and no sudo.
//!
//! What passes here means in sudoers what the parameters say and nothing else: a name is never an alias or a keyword,
//! patterns are refused unless they were asked for, and nothing ends its token early.

use std::fmt::Write;

use sortie_protocol::command::sudoers_ensure::SudoersEnsure;

use crate::failure::Failure;

/// First line of the file.
const HEADER: &str = "# Managed by Sortie; changes made here are lost.\n";

/// Longest name of a user or group, in bytes: escaped it must fit in the name of a file.
const LONGEST_NAME: usize = 80;
/// RFC 1035 §2.3.4.
const LONGEST_HOST: usize = 253;

/// The whole file of a rule.
///
/// # Errors
/// `INVALID_PARAMS` naming the field whose value is outside its grammar.
pub(crate) fn text(params: &SudoersEnsure) -> Result<String, Failure> {
    let mut text = String::from(HEADER);
    text += &who("user", &params.user)?;
    text.push(' ');
    text += &host(&params.host)?;
    text += "=(";
    match (params.runas_user.as_str(), params.runas_group.as_str()) {
        ("", "") => text += "ALL:ALL",
        // With a user alone sudo allows the groups of that user: nobody asked for more.
        (user, group) => {
            if !user.is_empty() {
                text += &runas("runas_user", user)?;
            }
            if !group.is_empty() {
                text.push(':');
                text += &runas("runas_group", group)?;
            }
        }
    }
    text += ") ";
    for (asked, tag) in
        [(params.no_passwd, "NOPASSWD: "), (params.setenv, "SETENV: "), (params.noexec, "NOEXEC: ")]
    {
        if asked {
            text += tag;
        }
    }
    match params.commands.as_slice() {
        [] => text += "ALL",
        [all] if all == "ALL" => text += all,
        commands => {
            for (at, command) in commands.iter().enumerate() {
                if at > 0 {
                    text += ", ";
                }
                add_command(&mut text, command, params.wildcards)
                    .map_err(|why| Failure::params(format!("commands[{at}]: {why}")))?;
            }
        }
    }
    text.push('\n');
    Ok(text)
}

/// `NAME`, `#UID`, `%GROUP` or `%#GID`.
fn who(field: &str, text: &str) -> Result<String, Failure> {
    match text.strip_prefix('%') {
        Some(group) => Ok(format!("%{}", name(field, group)?)),
        None => name(field, text),
    }
}

/// `NAME`, `#ID` or `ALL`.
fn runas(field: &str, text: &str) -> Result<String, Failure> {
    if text == "ALL" { Ok(text.to_owned()) } else { name(field, text) }
}

/// A name or, after `#`, a number.
fn name(field: &str, text: &str) -> Result<String, Failure> {
    let refuse = |why| Err(Failure::params(format!("{field}: {text:?} {why}")));
    if let Some(id) = text.strip_prefix('#') {
        // The highest id means "unchanged" to chown(2) and is nobody's.
        let is_id = id.bytes().all(|b| b.is_ascii_digit()) && id.parse().is_ok_and(|id: u32| id != u32::MAX);
        return if is_id { Ok(text.to_owned()) } else { refuse("is no number of a user or group") };
    }
    if text.is_empty() {
        return Err(Failure::params(format!("{field} is required")));
    }
    if text == "ALL" {
        return refuse("stands for everybody in sudoers(5)");
    }
    let bytes = text.as_bytes();
    let inside = |b: &u8| b.is_ascii_alphanumeric() || b"_-.@\\$ ".contains(b);
    let ends = |b: Option<&u8>, more: &[u8]| b.is_some_and(|b| b.is_ascii_alphanumeric() || more.contains(b));
    if !bytes.iter().all(inside) || !ends(bytes.first(), b"_") || !ends(bytes.last(), b"_-.$") {
        return refuse(
            "is no name: letters, digits, _ - . @ \\ $ and inner spaces, a letter, digit or _ first",
        );
    }
    if bytes.len() > LONGEST_NAME {
        return refuse("is longer than 80 bytes");
    }
    Ok(word(text))
}

/// `ALL`, a host name, an IPv4 address or a network.
fn host(text: &str) -> Result<String, Failure> {
    if matches!(text, "" | "ALL") {
        return Ok("ALL".to_owned());
    }
    let (address, mask) = text.split_once('/').map_or((text, None), |(address, mask)| (address, Some(mask)));
    let is_number = |text: &str, most: u8| {
        text.len() <= 3
            && text.bytes().all(|b| b.is_ascii_digit())
            && text.parse().is_ok_and(|n: u8| n <= most)
    };
    let is_address = address.split('.').count() == 4 && address.split('.').all(|part| is_number(part, 255));
    let of_digits = address.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let is_fine = match mask {
        Some(mask) => is_address && is_number(mask, 32),
        None if of_digits => is_address,
        None => {
            text.len() <= LONGEST_HOST
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
                && text.split('.').all(|label| !label.is_empty() && !label.starts_with('-'))
        }
    };
    if !is_fine {
        return Err(Failure::params(format!(
            "host: {text:?} is no host name, IPv4 address or network such as 192.0.2.0/24"
        )));
    }
    Ok(if is_address { text.to_owned() } else { word(text) })
}

/// A name as one word of sudoers(5), "Other special characters and reserved words".
fn word(name: &str) -> String {
    let mut word = String::with_capacity(name.len() + 8);
    // All capitals would be an alias or a keyword, digits and dots an address; a backslash makes it a plain word.
    let in_capitals =
        name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"_.".contains(&b));
    let is_reserved = name.ends_with("_Alias")
        || matches!(name, "Defaults" | "sudoedit" | "list" | "sha224" | "sha256" | "sha384" | "sha512");
    if in_capitals || is_reserved {
        word.push('\\');
    }
    for c in name.chars() {
        if matches!(c, '@' | '\\' | ' ') {
            word.push('\\');
        }
        word.push(c);
    }
    word
}

/// An absolute path and its arguments. What sudo is to match is the arguments joined by single spaces, so runs of
/// spaces are one space here too.
fn add_command(text: &mut String, command: &str, wildcards: bool) -> Result<(), &'static str> {
    if command.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if !command.starts_with('/') {
        return Err("is not an absolute path, with arguments if any");
    }
    if !wildcards && command.contains(['*', '?', '[', ']']) {
        return Err(
            "contains one of * ? [ ], which are patterns in sudoers(5): set wildcards if that is meant",
        );
    }
    let mut words = command.split(' ').filter(|word| !word.is_empty());
    let path = words.next().unwrap_or_default();
    if path.contains(['\\', '"']) {
        return Err("has a backslash or a quote in its path");
    }
    let arguments: Vec<&str> = words.collect();
    if path.ends_with('/') && !arguments.is_empty() {
        return Err("gives arguments to a directory, which stands for the programs in it");
    }
    escape(text, path);
    let none = arguments == ["\"\""];
    for (at, argument) in arguments.iter().enumerate() {
        if !none && argument.contains('"') {
            return Err("contains a quote: sudoers(5) has none; \"\" alone means no arguments");
        }
        if at == 0 && argument.starts_with('^') {
            return Err("has arguments that begin with ^, which is a regular expression in sudoers(5)");
        }
        text.push(' ');
        escape(text, argument);
    }
    if path.split('/').chain(arguments.iter().flat_map(|a| a.split('/'))).any(|part| part == "..") {
        return Err("contains .. as part of a path");
    }
    Ok(())
}

/// Adds a part of a command. sudoers(5) takes one backslash away, and the pattern that is left (fnmatch(3)) another.
fn escape(text: &mut String, part: &str) {
    for c in part.chars() {
        match c {
            '\\' => *text += "\\\\\\",
            ',' | ':' | '=' | '#' => text.push('\\'),
            _ => {}
        }
        text.push(c);
    }
}

/// The name of the file in sudoers.d. sudo passes over names with a dot or a `~` at the end, so every byte that is no
/// ASCII letter, digit, `_` or `-` is written as `%` and its hexadecimal number: different users, different files.
pub(crate) fn file_name(user: &str) -> String {
    let mut name = String::from("sortie-");
    for byte in user.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name
}

#[cfg(test)]
#[path = "sudoers_tests.rs"]
mod tests;
