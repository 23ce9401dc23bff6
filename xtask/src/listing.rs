//! What `dist` says of the runners that it made: `runners.json`, and its signature beside it. What reads both is the client's
//! `manifest`; nothing here builds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process;
use crate::workspace::Workspace;

const LISTING: &str = "runners.json";
const SIGNATURE: &str = "runners.json.sig";
/// What the signature is for: the client takes no other.
const NAMESPACE: &str = "sortie-runners";

/// A finished runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) target: String,
    pub(crate) file: String,
    pub(crate) sha256: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes as the command packs it: what an upload costs.
    pub(crate) gzip_size: u64,
    /// The way it was built.
    pub(crate) built: String,
    pub(crate) rustc: String,
    /// What ran it to see it answer; absent where this machine could not.
    pub(crate) answered: Option<String>,
    /// What it was made of; absent where nobody asked.
    #[serde(default)]
    pub(crate) sbom: Option<Sbom>,
}

/// A description of what a runner was made of: CycloneDX 1.5.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sbom {
    pub(crate) file: String,
    pub(crate) sha256: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Listing {
    /// Of the workspace, and so of every runner: the client takes none of an older version.
    version: String,
    runners: Vec<Made>,
}

/// Lists these runners and those of earlier runs that still lie there unchanged. A signature of anything else is removed.
pub(crate) fn write(workspace: &Workspace, directory: &Path, made: &[Made]) -> Result<()> {
    write_listing(workspace.version()?, directory, made)
}

fn write_listing(version: &str, directory: &Path, made: &[Made]) -> Result<()> {
    let path = directory.join(LISTING);
    let before = fs::read(&path).unwrap_or_default();
    let earlier: Listing = serde_json::from_slice(&before).unwrap_or_default();
    let is =
        |file: &str, sha256: &str| fs::read(directory.join(file)).is_ok_and(|b| hex_digest(&b) == sha256);
    let is_there = |runner: &Made| {
        is(&runner.file, &runner.sha256) && runner.sbom.as_ref().is_none_or(|s| is(&s.file, &s.sha256))
    };
    let mut runners = made.to_vec();
    for runner in earlier.runners.into_iter().filter(|_| earlier.version == version) {
        if runners.iter().all(|m| m.file != runner.file) && is_there(&runner) {
            runners.push(runner);
        }
    }
    runners.sort_by(|a, b| a.file.cmp(&b.file));
    fs::create_dir_all(directory)?;
    let mut text = serde_json::to_vec_pretty(&Listing { version: version.to_owned(), runners })?;
    text.push(b'\n');
    if text != before {
        remove_signature(directory)?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn remove_signature(directory: &Path) -> Result<()> {
    let signature = directory.join(SIGNATURE);
    match fs::remove_file(&signature) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", signature.display()))
        }
        _ => Ok(()),
    }
}

/// Signs the listing by ssh-keygen(1), which asks for a passphrase, an agent or a security key where the key needs one. No key is ever made
/// here.
pub(crate) fn sign(directory: &Path, key: &Path) -> Result<()> {
    ensure!(key.exists(), "--sign-with {}: there is no such file, and no key is made up", key.display());
    let program = process::which("ssh-keygen").context(
        "--sign-with needs ssh-keygen\n  apt-get install -y --no-install-recommends openssh-client",
    )?;
    let (listing, signature) = (directory.join(LISTING), directory.join(SIGNATURE));
    // Else ssh-keygen asks whether to overwrite it.
    remove_signature(directory)?;
    let mut sign = process::command(&program);
    sign.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key).arg(&listing);
    process::run(&mut sign)?;
    let mut check = process::command(&program);
    check.args(["-q", "-Y", "check-novalidate", "-n", NAMESPACE, "-s"]).arg(&signature);
    check.stdin(fs::File::open(&listing)?);
    process::run(&mut check).with_context(|| format!("{} does not fit {LISTING}", signature.display()))?;
    println!("signed: {}", signature.display());
    Ok(())
}

