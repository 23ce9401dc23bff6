//! Signing, held against what ssh-keygen(1) made of the same words, and against what must not be signed.

use super::*;
use crate::secret::{FixedSecrets, NoSecrets, Secret};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use sortie_protocol::ControllerMessage;
use sortie_protocol::message::HostFacts;
use std::os::unix::fs::OpenOptionsExt as _;

/// RFC 8032 §7.1, TEST 1.
const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
    0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];

fn private() -> PrivateKey {
    Ed25519Keypair::from_seed(&SEED).into()
}

fn write(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn signer(directory: &Path) -> Signer {
    let file = directory.join("key");
    write(&file, &private().to_openssh(LineEnding::LF).unwrap());
    Signer::new(&file, None, Arc::new(NoSecrets)).unwrap()
}

fn ready() -> Ready {
    let host = HostFacts { hostname: "web1".into(), user: "root".into(), ..HostFacts::default() };
    Ready {
        session: "0123456789abcdef0123456789abcdef".into(),
        nonce: "fedcba9876543210fedcba9876543210".into(),
        host: Some(host),
        ..Ready::default()
    }
}

/// The frame of the golden vectors, which ssh-keygen signed.
fn vector() -> Signed {
    let vectors = include_str!("../../protocol/vectors/controller.ndjson");
    let line = vectors.lines().find(|line| line.starts_with("{\"type\":\"SIGNED\"")).unwrap();
    match ControllerMessage::parse(line.as_bytes()).unwrap() {
        ControllerMessage::Signed(signed) => signed,
        other => panic!("{other:?}"),
    }
}

async fn sign(signer: &Signer, said: Said<'_>) -> Result<Signed, SigningError> {
    signer.sign(&ready(), said, |signed| async { signed }).await
}

#[tokio::test]
async fn the_signature_is_the_one_that_ssh_keygen_makes() {
    let directory = tempfile::tempdir().unwrap();
    let signer = signer(directory.path());
    assert_eq!(signer.public()[..4], [0xd7, 0x5a, 0x98, 0x01]);
    assert_eq!(signer.authorized(), format!("ssh-ed25519 {}", vector().key));
    let mut state = signer.state.lock().await;
    let signature = signer.signature(&mut state, &vector().text).await.unwrap();
    assert_eq!(STANDARD.encode(signature), vector().signature);
}

#[tokio::test]
async fn a_statement_names_session_host_and_login_and_its_number_rises() {
    let directory = tempfile::tempdir().unwrap();
    let signer = signer(directory.path());
    let command = Statement::parse(&vector().text).unwrap().command.unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let signed = sign(&signer, Said::Command(&command, Some(b"to be written\n"))).await.unwrap();
        let statement = Statement::parse(&signed.text).unwrap();
        let expected = Statement::parse(&vector().text).unwrap();
        assert!(statement.number > last);
        assert!(statement.number < 1 << 53, "exact in every JSON");
        last = statement.number;
        let same = Statement { number: expected.number, ..statement };
        assert_eq!(serde_json::to_string(&same).unwrap(), vector().text);
    }
    let signed = sign(&signer, Said::Confirm("cmd-1")).await.unwrap();
    assert_eq!(Statement::parse(&signed.text).unwrap().confirm, "cmd-1");
}

#[tokio::test]
async fn more_input_than_a_runner_holds_is_not_signed() {
    let directory = tempfile::tempdir().unwrap();
    let signer = signer(directory.path());
    let command = Statement::parse(&vector().text).unwrap().command.unwrap();
    let input = vec![0; 6 * 1024 * 1024 + 1];
    let error = sign(&signer, Said::Command(&command, Some(&input))).await.unwrap_err();
    assert!(error.to_string().contains("at most 6291456 bytes"), "{error}");
}

#[tokio::test]
async fn an_encrypted_key_takes_its_passphrase_when_it_signs() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    let (cipher, kdf) = (
        russh::keys::ssh_key::Cipher::Aes256Ctr,
        russh::keys::ssh_key::Kdf::Bcrypt { salt: vec![7; 16], rounds: 1 },
    );
    let key = private().encrypt_with(cipher, kdf, 1, "open sesame").unwrap();
    write(&file, &key.to_openssh(LineEnding::LF).unwrap());
    for (passphrase, expected) in [
        (Some("open sesame"), None),
        (Some("open barley"), Some("passphrase is wrong")),
        (None, Some("needs a passphrase")),
    ] {
        let passphrase = passphrase.map(|text| Secret::new(text.to_owned()));
        let secrets = FixedSecrets { passphrase, password: None };
        let signer = Signer::new(&file, None, Arc::new(secrets)).unwrap();
        let result = sign(&signer, Said::Confirm("a")).await;
        match expected {
            None => assert!(result.is_ok(), "{result:?}"),
            Some(part) => {
                let said = result.unwrap_err().to_string();
                assert!(said.contains(part) && !said.contains("barley"), "{said}");
            }
        }
    }
}

#[test]
fn what_is_no_key_to_sign_with_is_refused_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let (missing, text) = (directory.path().join("missing"), directory.path().join("text"));
    write(&text, "nothing that is a key\n");
    for (file, part) in [(missing, "No such file"), (text, "not a private key")] {
        let error = Signer::new(&file, None, Arc::new(NoSecrets)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains("nothing that is"), "{error}");
    }
}

#[tokio::test]
async fn a_public_key_alone_takes_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.pub");
    write(&file, &private().public_key().to_openssh().unwrap());
    let signer = Signer::new(&file, None, Arc::new(NoSecrets)).unwrap();
    let error = sign(&signer, Said::Confirm("a")).await.unwrap_err().to_string();
    assert!(error.contains("there is no agent"), "{error}");
    let gone = directory.path().join("socket");
    let signer = Signer::new(&file, Some(&gone), Arc::new(NoSecrets)).unwrap();
    let error = sign(&signer, Said::Confirm("a")).await.unwrap_err().to_string();
    assert!(error.contains("the agent at"), "{error}");
}

#[test]
fn trusted_keys_are_a_line_each_and_a_wrong_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let line = private().public_key().to_openssh().unwrap();
    let good = directory.path().join("good");
    write(&good, &format!("# who may command\n\n{line} deploy@example\n"));
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert_eq!(trusted_keys(&good).unwrap(), [key]);
    for (name, text, part) in [
        ("wrong", format!("{line}\nssh-rsa AAAA\n"), "line 2: expected ssh-ed25519"),
        ("empty", "# nobody\n".to_owned(), "no key"),
    ] {
        let file = directory.path().join(name);
        write(&file, &text);
        let error = trusted_keys(&file).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
