//! Whoever signs commands, by the words of docs/PROTOCOL.md alone: nothing of the client's own signing is used.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::HashAlg;
use russh::keys::ssh_key::private::Ed25519Keypair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) struct Signer {
    key: PrivateKey,
    number: u64,
}

impl Signer {
    /// The key of this seed.
    pub(crate) fn new(seed: u8) -> Self {
        Self { key: Ed25519Keypair::from_seed(&[seed; 32]).into(), number: 0 }
    }

    /// The public key as `--trust` takes it.
    pub(crate) fn hex(&self) -> String {
        let bytes = self.key.public_key().key_data().ed25519().map(|key| key.0).unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The public key as authorized_keys has it.
    pub(crate) fn line(&self) -> Result<String> {
        Ok(self.key.public_key().to_openssh()?)
    }

    /// What is to be signed to have a CMD run in the session of this READY.
    pub(crate) fn statement(&mut self, ready: &Value, command: &Value) -> Value {
        self.number += 1;
        json!({
            "session": ready["data"]["session"],
            "nonce": ready["data"]["nonce"],
            "number": self.number,
            "command": command["data"],
        })
    }

    /// The frame of a statement.
    pub(crate) fn sign(&self, statement: &Value) -> Result<Value> {
        let text = statement.to_string();
        let signature = self.key.sign("sortie-command", HashAlg::Sha512, text.as_bytes())?;
        let line = self.line()?;
        let key = line.split(' ').nth(1).unwrap_or_default();
        let signature = STANDARD.encode(signature.signature_bytes());
        Ok(json!({"type": "SIGNED", "data": {"text": text, "key": key, "signature": signature}}))
    }

    /// A CMD, signed.
    pub(crate) fn signed(&mut self, ready: &Value, command: &Value) -> Result<Value> {
        let statement = self.statement(ready, command);
        self.sign(&statement)
    }

    /// A CMD with its whole input, signed.
    pub(crate) fn with_input(&mut self, ready: &Value, command: &Value, input: &[u8]) -> Result<Value> {
        let mut statement = self.statement(ready, command);
        let digest: String = Sha256::digest(input).iter().map(|byte| format!("{byte:02x}")).collect();
        statement["input"] = json!({"sha256": digest, "bytes": input.len()});
        self.sign(&statement)
    }
}
