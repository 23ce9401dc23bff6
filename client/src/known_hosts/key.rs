//! A public key as the bytes it has on the wire (RFC 4253 §6.6), and the key inside a certificate.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};

/// A public key as SSH transmits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// The key type, such as `ssh-ed25519`.
    pub algorithm: String,
    /// The encoded key (RFC 4253 §6.6).
    pub blob: Vec<u8>,
}

/// Key types, and how many strings a key of each consists of.
const TYPES: &[(&str, usize)] = &[
    ("ssh-ed25519", 1),
    ("ssh-rsa", 2),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("ssh-dss", 4),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
];

/// What the type of a key's certificate is called.
fn certificate_type(name: &str) -> String {
    format!("{}-cert-v01@openssh.com", name.strip_suffix("@openssh.com").unwrap_or(name))
}

impl HostKey {
    /// A key as it stands in files: its type, and its bytes in base64. `None` if it is none, or says another type
    /// inside.
    #[must_use]
    pub fn parse(algorithm: &str, base64: &str) -> Option<Self> {
        Self::from_blob(STANDARD.decode(base64).ok()?).filter(|key| key.algorithm == algorithm)
    }

    /// A key from its bytes; the type stands at their beginning.
    #[must_use]
    pub fn from_blob(blob: Vec<u8>) -> Option<Self> {
        let algorithm = std::str::from_utf8(take_string(&mut blob.as_slice())?).ok()?.to_owned();
        Some(Self { algorithm, blob })
    }

    /// The bytes in base64, as files have them.
    #[must_use]
    pub fn base64(&self) -> String {
        STANDARD.encode(&self.blob)
    }

    /// The SHA-256 of the key, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// The key that a certificate is for (PROTOCOL.certkeys: type, nonce, then the key's own fields). `None` if this
    /// is no certificate of a known type.
    #[must_use]
    pub fn plain(&self) -> Option<Self> {
        let (name, fields) = TYPES.iter().find(|(name, _)| certificate_type(name) == self.algorithm)?;
        let mut rest = self.blob.as_slice();
        take_string(&mut rest)?;
        take_string(&mut rest)?;
        let mut blob = Vec::new();
        put_string(&mut blob, name.as_bytes());
        for _ in 0..*fields {
            put_string(&mut blob, take_string(&mut rest)?);
        }
        Some(Self { algorithm: (*name).to_owned(), blob })
    }

    /// How many bits an RSA key has; `None` for other types, whose length is fixed.
    #[must_use]
    pub fn rsa_bits(&self) -> Option<usize> {
        let mut rest = self.blob.as_slice();
        if take_string(&mut rest)? != b"ssh-rsa" {
            return None;
        }
        take_string(&mut rest)?;
        let modulus = take_string(&mut rest)?;
        let first = modulus.iter().position(|&byte| byte != 0)?;
        let digits = &modulus[first..];
        Some(digits.len() * 8 - digits.first()?.leading_zeros() as usize)
    }
}

/// The next string of RFC 4251 §5: a length of four bytes, then so many bytes.
pub(crate) fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (string, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(string)
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    // What was taken out of a string of the same format is no longer than its length can say.
    out.extend((string.len() as u32).to_be_bytes());
    out.extend(string);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(strings: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for string in strings {
            put_string(&mut out, string);
        }
        out
    }

    #[test]
    fn the_key_inside_a_certificate_is_found_for_every_type() {
        for (name, fields) in TYPES {
            let certificate = certificate_type(name);
            let own: Vec<&[u8]> = [b"one".as_slice(), b"two", b"three", b"four"][..*fields].to_vec();
            let inside = [&[name.as_bytes()], own.as_slice()].concat();
            let outside =
                [&[certificate.as_bytes(), b"nonce"], own.as_slice(), &[b"serial and so on"]].concat();
            let key = HostKey::from_blob(blob(&outside)).unwrap().plain().unwrap();
            assert_eq!(key, HostKey::from_blob(blob(&inside)).unwrap(), "{certificate}");
            assert_eq!(key.plain(), None, "a plain key holds no other");
        }
    }

    #[test]
    fn what_is_cut_short_is_no_key() {
        let whole = blob(&[b"ssh-ed25519-cert-v01@openssh.com", b"nonce", b"key"]);
        for end in 0..whole.len() {
            let key = HostKey::from_blob(whole[..end].to_vec());
            assert_eq!(key.and_then(|key| key.plain()), None, "{end}");
        }
    }

    #[test]
    fn the_length_of_an_rsa_key_is_that_of_its_modulus() {
        let rsa =
            |modulus: &[u8]| HostKey::from_blob(blob(&[b"ssh-rsa", &[1, 0, 1], modulus])).unwrap().rsa_bits();
        assert_eq!(rsa(&[0, 0x80, 0]), Some(16));
        assert_eq!(rsa(&[0x7f, 0xff]), Some(15));
        assert_eq!(rsa(&[]), None);
        assert_eq!(HostKey::from_blob(blob(&[b"ssh-ed25519", b"key"])).unwrap().rsa_bits(), None);
    }
}
