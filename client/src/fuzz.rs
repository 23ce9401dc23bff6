//! What fuzzing does with this crate, and the replay of what it found: `fuzz/` of the repository, `cargo xtask fuzz`. In no
//! build that ships.
#![allow(clippy::expect_used, reason = "what is not so is a finding")]

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sortie_protocol::command::exec::Exec;
use sortie_protocol::command::file_read::FileRead;

use crate::AllowedSigners;
use crate::host_certificate::HostCertificate;
use crate::known_hosts::{HostKey, HostName, KnownHosts, Verdict};
use crate::revoked_keys::RevokedKeys;
use crate::runners::{Machine, Runner, RunnerSet};
use crate::session::{CommandOptions, Opening, output};
use crate::ssh_config::{AddressFamily, ConfigFile, Query, World, lookup};
use crate::transport::fake::fake;
use crate::{Client, Error, SshSettings};

/// A key that signed something.
pub(crate) const SIGNER: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHIr4naNfOyW7cjmKnCIvKR2UnWXeXEZJJR8RNRntP1K";

/// Of [`SIGNER`] for `sortie-runners` over `hello\n`.
pub(crate) const SIGNATURE: &str = "-----BEGIN SSH SIGNATURE-----\n\
    U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgcivido187JbtyOYqcIi8pHZSdZ\n\
    d5cRkklHxE1Ge0/UoAAAAOc29ydGllLXJ1bm5lcnMAAAAAAAAABnNoYTUxMgAAAFMAAAAL\n\
    c3NoLWVkMjU1MTkAAABAROwwJTqTHmeoqh5tz8Fzd8eLw3QAmkW3Uaab8EEW/QOhhLbBWf\n\
    VM2sJLv2UDIy0gGbz580GqrWS9VmU1xE40Dw==\n\
    -----END SSH SIGNATURE-----\n";

/// Stands for the marker that nobody knows before.
const MARKER: &[u8] = b"@MARKER@";

/// Whatever a host may answer, from the login shell's first byte to the end: there is a session or an error, every command has
/// an end, and errors can be shown. The first byte of `data` says in what pieces the rest arrives.
///
/// # Panics
/// Where that is not so.
pub fn session(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    // Time stands still, and jumps where everybody waits for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without input and output").block_on(async {
        let (transport, mut far) = fake();
        let mut runners = RunnerSet::new();
        runners.insert(Machine::Riscv64, Runner::new(&b"the runner"[..]));
        let client = Client::builder().runners(runners).window(1000).ssh(SshSettings::default()).build();
        let answers = async {
            let Some(launch) = far.launches.recv().await else { return };
            let marker = [&launch.argv[4], &launch.argv[5]].map(String::as_str).concat();
            far.recite(filled(bytes, marker.as_bytes()).into(), usize::from(*size).max(1)).await;
        };
        let opening = client.open(Arc::new(transport));
        tokio::join!(answers, use_session(opening));
    });
}

fn filled(bytes: &[u8], marker: &[u8]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(MARKER.len()).position(|window| window == MARKER) {
        filled.extend_from_slice(&rest[..at]);
        filled.extend_from_slice(marker);
        rest = &rest[at + MARKER.len()..];
    }
    filled.extend_from_slice(rest);
    filled
}

async fn use_session(mut opening: Opening) {
    let options = CommandOptions::default;
    let mut streaming =
        opening.start(&Exec::shell("x").stream_lines(true), options()).expect("it can be sent");
    let reading = opening.start(&FileRead::new("/x"), options()).expect("it can be sent");
    let session = match opening.connect().await {
        Ok(session) => session,
        Err(error) => {
            shown(&error);
            assert!(streaming.next_event().await.is_none());
            assert!(reading.wait().await.is_err());
            return;
        }
    };
    let mut taken = 0;
    while let Some(event) = streaming.next_event().await {
        taken += output(&event).map_or(0, |(_, bytes)| bytes.len());
    }
    assert!(taken < 1 << 20);
    for ended in [streaming.wait().await.map(drop), reading.wait().await.map(drop)] {
        ended.as_ref().map_or_else(shown, |()| ());
    }
    session.close().await.as_ref().map_or_else(shown, |_| ());
}

/// An error says something, and in not too many words.
fn shown(error: &Error) {
    let words = error.to_string();
    assert!(!words.is_empty());
    // What is shown of what a host sent was bounded; but the message of a command's own ERROR is as long as it is.
    assert!(matches!(error, Error::Command { .. }) || words.len() < 20_000, "{words}");
}

/// Files of known hosts, which are written by many hands and programs: a key that does not stand in them is never known, and
/// one that is revoked is revoked whatever else they say.
///
/// # Panics
/// Where that is not so.
pub fn known_hosts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for (algorithm, seed) in [("ssh-ed25519", b'a'), ("ssh-rsa", b'b')] {
        let key = key(algorithm, seed);
        let encoded = STANDARD.encode(&key.blob);
        let revoking = format!("{text}\n@revoked * {algorithm} {encoded}\n");
        for (host, port) in [("web1", 22), ("web1", 2222), ("10.0.0.7", 22), ("fe80::1%eth0", 22), ("", 22)] {
            let host = HostName::new(host, port);
            let known = KnownHosts::of_text(&text);
            let verdict = known.check(&host, &key);
            assert!(!matches!(verdict, Verdict::Known(_)) || text.contains(&encoded), "{verdict:?}");
            let _ = known.algorithms(&host);
            assert!(known.authority(&host, &key).is_none() || text.contains(&encoded));
            let verdict = KnownHosts::of_text(&revoking).check(&host, &key);
            assert!(matches!(verdict, Verdict::Revoked { .. }), "{verdict:?}");
        }
    }
}

