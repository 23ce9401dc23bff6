//! Whether a signed statement counts: made by a key of the anchor, as it was signed, for this session, and only once.
//!
//! Nothing is done here with what a statement says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha512};
use sortie_protocol::ErrorCode;
use sortie_protocol::message::Ready;
use sortie_protocol::signed::{Signed, Statement, to_be_signed};

use crate::anchor::Anchor;
use crate::failure::Failure;

/// A refusal for want of a valid signature; nothing was run.
pub(crate) fn refusal(reason: &str, message: &str) -> Failure {
    Failure::new(ErrorCode::Signature, format!("{message}; nothing was run")).detail("reason", reason)
}

/// What statements of this session are held against.
pub(crate) struct Judge {
    anchors: Vec<Anchor>,
    session: String,
    nonce: String,
    host: String,
    user: String,
}

impl Judge {
    /// For the session that says `ready` of itself.
    pub(crate) fn new(anchors: Vec<Anchor>, ready: &Ready) -> Self {
        let (host, user) =
            ready.host.as_ref().map(|host| (host.hostname.clone(), host.user.clone())).unwrap_or_default();
        Self { anchors, session: ready.session.clone(), nonce: ready.nonce.clone(), host, user }
    }

    /// The statement, if it counts, and who made it. From then on it counts no more, whatever becomes of it.
    ///
    /// # Errors
    /// `SIGNATURE` with why it does not, or `INVALID_CMD` for one that is signed and makes no sense.
    pub(crate) fn statement(&mut self, signed: &Signed) -> Result<(Statement, String), Failure> {
        let anchor = self.anchors.iter_mut().find(|anchor| anchor.text == signed.key).ok_or_else(|| {
            refusal("unknown_key", "the key that signed this is none of those that this runner trusts")
        })?;
        let signature: Option<[u8; 64]> =
            STANDARD.decode(&signed.signature).ok().and_then(|bytes| bytes.try_into().ok());
        let blob = to_be_signed(&Sha512::digest(&signed.text).into());
        if !signature.is_some_and(|signature| anchor.verifies(&blob, &signature)) {
            return Err(refusal("bad_signature", "the signature does not fit what was signed"));
        }
        // From here on it is the words of somebody who is trusted.
        let statement = Statement::parse(&signed.text)
            .map_err(|rejected| Failure::new(rejected.code, rejected.message))?;
        if statement.session != self.session || statement.nonce != self.nonce {
            return Err(refusal("other_session", "this was signed for another session"));
        }
        if !statement.host.is_empty() && statement.host != self.host {
            return Err(refusal("other_host", "this was signed for another host"));
        }
        if !statement.user.is_empty() && statement.user != self.user {
            return Err(refusal("other_user", "this was signed for another login"));
        }
        if statement.number <= anchor.last {
            return Err(refusal("replayed", "its number is not above that of what this key signed before"));
        }
        anchor.last = statement.number;
        Ok((statement, anchor.fingerprint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sortie_protocol::message::HostFacts;

    const KEY_HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    /// The signed frame of the golden vectors, which ssh-keygen signed.
    fn vector() -> Signed {
        let line = include_str!("../../protocol/vectors/controller.ndjson").lines();
        let line = line.into_iter().find(|line| line.starts_with("{\"type\":\"SIGNED\"")).unwrap();
        let Ok(sortie_protocol::ControllerMessage::Signed(signed)) =
            sortie_protocol::ControllerMessage::parse(line.as_bytes())
        else {
            panic!("{line}")
        };
        signed
    }

    fn judge(change: impl FnOnce(&mut Ready)) -> Judge {
        let host = HostFacts { hostname: "web1".into(), user: "root".into(), ..HostFacts::default() };
        let mut ready = Ready {
            session: "0123456789abcdef0123456789abcdef".into(),
            nonce: "fedcba9876543210fedcba9876543210".into(),
            host: Some(host),
            ..Ready::default()
        };
        change(&mut ready);
        Judge::new(vec![Anchor::from_hex(KEY_HEX).unwrap()], &ready)
    }

    fn reason(judge: &mut Judge, signed: &Signed) -> String {
        let failure = judge.statement(signed).unwrap_err();
        assert_eq!(failure.code, ErrorCode::Signature);
        failure.details.get("reason").unwrap().clone()
    }

    #[test]
    fn what_ssh_keygen_signed_counts_once() {
        let mut judge = judge(|_| {});
        let (statement, who) = judge.statement(&vector()).unwrap();
        assert_eq!(statement.command.unwrap().id, "cmd-1");
        assert_eq!(who, "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8");
        assert_eq!(reason(&mut judge, &vector()), "replayed");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (mut judge, good) = (judge(|_| {}), vector());
        for at in 0..good.text.len() {
            let mut bytes = good.text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert_eq!(reason(&mut judge, &Signed { text, ..good.clone() }), "bad_signature", "byte {at}");
        }
        for at in 0..64 {
            let mut bytes = STANDARD.decode(&good.signature).unwrap();
            bytes[at] ^= 1;
            let signature = STANDARD.encode(bytes);
            assert_eq!(
                reason(&mut judge, &Signed { signature, ..good.clone() }),
                "bad_signature",
                "byte {at}"
            );
        }
        judge.statement(&good).unwrap();
    }

    #[test]
    fn the_second_spelling_of_a_signature_is_refused() {
        // S plus the order of the group: the same number, and no canonical one (RFC 8032 §5.1.7).
        let order = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
        let mut bytes = STANDARD.decode(vector().signature).unwrap();
        let mut carry = 0;
        for at in 0..32 {
            let digits = u16::from_str_radix(&order[2 * at..2 * at + 2], 16).unwrap();
            let sum = u16::from(bytes[32 + at]) + digits + carry;
            (bytes[32 + at], carry) = (sum as u8, sum >> 8);
        }
        let signed = Signed { signature: STANDARD.encode(bytes), ..vector() };
        assert_eq!(reason(&mut judge(|_| {}), &signed), "bad_signature");
    }

    #[test]
    fn what_was_signed_for_something_else_does_not_count() {
        let other = || "00".repeat(16);
        assert_eq!(reason(&mut judge(|ready| ready.session = other()), &vector()), "other_session");
        assert_eq!(reason(&mut judge(|ready| ready.nonce = other()), &vector()), "other_session");
        let elsewhere = |ready: &mut Ready| ready.host.as_mut().unwrap().hostname = "web2".into();
        assert_eq!(reason(&mut judge(elsewhere), &vector()), "other_host");
        let somebody = |ready: &mut Ready| ready.host.as_mut().unwrap().user = "deploy".into();
        assert_eq!(reason(&mut judge(somebody), &vector()), "other_user");
        let stranger = Signed { key: "AAAA".into(), ..vector() };
        assert_eq!(reason(&mut judge(|_| {}), &stranger), "unknown_key");
        for signature in ["", "AAAA", "!"] {
            let signed = Signed { signature: signature.into(), ..vector() };
            assert_eq!(reason(&mut judge(|_| {}), &signed), "bad_signature");
        }
    }
}
