//! What a runner that passes frames on for another user's runner has to read of them, and to take out of them.

use serde_json::value::RawValue;

use crate::decode::{Invalid, decode, fields, members};
use crate::encode::{encode, shown};
use crate::limits::ResourceLimits;
use crate::map::Strings;
use crate::value::Secret;

/// A frame of a runner, as far as it matters to who passes it on.
#[derive(Debug, Default)]
pub struct Passing<'a> {
    /// `type` of the envelope.
    pub kind: String,
    /// Of most frames: which command.
    pub command_id: String,
    /// Of READY: the digest of the runner.
    pub sha256: String,
    /// Of CREDIT.
    pub bytes: u64,
    /// Of ERROR.
    pub code: String,
    /// Of ERROR.
    pub details: Strings,
    /// Of EVENT: it waits for CONFIRM.
    pub awaits: bool,
    /// Of DONE, in seconds.
    pub duration: f64,
    /// Of DONE.
    pub result: Option<&'a RawValue>,
}

#[derive(Default)]
struct Envelope<'a> {
    kind: String,
    data: Option<&'a RawValue>,
}

fields!(Envelope<'a> { kind = "type"; data });

#[derive(Default)]
struct Data<'a> {
    command_id: String,
    sha256: String,
    bytes: u64,
    code: String,
    details: Strings,
    metadata: Strings,
    duration: Option<&'a RawValue>,
    result: Option<&'a RawValue>,
}

fields!(Data<'a> { ; command_id, sha256, bytes, code, details, metadata, duration, result });

impl<'a> Passing<'a> {
    /// Reads one line of a runner; none where it is no frame.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let envelope: Envelope<'a> = decode(std::str::from_utf8(line).ok()?).ok()?;
        let data: Data<'a> = decode(envelope.data?.get()).ok()?;
        Some(Self {
            kind: envelope.kind,
            command_id: data.command_id,
            sha256: data.sha256,
            bytes: data.bytes,
            code: data.code,
            details: data.details,
            awaits: data.metadata.contains_key("awaiting"),
            duration: data.duration.and_then(|text| seconds(text.get())).unwrap_or_default(),
            result: data.result,
        })
    }
}

#[derive(Default)]
struct Exit {
    exit_code: i32,
}

fields!(Exit { ; exit_code });

/// Seconds as a runner of this version writes them.
fn seconds(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.')?;
    let unit = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(whole.parse::<u64>().ok()? as f64 + fraction.parse::<u64>().ok()? as f64 / unit as f64)
}

/// Whether a result tells of a program that failed.
#[must_use]
pub fn tells_of_failure(result: &RawValue) -> bool {
    decode(result.get()).is_ok_and(|exit: Exit| exit.exit_code != 0)
}

/// The reference's way to ask for root, which stands among the parameters of a command.
#[derive(Debug, Default)]
pub struct UseSudo {
    /// Become root.
    pub use_sudo: bool,
    /// The password that sudo may ask for.
    pub sudo_password: Option<Secret>,
}

fields!(UseSudo { ; use_sudo, sudo_password });

impl UseSudo {
    /// Takes it out of the parameters, so that the password goes nowhere else.
    ///
    /// # Errors
    /// [`Invalid`] where a value is of the wrong type.
    pub fn take(params: &mut Box<RawValue>) -> Result<Self, Invalid> {
        let text = params.get();
        // Both names have it, unless they are written in escapes.
        if !text.contains("sudo") && !text.contains("\\u") || text == "null" {
            return Ok(Self::default());
        }
        let found: Self = decode(text)?;
        let mut rest = Vec::with_capacity(text.len());
        members(text, &mut |name, value| {
            if !matches!(name, "use_sudo" | "sudo_password") {
                rest.push(if rest.is_empty() { b'{' } else { b',' });
                rest.extend(encode(&name));
                rest.push(b':');
                rest.extend_from_slice(value.get().as_bytes());
            }
        })?;
        rest.extend_from_slice(if rest.is_empty() { b"{}" } else { b"}" });
        if let Some(rest) = String::from_utf8(rest).ok().and_then(|rest| RawValue::from_string(rest).ok()) {
            *params = rest;
        }
        Ok(found)
    }
}

/// A CMD on its way. Its key stays with the runner that forwards it, where the first answer is kept; so does whom to become.
#[allow(missing_docs, reason = "the fields are those of CommandMessage")]
pub struct Forwarded<'a> {
    pub id: &'a str,
    pub r#type: &'a str,
    pub timeout: u64,
    pub params: &'a RawValue,
    pub check: bool,
    pub diff: bool,
    pub window: Option<u64>,
    pub limits: Option<ResourceLimits>,
    pub usage: bool,
}

shown!(Forwarded<'a>: id r#type timeout params check diff [window limits usage]);

#[cfg(test)]
mod tests {
    use super::*;

    fn take(params: &str) -> (Result<UseSudo, Invalid>, String) {
        let mut params = RawValue::from_string(params.to_owned()).unwrap();
        let taken = UseSudo::take(&mut params);
        (taken, params.get().to_owned())
    }

    #[test]
    fn what_asks_for_root_is_taken_out_of_the_parameters() {
        let (taken, rest) =
            take(r#"{"command":"sudo x","use_sudo":true,"env":{"A":"\n"},"sudo_password":"hunter2"}"#);
        let taken = taken.unwrap();
        assert!(taken.use_sudo && taken.sudo_password.unwrap().expose() == "hunter2");
        assert_eq!(rest, r#"{"command":"sudo x","env":{"A":"\n"}}"#);
        let (taken, rest) = take(r#"{"sudo_p\u0061ssword":"hunter2"}"#);
        assert!(taken.unwrap().sudo_password.is_some());
        assert_eq!(rest, "{}");
        for (params, use_sudo) in [("null", false), ("{}", false), (r#"{"use_sudo":null}"#, false)] {
            assert_eq!(take(params).0.unwrap().use_sudo, use_sudo);
        }
        let (taken, _) = take(r#"{"sudo_password":12345}"#);
        assert_eq!(taken.unwrap_err().to_string(), "sudo_password: expected a string");
    }

    #[test]
    fn frames_are_read_as_far_as_they_matter() {
        let line =
            br#"{"type":"DONE","timestamp":"x","data":{"command_id":"a","result":{"x":1},"duration":0.5}}"#;
        let frame = Passing::parse(line).unwrap();
        assert_eq!((frame.kind.as_str(), frame.command_id.as_str(), frame.duration), ("DONE", "a", 0.5));
        assert_eq!(frame.result.unwrap().get(), r#"{"x":1}"#);
        assert!(Passing::parse(b"noise").is_none() && Passing::parse(b"{\"type\":\"X\"}").is_none());
    }
}
