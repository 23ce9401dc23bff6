//! An audit log as a person reads it. Anybody may have written it: nothing of it reaches a terminal as it is.

use serde_json::Value;
use sortie_client::audit::{HostKey, Outcome, Output, Record, Who};
use sortie_client::error::printable;

use super::Verified;

/// Most that is shown of one text, in bytes: its end.
const SHOWN: usize = 8192;

/// One line for each line.
pub(super) fn record(line: u64, at: &str, record: Option<&Record>) -> String {
    let Some(record) = record else { return format!("line {line} is not understood") };
    let text = told(record);
    let host = record.concerns().map_or_else(String::new, |(_, host)| format!(" {}:", shown(host)));
    format!("{}{host} {text}", shown(at))
}

pub(super) fn verified(verified: &Verified) -> String {
    let Verified { file, sound, records, sessions, findings, head, head_checked } = verified;
    if !sound {
        return format!("{}: NOT as it was written: {}", shown(file), counted(*findings, "finding"));
    }
    let kept = if *head_checked { ", and the head that was kept is in it" } else { "" };
    let (records, sessions) = (counted(*records, "record"), counted(*sessions, "session"));
    format!("{}: sound: {records}, {sessions}{kept}\nhead {head}", shown(file))
}

fn counted(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn told(record: &Record) -> String {
    match record {
        Record::Log { version, log } => format!("log {} begins, version {version}", shown(log)),
        Record::Session { session, way, who, .. } => {
            format!("session {} of {}: {}", shown(session), person(who), shown(way))
        }
        Record::Login { host_keys, .. } => match host_keys.as_slice() {
            [] => "let us in".to_owned(),
            keys => {
                format!("let us in, with {}", keys.iter().map(key).collect::<Vec<_>>().join(", by way of "))
            }
        },
        Record::Command { id, who, signed_by, command, timeout, r#become, check, params, input, .. } => {
            let whom = r#become.as_ref().map_or_else(String::new, |becoming| {
                let method = serde_json::to_value(becoming.method).unwrap_or_default();
                format!(" as {} by {}", shown(&becoming.user), method.as_str().unwrap_or_default())
            });
            let signed =
                signed_by.as_ref().map_or_else(String::new, |key| format!(", signed by {}", shown(key)));
            let check = if *check { ", check only" } else { "" };
            let input = if *input { ", with input" } else { "" };
            let (id, who, command, params) = (shown(id), shown(who), shown(command), parameters(params));
            format!(
                "{id}: {who} asks for {command}{whom}{signed}{check}{input}, within {timeout} s: {params}"
            )
        }
        Record::Ready { sha256, hostname, user, uid, .. } => {
            let (sha256, hostname, user) = (shown(sha256), shown(hostname), shown(user));
            format!("runner {sha256} is up on {hostname} as {user} ({uid})")
        }
        Record::Result { id, command, outcome, stdout, stderr, .. } => {
            let mut text = format!("{}: {} {}", shown(id), shown(command), ended(outcome));
            for (name, output) in [("output", stdout), ("errors", stderr)] {
                if let Some(Output { bytes, sha256 }) = output {
                    let digest =
                        sha256.as_ref().map_or_else(String::new, |digest| format!(" ({})", shown(digest)));
                    text += &format!("; {bytes} bytes of {name}{digest}");
                }
            }
            text
        }
        Record::End { session, how, reason, commands, unanswered, unrecorded, .. } => {
            let plural = if *commands == 1 { "" } else { "s" };
            let mut text =
                format!("session {} ended ({}), {commands} command{plural}", shown(session), shown(how));
            if !unanswered.is_empty() {
                text += &format!("; not answered: {}", shown(&unanswered.join(", ")));
            }
            if *unrecorded > 0 {
                text += &format!("; {unrecorded} records could not be written");
            }
            if let Some(reason) = reason {
                text += &format!(": {}", shown(reason));
            }
            text
        }
        Record::Torn { bytes, .. } => format!("before this, {bytes} bytes are torn: their writer died"),
        _ => "of a kind that this version does not know".to_owned(),
    }
}

fn person(who: &Who) -> String {
    let Who { user, uid, login_uid, host, pid, program } = who;
    let login = match login_uid {
        Some(login) if login != uid => format!(", logged in as {login}"),
        _ => String::new(),
    };
    let (user, host, program) = (shown(user), shown(host), shown(program));
    format!("{user} ({uid}{login}) on {host}, {program}, process {pid}")
}

fn key(key: &HostKey) -> String {
    let authority =
        key.authority.as_ref().map_or_else(String::new, |by| format!(", vouched for by {}", shown(by)));
    let added = if key.added_to.is_some() { ", new until then" } else { "" };
    format!("{} {} of {}{authority}{added}", shown(&key.algorithm), shown(&key.fingerprint), shown(&key.host))
}

/// A program and its arguments as they are; all else as JSON.
fn parameters(params: &Value) -> String {
    shown(&params.get("argv").unwrap_or(params).to_string())
}

fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { result_sha256, seconds, exit_code, changed } => {
            let mut text = format!("done in {seconds:.3} s");
            if let Some(status) = exit_code {
                text += &format!(", exit status {status}");
            }
            match changed {
                Some(true) => text += ", changed",
                Some(false) => text += ", unchanged",
                None => {}
            }
            if let Some(digest) = result_sha256 {
                text += &format!(", result {}", shown(digest));
            }
            text
        }
        Outcome::Error { code, message, .. } => {
            let message =
                message.as_ref().map_or_else(String::new, |message| format!(": {}", shown(message)));
            format!("failed, {}{message}", shown(code))
        }
        _ => "ended in a way that this version does not know".to_owned(),
    }
}

fn shown(text: &str) -> String {
    printable(text.as_bytes(), SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_log_can_drive_a_terminal() {
        let evil = "\u{1b}]0;owned\u{7}\u{202e}\r\n";
        let texts = serde_json::json!({
            "record": "command", "session": evil, "host": evil, "who": evil, "id": evil, "command": evil,
            "timeout": 1, "params": {"argv": [evil], evil: evil}, "become": {"user": evil, "method": "su"},
        });
        let line = record(1, evil, Some(&serde_json::from_value(texts).unwrap()));
        assert!(line.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{line:?}");
        assert!(line.contains("as ") && line.contains(" by su"), "{line}");
    }
}