/// Lists of revoked keys and key revocation lists: they are understood or refused, and what is understood still revokes a key
/// that is added at the end.
///
/// # Panics
/// Where that is not so.
pub fn revoked_keys(data: &[u8]) {
    if let Some(key) = HostKey::from_blob(data.to_vec()) {
        let _ = (key.plain(), key.rsa_bits());
    }
    let Ok(revoked) = RevokedKeys::of_bytes(data) else { return };
    let key = key("ssh-ed25519", b'a');
    let certificate = HostCertificate {
        key: key.clone(),
        authority: self::key("ssh-rsa", b'b'),
        signed_with: "rsa-sha2-512".into(),
        for_host: true,
        principals: vec!["web1".into()],
        valid_after: 0,
        valid_before: u64::MAX,
        critical_options: Vec::new(),
        serial: 7,
        key_id: "web1".into(),
    };
    let _ = revoked.find(&key, Some(&certificate));
    let mut more = data.to_vec();
    if data.starts_with(b"SSHKRL\n\0") {
        let length = key.blob.len() as u32;
        more.push(2);
        more.extend((length + 4).to_be_bytes());
        more.extend(length.to_be_bytes());
        more.extend(&key.blob);
    } else {
        more.extend(format!("\n{} {}\n", key.algorithm, key.base64()).bytes());
    }
    let revoked = RevokedKeys::of_bytes(&more).expect("what was understood is, with one key more");
    assert!(revoked.find(&key, None).is_some());
}

/// A key that stands in the corpus.
fn key(algorithm: &str, seed: u8) -> HostKey {
    let mut blob = (algorithm.len() as u32).to_be_bytes().to_vec();
    blob.extend_from_slice(algorithm.as_bytes());
    blob.extend_from_slice(&[0, 0, 0, 4, seed, seed, seed, seed]);
    HostKey { algorithm: algorithm.into(), blob }
}

/// An allowed signers file, and after a NUL a signature: a key is believed only if it stands in the file, and a signature for no other
/// content than it was made for.
///
/// # Panics
/// Where that is not so.
pub fn signers(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let verified = |text: &str, content: &[u8], signature: &[u8]| {
        let signers = AllowedSigners::parse(Path::new("signers"), text);
        signers.verify(crate::manifest::NAMESPACE, content, signature, SystemTime::UNIX_EPOCH)
    };
    let key = SIGNER.split(' ').next_back().unwrap_or_default();
    match verified(&text, b"hello\n", SIGNATURE.as_bytes()) {
        Ok(signer) => assert!(text.contains(key) && signer.line <= text.lines().count()),
        Err(problem) => assert!(problem.to_string().len() < 2_000, "{problem}"),
    }
    let Some(signature) = parts.next() else { return };
    let problem = verified(&format!("me {SIGNER}"), b"other", signature).expect_err("another content");
    assert!(problem.to_string().len() < 2_000, "{problem}");
}

/// A user's configuration: what it says is understood, or refused with the line; and what was said first stands.
///
/// # Panics
/// Where that is not so.
pub fn ssh_config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // Other files of this machine are not to be had.
    if text.to_lowercase().contains("include") {
        return;
    }
    for host in ["web1", "db.example.org"] {
        let file = |text: String| ConfigFile { path: "/config".into(), text, of_user: true };
        let query = Query { host, local_user: Some("me"), ..Query::default() };
        if let Err(error) = lookup(&[file(text.to_string())], &query, &Nowhere) {
            assert!((1..=text.split('\n').count()).contains(&error.line), "{error}");
        }
        if let Ok(found) = lookup(&[file(format!("User first\n{text}"))], &query, &Nowhere) {
            assert_eq!(found.user.as_deref(), Some("first"));
        }
    }
}

/// A machine that runs nothing and knows no names.
struct Nowhere;

impl World for Nowhere {
    fn variable(&self, _: &str) -> Option<std::ffi::OsString> {
        None
    }

    fn host_name(&self) -> Option<String> {
        Some("nowhere.example.org".into())
    }

    fn user_id(&self) -> u32 {
        1000
    }

    fn home_of(&self, _: &str) -> Option<std::path::PathBuf> {
        None
    }

    fn succeeds(&self, command: &str) -> std::io::Result<bool> {
        Ok(command.len().is_multiple_of(2))
    }

    fn resolves(&self, name: &str, _: AddressFamily) -> bool {
        name.len().is_multiple_of(2)
    }

    fn addresses(&self) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()])
    }
}

/// A list of steps: it is understood, or every problem with it is told.
///
/// # Panics
/// Where that is not so.
#[cfg(feature = "apply")]
pub fn apply(data: &[u8]) {
    use crate::apply::{StepList, Variables};
    let text = String::from_utf8_lossy(data);
    match StepList::parse(&text, Path::new("/nonexistent/steps.yaml"), &Variables::new()) {
        Ok(list) => {
            assert!(!list.steps().is_empty());
            assert_eq!(list.plan().len(), list.steps().len());
        }
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
}

#[cfg(test)]
type Target = fn(&[u8]);

/// What the tests replay.
#[cfg(test)]
const TARGETS: &[(&str, Target)] = &[
    ("session", session),
    ("known_hosts", known_hosts),
    ("signers", signers),
    ("revoked_keys", revoked_keys),
    ("ssh_config", ssh_config),
    #[cfg(feature = "apply")]
    ("apply", apply),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuzzing_found_stays_mended() {
        for (name, target) in TARGETS {
            let directory: std::path::PathBuf =
                [env!("CARGO_MANIFEST_DIR"), "../fuzz/corpus", name].iter().collect();
            let files: Vec<_> =
                std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!files.is_empty(), "{} is empty", directory.display());
            for file in files {
                target(&std::fs::read(file).unwrap());
            }
        }
    }
}
