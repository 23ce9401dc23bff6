//! The exchange of keys against somebody in between who changes what is not protected yet (Terrapin, CVE-2023-48795), and
//! against servers that do not keep to what was agreed.

mod client_support;
mod kex_support;

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use client_support::{builder, refused, settings, target};
use kex_support::liar::{Liar, Lie};
use kex_support::middle::{Change, Middle};
use russh::keys::{HashAlg, PrivateKey};
use sortie_client::error::{Error, HostKeyProblem};
use sortie_client::observe::{Observer, Step, Unobserved};
use sortie_client::ssh_config::ConfigSource;
use sortie_client::transport::Launch;
use sortie_client::{Ssh, SshSettings, Target, Transport as _};
use sortie_tests::access::Access;
use sortie_tests::keys::KeyPair;
use sortie_tests::sshd::Sshd;
use sortie_tests::{require_programs, require_root, within};

const IGNORE: u8 = 2;
const UNIMPLEMENTED: u8 = 3;
const DEBUG: u8 = 4;
const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const KEX_REPLY: u8 = 31;

#[derive(Default)]
struct Seen(OnceLock<String>);

impl Observer for Seen {
    fn step_finished(&self, step: Step, _: Duration, _: u32, detail: &str) {
        if step == Step::KeyExchange {
            let _ = self.0.set(detail.to_owned());
        }
    }
}

/// Logs in and has something run, without a runner.
async fn log_in(target: &Target, ssh: &SshSettings, observer: &dyn Observer) -> Result<()> {
    let launch = Launch { line: "true".into(), argv: Vec::new() };
    Ok(Ssh::new(target, ssh)?.start(&launch, observer).await.map(drop)?)
}

async fn refusal(access: &Access, change: Change) -> Result<Error> {
    let middle = Middle::start(access.addr(), change).await?;
    let access = access.via(middle.port())?;
    within("a refusal", refused(builder(&access)?, &access)).await?
}

#[tokio::test]
async fn somebody_in_between_who_changes_nothing_is_not_noticed() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let middle = Middle::start(host.access().addr(), Change::Nothing).await?;
    let access = host.access().via(middle.port())?;
    let seen = Seen::default();
    log_in(&target(&access)?, &settings(&access), &seen).await?;
    let negotiated = seen.0.get().context("no key exchange was seen")?;
    assert!(negotiated.contains(", strict"), "{negotiated}");
    Ok(())
}

#[tokio::test]
async fn a_message_slipped_in_before_the_keys_are_exchanged_ends_the_connection() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    // What the attack needs is a message that is taken and forgotten: it shifts the numbers by which the first protected
    // messages could then be left out.
    let harmless: [&[u8]; 3] =
        [&[IGNORE, 0, 0, 0, 0], &[UNIMPLEMENTED, 0, 0, 0, 0], &[DEBUG, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
    for before in [KEXINIT, KEX_REPLY, NEWKEYS] {
        for message in harmless {
            let error = refusal(host.access(), Change::Insert { before, message: message.to_vec() }).await?;
            let what = format!("message {} before {before}: {error}", message[0]);
            assert!(matches!(&error, Error::Unreachable { step: Step::KeyExchange, .. }), "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn taking_the_servers_offer_of_strictness_away_ends_the_connection() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let name = "kex-strict-s-v00@openssh.com";
    let error = refusal(host.access(), Change::Hide { in_message: KEXINIT, name: name.into() }).await?;
    assert!(matches!(&error, Error::Unreachable { step: Step::KeyExchange, .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn strictness_is_offered_whatever_methods_are_configured() -> Result<()> {
    require_root!();
    require_programs!("sshd");
    let host = Sshd::builder().start()?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config");
    for methods in [
        "",
        "KexAlgorithms diffie-hellman-group16-sha512\n",
        "KexAlgorithms +ecdh-sha2-nistp256\n",
        "KexAlgorithms -curve25519*\n",
        "KexAlgorithms ^diffie-hellman-group14-sha256\n",
    ] {
        let middle = Middle::start(host.access().addr(), Change::Nothing).await?;
        let access = host.access().via(middle.port())?;
        fs::write(&config, methods)?;
        let ssh = SshSettings { config: ConfigSource::File(config.clone()), ..settings(&access) };
        log_in(&target(&access)?, &ssh, &Unobserved).await.context(methods)?;
        let offered = middle.offered().context("the client offered nothing")?;
        for name in ["ext-info-c", "kex-strict-c-v00@openssh.com"] {
            assert!(offered.iter().any(|offer| offer == name), "{methods:?}: {offered:?}");
        }
    }
    Ok(())
}

/// What comes of connecting to a server that offers one algorithm, and shows `key` and signs by it with `hash`.
async fn lied_to(offered: &'static str, key: &PrivateKey, hash: Option<HashAlg>) -> Result<Error> {
    let liar = Liar::start(Lie { offered, key: key.clone(), hash }).await?;
    let directory = tempfile::tempdir()?;
    let known_hosts = directory.path().join("known_hosts");
    fs::write(&known_hosts, format!("[127.0.0.1]:{} {}\n", liar.port(), key.public_key().to_openssh()?))?;
    let config = directory.path().join("config");
    // The key is known, so without this the server would be asked for its type alone.
    fs::write(&config, format!("HostKeyAlgorithms {offered},ssh-ed25519,rsa-sha2-512\n"))?;
    let ssh = SshSettings {
        config: ConfigSource::File(config),
        user_known_hosts: Some(vec![known_hosts]),
        global_known_hosts: Some(Vec::new()),
        connect_timeout: Some(Duration::from_secs(20)),
        ..SshSettings::default()
    };
    let target = Target::parse(&format!("nobody@127.0.0.1:{}", liar.port()))?;
    let client = sortie_client::Client::builder().ssh(ssh).build();
    let tried = within("an end", client.connect(&target)).await?;
    tried.map(drop).err().context("somebody logged in")
}

#[tokio::test]
async fn a_server_keeps_to_the_algorithm_that_it_agreed_on() -> Result<()> {
    require_programs!("ssh-keygen");
    let ed25519 = KeyPair::generate()?.private().clone();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rsa");
    let keygen = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", "rsa", "-b", "2048", "-f"])
        .arg(&file)
        .status()?;
    assert!(keygen.success());
    let rsa = PrivateKey::from_openssh(fs::read(&file)?)?;

    // Known keys, proved by good signatures, but not as agreed: a key of another type, and a signature with SHA-1.
    for (offered, key, hash) in [
        ("ecdsa-sha2-nistp256", &ed25519, None),
        ("ecdsa-sha2-nistp256", &rsa, Some(HashAlg::Sha512)),
        ("rsa-sha2-512", &ed25519, None),
        ("rsa-sha2-512", &rsa, None),
        ("rsa-sha2-512", &rsa, Some(HashAlg::Sha256)),
    ] {
        let error = lied_to(offered, key, hash).await?;
        let by = format!("{offered} offered, {} used with {hash:?}: {error}", key.algorithm());
        assert!(matches!(&error, Error::HostKey { problem: HostKeyProblem::NotAgreed { .. }, .. }), "{by}");
    }
    // The same server without a lie gets as far as the login, which it knows nothing of.
    for (offered, key, hash) in
        [("ssh-ed25519", &ed25519, None), ("rsa-sha2-512", &rsa, Some(HashAlg::Sha512))]
    {
        let error = lied_to(offered, key, hash).await?;
        assert_eq!(error.step(), Step::Authenticate, "{offered}: {error}");
    }
    Ok(())
}
