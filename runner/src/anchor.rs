//! The keys whose signatures count, and the file that they stand in. Who can write that file can command the runner, so it
//! is taken only where that is nobody but root.
//!
//! Knows nothing of sessions and of what is signed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ed25519_dalek::VerifyingKey;
use sha2::{Digest, Sha256};
use sortie_protocol::signed;

use crate::failure::reason;

/// Most bytes of a file of anchors: some hundred keys.
const LONGEST: u64 = 64 * 1024;

/// A key whose signatures count.
pub(crate) struct Anchor {
    key: VerifyingKey,
    /// As SSH writes it, in base64.
    pub(crate) text: String,
    /// The number of the last statement that it signed in this session.
    pub(crate) last: u64,
}

impl Anchor {
    /// A key from its 32 bytes.
    ///
    /// # Errors
    /// For what is no key of ed25519, and for keys that any signature fits: points of small order.
    fn new(bytes: &[u8; 32]) -> Result<Self, String> {
        let key = VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak());
        let key = key.ok_or("is no valid ed25519 key")?;
        Ok(Self { key, text: STANDARD.encode(signed::key_blob(bytes)), last: 0 })
    }

    /// A key as `--trust` has it: 64 hexadecimal digits.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_hex(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("takes a key as 64 hexadecimal digits".to_owned());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = pair
                .iter()
                .fold(0, |byte, digit| byte * 16 + (*digit as char).to_digit(16).unwrap_or(0) as u8);
        }
        Self::new(&bytes)
    }

    /// Whether the signature over `blob` is this key's. Held to RFC 8032 and more: one spelling for each signature, and no
    /// point of small order, for which one signature could fit many texts.
    pub(crate) fn verifies(&self, blob: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(blob, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }

    /// The key's fingerprint as ssh-keygen(1) shows it.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(signed::key_blob(self.key.as_bytes()));
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    }
}

/// Reads a file of anchors: a public key a line as in authorized_keys, without options; blank lines and `#` are passed over.
///
/// # Errors
/// Why it is not to be trusted, or the first line that is wrong: one that was passed over might be a key that somebody
/// relies on.
pub(crate) fn read(path: &Path) -> Result<Vec<Anchor>, String> {
    let mut text = String::new();
    let file = open(path)?;
    let read = file.take(LONGEST + 1).read_to_string(&mut text);
    read.map_err(|error| format!("anchor {path:?} cannot be read: {}", reason(&error)))?;
    if text.len() as u64 > LONGEST {
        return Err(format!("anchor {path:?} is longer than {LONGEST} bytes"));
    }
    parse(&text).map_err(|wrong| format!("anchor {path:?}, {wrong}"))
}

fn parse(text: &str) -> Result<Vec<Anchor>, String> {
    let mut anchors = Vec::new();
    for (line, number) in text.lines().zip(1_u32..) {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            anchors.push(key(line).map_err(|wrong| format!("line {number}: {wrong}"))?);
        }
    }
    if anchors.is_empty() { Err("no line: there is no key in it".to_owned()) } else { Ok(anchors) }
}

fn key(line: &str) -> Result<Anchor, String> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some(signed::KEY_TYPE) {
        return Err(format!("expected {} and a key, without options before it", signed::KEY_TYPE));
    }
    let blob = words.next().and_then(|word| STANDARD.decode(word).ok()).unwrap_or_default();
    let bytes: Option<&[u8; 32]> = blob.last_chunk();
    match bytes {
        Some(bytes) if signed::key_blob(bytes) == blob => Anchor::new(bytes),
        _ => Err("the key is no ed25519 public key in base64".to_owned()),
    }
}

/// Opens the file, if nobody but root can have written it or put another in its place.
fn open(path: &Path) -> Result<File, String> {
    let wrong = |what: &Path, why: &str| format!("anchor {path:?} is not to be trusted: {what:?} {why}");
    let cannot = |error| format!("anchor {path:?} cannot be opened: {}", reason(&error));
    let real = path.canonicalize().map_err(cannot)?;
    if real != path {
        let why = "is its real name, which is the one to give: who made a link on the way could make another";
        return Err(wrong(&real, why));
    }
    for directory in path.ancestors().skip(1) {
        roots_alone(&directory.symlink_metadata().map_err(cannot)?).map_err(|why| wrong(directory, why))?;
    }
    // No link, and no FIFO that nobody writes to.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = file.map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if !found.is_file() {
        return Err(wrong(path, "is no regular file"));
    }
    roots_alone(&found).map_err(|why| wrong(path, why))?;
    Ok(file)
}

/// Whether only root may change it; an ACL that lets others write shows in the bits of the group: acl(5).
fn roots_alone(found: &Metadata) -> Result<(), &'static str> {
    match found {
        _ if found.uid() != 0 => Err("does not belong to root"),
        _ if found.mode() & 0o022 != 0 => Err("can be written by others than root"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 §7.1, TEST 1.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";
    const KEY_HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn a_file_has_a_key_a_line_as_authorized_keys_has() {
        let anchors = parse(&format!("# who may command\n\n  {KEY} deploy@example\r\n{KEY}\n")).unwrap();
        assert_eq!(anchors.len(), 2);
        assert_eq!(format!("ssh-ed25519 {}", anchors[0].text), KEY);
        assert_eq!(Anchor::from_hex(KEY_HEX).unwrap().text, anchors[0].text);
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        for (text, part) in [
            (format!("{KEY}\nssh-rsa AAAA x"), "line 2: expected ssh-ed25519"),
            (format!("restrict {KEY}"), "line 1: expected ssh-ed25519 and a key, without options"),
            ("ssh-ed25519".to_owned(), "line 1: the key is no"),
            ("ssh-ed25519 AAAA".to_owned(), "line 1: the key is no"),
            (KEY.replace("ssh-ed25519 AAAAC3", "ssh-ed25519 AAAAC4"), "line 1: the key is no"),
            (format!("{KEY}AAAA"), "line 1: the key is no"),
            ("# nothing\n".to_owned(), "there is no key in it"),
        ] {
            let error = parse(&text).err().unwrap();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_that_any_signature_would_fit_is_none() {
        // The neutral element, and a point of order 8.
        let small = ["01", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"];
        for hex in small {
            let error = Anchor::from_hex(&format!("{hex:0<64}")).err().unwrap();
            assert!(error.contains("no valid ed25519 key"), "{error}");
        }
        for hex in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(Anchor::from_hex(hex).err().unwrap().contains("64 hexadecimal digits"), "{hex}");
        }
    }

    #[test]
    fn a_file_in_a_directory_of_everybodys_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("anchors");
        std::fs::write(&path, KEY).unwrap();
        let error = read(&path).err().unwrap();
        assert!(error.contains("is not to be trusted"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(
            read(&link).err().unwrap().contains("is its real name"),
            "a link is refused before it is followed"
        );
        assert!(read(&directory.path().join("none")).err().unwrap().contains("No such file"));
    }
}
