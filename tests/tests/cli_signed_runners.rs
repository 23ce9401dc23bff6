//! Whose runners are sent: `--require-signed-runners` beside what `ssh-keygen -Y verify` says of the same files, and what the command
//! does when the listing, the signature or a runner is not what was signed.

mod cli_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Result, ensure};
use cli_support::{Ended, sortie};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sortie_client::AllowedSigners;
use sortie_client::manifest::NAMESPACE;
use sortie_tests::runner;
use tempfile::TempDir;

const SIGNER: &str = "release@example.org";

/// A key made by ssh-keygen for one test.
struct Key {
    private: PathBuf,
    /// Type and content, as a line of a file has them.
    public: String,
}

fn keygen() -> Command {
    let mut command = Command::new("ssh-keygen");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Key {
    fn new(directory: &Path, kind: &str, bits: &str) -> Result<Self> {
        let private = directory.join(format!("{kind}-{bits}"));
        let made = keygen().args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"]).arg(&private).status()?;
        ensure!(made.success(), "no key of kind {kind}");
        let public = fs::read_to_string(private.with_extension("pub"))?;
        let public = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
        Ok(Self { private, public: public.trim().to_owned() })
    }

    /// Signs a file; the signature is beside it.
    fn sign(&self, namespace: &str, file: &Path) -> Result<PathBuf> {
        let signature = PathBuf::from(format!("{}.sig", file.display()));
        let _ = fs::remove_file(&signature);
        let mut sign = keygen();
        sign.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(&self.private).arg(file);
        ensure!(sign.status()?.success(), "not signed");
        Ok(signature)
    }
}

/// What ssh-keygen says of it.
fn by_ssh_keygen(signers: &Path, message: &Path, signature: &Path) -> Result<bool> {
    let mut verify = keygen();
    verify.args(["-Y", "verify", "-I", SIGNER, "-n", NAMESPACE, "-f"]).arg(signers).arg("-s").arg(signature);
    Ok(verify.stdin(fs::File::open(message)?).status()?.success())
}

/// What the client says of it.
fn by_client(signers: &Path, message: &Path, signature: &Path) -> Result<Result<(), String>> {
    let (message, signature) = (fs::read(message)?, fs::read(signature)?);
    let verified = AllowedSigners::load(signers).map_err(|error| error.to_string()).and_then(|s| {
        s.verify(NAMESPACE, &message, &signature, SystemTime::now()).map_err(|e| e.to_string())
    });
    Ok(verified.map(drop))
}

/// Stricter, on purpose: a time that means another moment on each machine, and a key that is too small.
const STRICTER: [&str; 2] = ["valid-before=\"20990101\"", "rsa 1024: plain"];

#[tokio::test]
async fn no_signature_is_believed_that_ssh_keygen_refuses() -> Result<()> {
    sortie_tests::require_programs!("ssh-keygen");
    let directory = TempDir::new()?;
    let at = |name: &str| directory.path().join(name);
    let mut cases: Vec<(String, String, PathBuf, PathBuf)> = Vec::new();
    fs::write(at("message"), "what was signed\n")?;
    fs::write(at("other"), "what was signed\n\n")?;
    for (kind, bits) in [
        ("ed25519", "256"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
        ("rsa", "2048"),
        ("rsa", "1024"),
    ] {
        let key = Key::new(directory.path(), kind, bits)?;
        let signature = at(&format!("{kind}-{bits}.sig"));
        fs::rename(key.sign(NAMESPACE, &at("message"))?, &signature)?;
        let elsewhere = at(&format!("{kind}-{bits}.file.sig"));
        fs::rename(key.sign("file", &at("message"))?, &elsewhere)?;
        let line = |options: &str| format!("{SIGNER} {options}{}\n", key.public);
        let name = |what: &str| format!("{kind} {bits}: {what}");
        cases.push((name("plain"), line(""), at("message"), signature.clone()));
        cases.push((name("other content"), line(""), at("other"), signature.clone()));
        cases.push((name("other use"), line(""), at("message"), elsewhere));
        if kind != "ed25519" {
            continue;
        }
        for options in [
            "namespaces=\"sortie-runners\"",
            "namespaces=\"file,sortie-*\"",
            "NAMESPACES=\"sortie-runners\"",
            "namespaces=\"file\"",
            "namespaces=\"*,!sortie-runners\"",
            "valid-after=\"20200101Z\"",
            "valid-after=\"20990101Z\"",
            "valid-before=\"20990101Z\"",
            "valid-before=20990101Z",
            "valid-before=\"20990101\"",
            "valid-after=\"20200101Z\",valid-after=\"20200102Z\"",
            "valid-before=\"20200101Z\"",
            "valid-after=\"202001010101Z\",valid-before=\"20990101010101Z\",namespaces=\"sortie-runners\"",
            "valid-before=\"soon\"",
            "valid-before=\"20991301Z\"",
            "cert-authority",
            "no-such-option",
            "namespaces=\"sortie-runners",
        ] {
            cases.push((options.into(), line(&format!("{options} ")), at("message"), signature.clone()));
        }
        let whole = line("");
        let comment = format!("# {whole}");
        let second = format!("\n# who makes releases\n{SIGNER} namespaces=\"file\" {}\n{whole}", key.public);
        let spaces = whole.replace(' ', "  ");
        let cut = whole[..whole.len() / 2].to_owned();
        for (what, line) in [
            ("comment", comment),
            ("second line", second),
            ("two blanks", spaces),
            ("cut key", cut),
            ("nothing", String::new()),
        ] {
            cases.push((what.into(), line, at("message"), signature.clone()));
        }
        for (what, change) in [("cut", ""), ("changed", "A")] {
            let text = fs::read_to_string(&signature)?;
            let (head, tail) = text.split_at(text.len() / 2);
            let file = at(&format!("{what}.sig"));
            fs::write(
                &file,
                if change.is_empty() { head.to_owned() } else { format!("{head}{change}{}", &tail[1..]) },
            )?;
            cases.push((format!("{what} signature"), line(""), at("message"), file));
        }
    }
    let mut believed = 0;
    for (what, line, message, signature) in cases {
        let signers = at("signers");
        fs::write(&signers, &line)?;
        let (theirs, ours) =
            (by_ssh_keygen(&signers, &message, &signature)?, by_client(&signers, &message, &signature)?);
        let shown = ours.as_ref().map_or_else(String::clone, |()| "believed".to_owned());
        println!("{what:<90} ssh-keygen: {:<9} sortie: {shown}", if theirs { "believed" } else { "refused" });
        let stricter = theirs && STRICTER.contains(&what.as_str());
        assert_eq!(ours.is_ok(), theirs && !stricter, "{what}: {ours:?}");
        believed += usize::from(ours.is_ok());
    }
    assert!(believed > 10, "only {believed} were believed at all");
    Ok(())
}

/// A directory with the runner under test and a signed listing of it, and who may sign.
struct Signed {
    directory: TempDir,
    runner: PathBuf,
    key: Key,
    signers: PathBuf,
}

impl Signed {
    fn new(version: &str) -> Result<Self> {
        let directory = TempDir::new()?;
        let binary = runner::binary()?;
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let runner = directory.path().join(&name);
        let bytes = fs::read(&binary)?;
        fs::write(&runner, &bytes)?;
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let target = name.trim_start_matches("sortie-runner-");
        let listing = json!({
            "version": version,
            "runners": [{"target": target, "file": name, "sha256": sha256, "size": bytes.len()}],
        });
        fs::write(directory.path().join("runners.json"), listing.to_string())?;
        let key = Key::new(directory.path(), "ed25519", "256")?;
        key.sign(NAMESPACE, &directory.path().join("runners.json"))?;
        let signers = directory.path().join("signers");
        fs::write(&signers, format!("{SIGNER} namespaces=\"{NAMESPACE}\" {}\n", key.public))?;
        Ok(Self { directory, runner, key, signers })
    }

    /// `sortie exec` on this machine, which makes the file `ran`.
    async fn exec(&self) -> Result<Ended> {
        sortie("exec")
            .args(["--local", "--runners"])
            .arg(self.directory.path())
            .arg("--require-signed-runners")
            .arg(&self.signers)
            .args(["--", "touch"])
            .arg(self.directory.path().join("ran"))
            .run()
            .await
    }

    fn ran(&self) -> bool {
        self.directory.path().join("ran").exists()
    }

    /// Nothing was run, and the command says why.
    async fn is_refused(&self, words: &[&str]) -> Result<()> {
        self.exec().await?.ended_with(255).says(words);
        assert!(!self.ran(), "it ran all the same");
        Ok(())
    }
}

const OWN: &str = env!("CARGO_PKG_VERSION");

#[tokio::test]
async fn a_signed_runner_is_sent_and_its_signer_shown() -> Result<()> {
    let signed = Signed::new(OWN)?;
    signed.exec().await?.fine();
    assert!(signed.ran());
    let shown = sortie("runners").arg("--runners").arg(signed.directory.path()).arg("--json");
    let shown = shown.arg("--require-signed-runners").arg(&signed.signers).run().await?.fine();
    let last = shown.events().pop().unwrap_or_default();
    assert_eq!((&last["event"], &last["signer"]), (&json!("runners_signed"), &json!(SIGNER)), "{last}");
    assert_eq!(last["version"], OWN);
    Ok(())
}

#[tokio::test]
async fn what_is_not_signed_as_it_is_there_runs_nowhere() -> Result<()> {
    let signed = Signed::new(OWN)?;
    let listing = signed.directory.path().join("runners.json");
    let signature = signed.directory.path().join("runners.json.sig");

    // A runner with one byte more, which works as well as any.
    let bytes = fs::read(&signed.runner)?;
    fs::write(&signed.runner, [&bytes[..], b"\0"].concat())?;
    signed.is_refused(&["not one that runners.json lists"]).await?;
    // The listing made to fit it.
    let text = fs::read_to_string(&listing)?;
    fs::write(&listing, text.replace(&bytes.len().to_string(), &(bytes.len() + 1).to_string()))?;
    signed.is_refused(&["not believed", "changed after signing"]).await?;
    // And signed by somebody else.
    let other = TempDir::new()?;
    Key::new(other.path(), "ed25519", "256")?.sign(NAMESPACE, &listing)?;
    signed.is_refused(&["not believed", "no line of", "SHA256:"]).await?;
    // By the right one, for another use.
    signed.key.sign("file", &listing)?;
    signed.is_refused(&["not believed", "the use \"file\""]).await?;
    fs::remove_file(&signature)?;
    signed.is_refused(&["runners.json.sig", "--sign-with"]).await
}

#[tokio::test]
async fn an_older_set_of_runners_is_refused_although_it_is_signed() -> Result<()> {
    Signed::new("0.0.1")?.is_refused(&["0.0.1", "older than", OWN]).await
}

#[tokio::test]
async fn a_list_of_signers_that_holds_none_is_a_wrong_usage() -> Result<()> {
    let signed = Signed::new(OWN)?;
    fs::write(&signed.signers, "# nobody\n")?;
    signed.exec().await?.ended_with(2).says(&["--require-signed-runners", "no line of it"]);
    fs::remove_file(&signed.signers)?;
    signed.exec().await?.ended_with(2).says(&["--require-signed-runners", "No such file"]);
    Ok(())
}