/// SHA-256 as 64 hexadecimal digits.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::SystemTime;

    use sortie_client::{AllowedSigners, RunnerSet, SignedListing};

    use super::*;

    const VERSION: &str = env!("CARGO_PKG_VERSION");
    const TARGET: &str = "x86_64-unknown-linux-musl";

    /// A directory with one runner, which is none, and what lists it.
    fn directory() -> (tempfile::TempDir, Made) {
        let directory = tempfile::tempdir().unwrap();
        let file = format!("sortie-runner-{TARGET}");
        fs::write(directory.path().join(&file), "a runner").unwrap();
        let made = Made {
            target: TARGET.into(),
            file,
            sha256: hex_digest(b"a runner"),
            size: 8,
            gzip_size: 28,
            built: "by hand".into(),
            rustc: "1.0.0".into(),
            answered: None,
            sbom: None,
        };
        write_listing(VERSION, directory.path(), std::slice::from_ref(&made)).unwrap();
        (directory, made)
    }

    /// A key for one test; the allowed signers file with it.
    fn key(directory: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
        let (key, signers) = (directory.join("key"), directory.join("signers"));
        let mut keygen = process::command("ssh-keygen");
        process::run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).unwrap();
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        fs::write(&signers, format!("release@example.org {public}")).unwrap();
        (key, signers)
    }

    fn by_client(directory: &Path, signers: &Path) -> Result<String> {
        let listing = SignedListing::from_dir(directory)?;
        let set = RunnerSet::from_dir(directory)?;
        Ok(listing.vouch(&set, &AllowedSigners::load(signers)?, SystemTime::now())?.version)
    }

    fn by_ssh_keygen(directory: &Path, signers: &Path) -> bool {
        let mut verify = process::command("ssh-keygen");
        verify.args(["-Y", "verify", "-I", "release@example.org", "-n", NAMESPACE, "-f"]).arg(signers);
        verify.arg("-s").arg(directory.join(SIGNATURE));
        verify.stdin(fs::File::open(directory.join(LISTING)).unwrap()).stdout(Stdio::null());
        verify.status().unwrap().success()
    }

    #[test]
    fn a_signed_listing_is_believed_by_ssh_keygen_and_by_the_client() {
        let ((directory, _), keys) = (directory(), tempfile::tempdir().unwrap());
        let (key, signers) = key(keys.path());
        let directory = directory.path();
        assert!(by_client(directory, &signers).unwrap_err().to_string().contains("--sign-with"));
        sign(directory, &key).unwrap();
        assert!(by_ssh_keygen(directory, &signers));
        assert_eq!(by_client(directory, &signers).unwrap(), VERSION);
        let text = fs::read_to_string(directory.join(LISTING)).unwrap();
        fs::write(directory.join(LISTING), text.replace("by hand", "by mend")).unwrap();
        assert!(!by_ssh_keygen(directory, &signers) && by_client(directory, &signers).is_err());
    }

    #[test]
    fn a_listing_that_changes_loses_its_signature_and_one_that_does_not_keeps_it() {
        let ((directory, mut made), keys) = (directory(), tempfile::tempdir().unwrap());
        let (key, _) = key(keys.path());
        let directory = directory.path();
        sign(directory, &key).unwrap();
        write_listing(VERSION, directory, std::slice::from_ref(&made)).unwrap();
        assert!(directory.join(SIGNATURE).exists(), "nothing had changed");
        made.built = "otherwise".into();
        write_listing(VERSION, directory, &[made]).unwrap();
        assert!(!directory.join(SIGNATURE).exists());
    }

    #[test]
    fn a_runner_of_another_version_or_content_is_not_listed_again() {
        let (directory, _) = directory();
        let listed = || fs::read_to_string(directory.path().join(LISTING)).unwrap().contains(TARGET);
        write_listing(VERSION, directory.path(), &[]).unwrap();
        assert!(listed());
        write_listing("99.0.0", directory.path(), &[]).unwrap();
        assert!(!listed());
    }

    #[test]
    fn no_key_is_made_up() {
        let (directory, _) = directory();
        let error = sign(directory.path(), Path::new("/no/such/key")).unwrap_err().to_string();
        assert!(error.contains("/no/such/key") && !directory.path().join(SIGNATURE).exists(), "{error}");
    }
}
