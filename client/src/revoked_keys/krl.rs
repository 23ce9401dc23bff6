//! OpenSSH's key revocation lists, as PROTOCOL.krl describes them. What is not understood is an error, not passed over:
//! it may be what revokes the key at hand.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::host_certificate::HostCertificate;
use crate::known_hosts::{HostKey, take_string};

/// The first bytes of every KRL.
pub(super) const MAGIC: &[u8] = b"SSHKRL\n\0";

#[derive(Debug, Default)]
pub(super) struct Krl {
    /// Plain keys, as their bytes.
    keys: Vec<Vec<u8>>,
    /// SHA-1 or SHA-256 of the bytes of plain keys.
    hashes: Vec<Vec<u8>>,
    certificates: Vec<Certificates>,
}

/// What is revoked of one authority, or of all.
#[derive(Debug)]
struct Certificates {
    /// The authority's key, as its bytes.
    authority: Option<Vec<u8>>,
    /// Serial numbers from the first to the second.
    serials: Vec<(u64, u64)>,
    bitmaps: Vec<Bitmap>,
    ids: Vec<Vec<u8>>,
}

/// Serial numbers from `offset`, one for each bit, the last bit of the last byte first.
#[derive(Debug)]
struct Bitmap {
    offset: u64,
    bits: Vec<u8>,
}

impl Bitmap {
    fn has(&self, serial: u64) -> bool {
        let Some(index) = serial.checked_sub(self.offset) else { return false };
        let Ok(from_end) = usize::try_from(index / 8) else { return false };
        self.bits.iter().rev().nth(from_end).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }
}

impl Krl {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or("no key revocation list")?;
        let version = u32::from_be_bytes(take(&mut rest)?);
        if version != 1 {
            return Err(format!("a key revocation list of format {version}; only format 1 is known"));
        }
        // Its own version, the time it was made, flags.
        take::<24>(&mut rest)?;
        let (_reserved, _comment) = (string(&mut rest)?, string(&mut rest)?);
        let mut krl = Self::default();
        while !rest.is_empty() {
            let [kind] = take(&mut rest)?;
            let mut section = string(&mut rest)?;
            match kind {
                1 => krl.certificates.push(Certificates::parse(&mut section)?),
                2 => krl.keys.extend(strings(section)?),
                3 => krl.hashes.extend(hashes(section, 20)?),
                5 => krl.hashes.extend(hashes(section, 32)?),
                4 => {
                    return Err(
                        "the key revocation list is signed inside; OpenSSH does not check that either".into(),
                    );
                }
                255 => extension(section)?,
                kind => return Err(format!("section {kind} of the key revocation list is unknown")),
            }
        }
        Ok(krl)
    }

    /// Whether this plain key is revoked, by itself or by its hash.
    pub(super) fn revokes_key(&self, key: &HostKey) -> bool {
        let is = |hash: &[u8]| self.hashes.iter().any(|revoked| revoked == hash);
        self.keys.contains(&key.blob) || is(&Sha1::digest(&key.blob)) || is(&Sha256::digest(&key.blob))
    }

    /// Whether this certificate is revoked, by its serial number or its name. One without a number cannot be by that.
    pub(super) fn revokes_certificate(&self, certificate: &HostCertificate) -> bool {
        let of_authority = |section: &&Certificates| {
            section.authority.as_ref().is_none_or(|authority| *authority == certificate.authority.blob)
        };
        self.certificates.iter().filter(of_authority).any(|section| {
            let serial = certificate.serial;
            section.ids.iter().any(|id| id == certificate.key_id.as_bytes())
                || serial != 0
                    && (section.serials.iter().any(|(first, last)| (*first..=*last).contains(&serial))
                        || section.bitmaps.iter().any(|bitmap| bitmap.has(serial)))
        })
    }
}

impl Certificates {
    fn parse(rest: &mut &[u8]) -> Result<Self, String> {
        let authority = Some(string(rest)?.to_vec()).filter(|key| !key.is_empty());
        let mut found = Self { authority, serials: Vec::new(), bitmaps: Vec::new(), ids: Vec::new() };
        let _reserved = string(rest)?;
        while !rest.is_empty() {
            let [kind] = take(rest)?;
            let mut section = string(rest)?;
            match kind {
                0x20 => {
                    while !section.is_empty() {
                        let serial = u64::from_be_bytes(take(&mut section)?);
                        found.serials.push((serial, serial));
                    }
                }
                0x21 => {
                    let first = u64::from_be_bytes(take(&mut section)?);
                    let last = u64::from_be_bytes(take(&mut section)?);
                    end(section)?;
                    if first > last {
                        return Err(
                            "the key revocation list has a range of serial numbers that is none".into()
                        );
                    }
                    found.serials.push((first, last));
                }
                0x22 => {
                    let offset = u64::from_be_bytes(take(&mut section)?);
                    let bits = string(&mut section)?.to_vec();
                    found.bitmaps.push(Bitmap { offset, bits });
                    end(section)?;
                }
                0x23 => found.ids.extend(strings(section)?),
                0x39 => extension(section)?,
                kind => {
                    return Err(format!("certificate section {kind} of the key revocation list is unknown"));
                }
            }
        }
        Ok(found)
    }
}

/// Name, whether it must be understood, contents. No extension is known, so only those that may be ignored are.
fn extension(mut section: &[u8]) -> Result<(), String> {
    let name = String::from_utf8_lossy(string(&mut section)?).into_owned();
    let [critical] = take(&mut section)?;
    string(&mut section)?;
    end(section)?;
    if critical != 0 {
        return Err(format!("the key revocation list needs the extension {name:?}, which is unknown"));
    }
    Ok(())
}

fn hashes(section: &[u8], length: usize) -> Result<Vec<Vec<u8>>, String> {
    let found = strings(section)?;
    if found.iter().any(|hash| hash.len() != length) {
        return Err(format!("the key revocation list has a hash that is not {length} bytes long"));
    }
    Ok(found)
}

fn strings(mut section: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    while !section.is_empty() {
        found.push(string(&mut section)?.to_vec());
    }
    Ok(found)
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    take_string(rest).ok_or_else(cut_short)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or_else(cut_short)?;
    *rest = after;
    Ok(*taken)
}

fn end(rest: &[u8]) -> Result<(), String> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err("a section of the key revocation list is longer than it says".into())
    }
}

fn cut_short() -> String {
    "the key revocation list is cut short".into()
}
