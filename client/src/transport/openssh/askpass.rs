//! How ssh(1) gets passwords from us: it starts a helper program for each question (`SSH_ASKPASS`), and the helper asks
//! us over a socket that only this user can reach. A secret is never in an argument, the environment or a file.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use zeroize::Zeroizing;

use crate::secret::{Question, Secret, Secrets};

/// The variable by which the helper finds the socket.
pub(super) const SOCKET: &str = "SORTIE_ASKPASS_SOCKET";
/// Longest question and answer, in bytes.
const LONGEST: u64 = 64 * 1024;
/// Questions that one connection may ask. Three of each kind are usual.
const QUESTIONS: u32 = 16;

/// In the helper: whether this process was started to answer a question of ssh, and the answer. Call it before
/// anything else; with `Some` print the answer and a newline to standard output and exit with 0, or with 1 for an error.
#[must_use]
pub fn answer() -> Option<io::Result<Secret>> {
    let socket = std::env::var_os(SOCKET)?;
    // Set for what is no question for a secret: to confirm something, or to touch a security key.
    if std::env::var_os("SSH_ASKPASS_PROMPT").is_some() {
        return Some(Err(io::ErrorKind::Unsupported.into()));
    }
    let question = std::env::args_os().nth(1).unwrap_or_default();
    Some(ask(Path::new(&socket), question.to_string_lossy().as_bytes()))
}

fn ask(socket: &Path, question: &[u8]) -> io::Result<Secret> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(question)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Large enough that it is not copied about in memory while it grows.
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    stream.take(LONGEST).read_to_end(&mut answer)?;
    // An empty password is one too, so its presence is told apart.
    let Some((b'+', secret)) = answer.split_first() else { return Err(io::ErrorKind::NotFound.into()) };
    let text = String::from_utf8(secret.to_vec()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Secret::new(text))
}

/// Where helpers ask. Closed, and its socket removed, when dropped.
pub(crate) struct Desk {
    directory: PathBuf,
    serving: AbortHandle,
}

impl Desk {
    /// `login` is who is logged in, as ssh says it in its questions.
    pub(super) fn open(secrets: Arc<dyn Secrets>, login: String, asked: Arc<AtomicBool>) -> io::Result<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = std::env::temp_dir().join(format!("sortie-{name}"));
        // Fails on whatever is there already, links too.
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let bound = fs::metadata(&directory)
            .and_then(|made| Ok((UnixListener::bind(directory.join("ask"))?, made.uid())));
        let (listener, owner) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(error);
            }
        };
        let answering = Answering { secrets, login, asked };
        let serving = tokio::spawn(async move {
            let mut seen = Seen::default();
            for _ in 0..QUESTIONS {
                let Ok((stream, _)) = listener.accept().await else { return };
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == owner) {
                    // Who goes away without an answer does not want it.
                    let _ = answering.serve(stream, &mut seen).await;
                }
            }
        });
        Ok(Self { directory, serving: serving.abort_handle() })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("ask")
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Answering {
    secrets: Arc<dyn Secrets>,
    login: String,
    asked: Arc<AtomicBool>,
}

/// What was asked for already.
#[derive(Default)]
struct Seen {
    passwords: u32,
    prompts: u32,
    passphrases: Vec<PathBuf>,
}

impl Answering {
    async fn serve(&self, stream: UnixStream, seen: &mut Seen) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut question = Vec::new();
        read.take(LONGEST).read_to_end(&mut question).await?;
        let question = String::from_utf8_lossy(&question).into_owned();
        let answer = self.answer(&question, seen).await;
        let Some(answer) = answer else { return write.write_all(b"-").await };
        if !self.secrets.unattended() {
            self.asked.store(true, Ordering::Relaxed);
        }
        write.write_all(b"+").await?;
        write.write_all(answer.expose().as_bytes()).await
    }

    /// Questions of other logins, a bastion's on the way, and those that are not known are not answered.
    async fn answer(&self, text: &str, seen: &mut Seen) -> Option<Secret> {
        let (user, host) = self.login.split_once('@')?;
        // The server's own words come behind `(user@host) `, so none of them can pass for one of the others.
        if let Some(prompt) = text.strip_prefix(&format!("({}) ", self.login)) {
            seen.prompts += 1;
            let (instructions, echo, attempt) = ("", false, seen.prompts);
            return self
                .secrets
                .ask(Question::Prompt { user, host, instructions, prompt, echo, attempt })
                .await;
        }
        if text == format!("{}'s password: ", self.login) {
            seen.passwords += 1;
            return self.secrets.ask(Question::Password { user, host, attempt: seen.passwords }).await;
        }
        let file = text.strip_prefix("Enter passphrase for key '")?.strip_suffix("': ")?;
        let file = Path::new(file);
        seen.passphrases.push(file.to_owned());
        let attempt = seen.passphrases.iter().filter(|asked| *asked == file).count();
        self.secrets
            .ask(Question::Passphrase { file, attempt: u32::try_from(attempt).unwrap_or(u32::MAX) })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::FixedSecrets;

    fn desk() -> Desk {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let secrets = FixedSecrets { password: secret("word"), passphrase: secret("phrase") };
        Desk::open(Arc::new(secrets), "me@web1".into(), Arc::default()).unwrap()
    }

    async fn ask_desk(desk: &Desk, question: &str) -> Option<String> {
        let (socket, question) = (desk.socket(), question.to_owned());
        let asked = tokio::task::spawn_blocking(move || ask(&socket, question.as_bytes()));
        asked.await.unwrap().ok().map(|secret| secret.expose().to_owned())
    }

    #[tokio::test]
    async fn questions_of_the_login_are_answered_and_no_others() {
        let desk = desk();
        for (question, answer) in [
            ("me@web1's password: ", Some("word")),
            ("me@bastion's password: ", None),
            ("(me@web1) Password: ", Some("word")),
            ("(me@web1) Enter passphrase for key '/k': ", None),
            ("(me@bastion) Password: ", None),
            ("Enter passphrase for key '/k': ", Some("phrase")),
            ("Enter PIN for ED25519-SK key /k: ", None),
            ("Are you sure you want to continue connecting (yes/no/[fingerprint])? ", None),
            ("", None),
        ] {
            assert_eq!(ask_desk(&desk, question).await.as_deref(), answer, "{question}");
        }
    }

    #[tokio::test]
    async fn a_desk_is_private_and_leaves_nothing() {
        let desk = desk();
        let directory = desk.socket().parent().unwrap().to_owned();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        drop(desk);
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn questions_without_end_are_not_answered_without_end() {
        let desk = desk();
        for _ in 0..QUESTIONS {
            let _ = ask_desk(&desk, "?").await;
        }
        assert!(ask_desk(&desk, "Enter passphrase for key '/k': ").await.is_none());
    }
}
