//! `sortie sign`: a READY and commands in, signed commands out, for somebody else to carry to a runner that takes no others.
//! It reaches no host.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use sortie_client::protocol::command::announces_input;
use sortie_client::protocol::message::{CommandMessage, Ready};
use sortie_client::protocol::signed::INPUT_LIMIT;
use sortie_client::protocol::time::Timestamp;
use sortie_client::protocol::{ControllerMessage, FrameDecoder, Line, RunnerMessage, text};
use sortie_client::signing::{Said, Signer};

use crate::outcome::usage;
use crate::secrets::Keyring;
use crate::source;
use crate::terminal::{Sink, harmless};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The ed25519 key: its file, or the file of its public half where an agent holds it
    #[arg(long, value_name = "KEY")]
    sign_with: PathBuf,
    /// Sign for this host only, by the name that READY gives it
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Sign for this login only, by the name that READY gives it
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Open an encrypted key with the passphrase in the first line of this file; <(…) works
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Never ask for anything
    #[arg(long)]
    batch: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let agent = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).map(PathBuf::from);
    let secrets = Keyring::for_keys(arguments.passphrase_file.as_deref(), arguments.batch)?;
    let signer = Signer::new(&arguments.sign_with, agent.as_deref(), std::sync::Arc::new(secrets))
        .map_err(|error| usage(error.to_string()))?;
    let mut desk =
        Desk { arguments, signer, ready: None, held: HashMap::new(), out: Sink::new(&io::stdout()) };
    let (mut pieces, mut decoder) = (source::stdin_pieces(), FrameDecoder::new());
    let mut number = 0_u64;
    loop {
        let piece = pieces.recv().await.transpose().context("cannot read standard input")?;
        decoder.push(piece.as_deref().unwrap_or_default());
        loop {
            let line = match decoder.next_line() {
                None if piece.is_none() => decoder.last_line(),
                line => line,
            };
            let Some(line) = line else { break };
            number += 1;
            let Line::Frame(line) = line else {
                bail!("frame {number} of standard input is over the frame limit")
            };
            let line = line.to_vec();
            desk.take(&line).await.with_context(|| format!("frame {number} of standard input"))?;
        }
        if piece.is_none() {
            break;
        }
    }
    desk.finish()
}

/// A command that is signed once its input is whole.
struct Held {
    command: CommandMessage,
    input: Vec<u8>,
    /// The INPUT frames as they came.
    lines: Vec<u8>,
}

struct Desk {
    arguments: Arguments,
    signer: Signer,
    ready: Option<Ready>,
    held: HashMap<String, Held>,
    out: Sink,
}

impl Desk {
    async fn take(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if self.ready.is_none() {
            return self.take_ready(line);
        }
        match ControllerMessage::parse(line).map_err(|rejected| anyhow!(shown(&rejected.message)))? {
            ControllerMessage::Command(command) if announces_input(&command.params) => {
                let id = command.id.clone();
                let held = Held { command: *command, input: Vec::new(), lines: Vec::new() };
                if self.held.insert(id, held).is_some() {
                    bail!("a command with the same id still waits for its input");
                }
                Ok(())
            }
            ControllerMessage::Command(command) => self.sign(Said::Command(&command, None)).await,
            ControllerMessage::Confirm(confirm) => self.sign(Said::Confirm(&confirm.command_id)).await,
            ControllerMessage::Input(input) => {
                let Some(held) = self.held.get_mut(&input.command_id) else {
                    bail!("INPUT for a command that asked for none");
                };
                held.input.extend(
                    text::decode(input.data, input.encoding).map_err(|_| anyhow!("no valid base64"))?,
                );
                held.lines.extend_from_slice(line);
                held.lines.push(b'\n');
                if held.input.len() as u64 > INPUT_LIMIT {
                    bail!("the input of a signed command is at most {INPUT_LIMIT} bytes");
                }
                if input.eof
                    && let Some(Held { command, input, lines }) = self.held.remove(&input.command_id)
                {
                    self.sign(Said::Command(&command, Some(&input))).await?;
                    self.write(&lines)?;
                }
                Ok(())
            }
            ControllerMessage::Signed(_) => {
                bail!("it is signed already; one signature a command is all there is")
            }
            // These take no signature.
            _ => {
                self.write(line)?;
                self.write(b"\n")
            }
        }
    }

    fn take_ready(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let Ok(RunnerMessage::Ready(ready)) = RunnerMessage::parse(line) else {
            bail!("expected the READY of the runner that the commands are for; pass on its first line");
        };
        if ready.capabilities.get("signed") != Some(&true) {
            bail!(
                "that runner takes unsigned commands too, so that a signature protects nothing; nothing was signed"
            );
        }
        let host = ready.host.clone().unwrap_or_default();
        for (what, wanted, found) in
            [("host", &self.arguments.host, &host.hostname), ("user", &self.arguments.user, &host.user)]
        {
            if wanted.as_ref().is_some_and(|wanted| wanted != found) {
                bail!(
                    "READY says that it is {what} {:?}, which was not asked for; nothing was signed",
                    shown(found)
                );
            }
        }
        self.ready = Some(*ready);
        Ok(())
    }

    async fn sign(&mut self, said: Said<'_>) -> anyhow::Result<()> {
        let ready = self.ready.as_ref().context("no READY")?;
        let signed = self.signer.sign(ready, said, |signed| async { signed }).await?;
        let line = ControllerMessage::Signed(signed).to_line(now());
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.out.write_all(bytes).context("cannot write to standard output")
    }

    fn finish(&self) -> anyhow::Result<i32> {
        if self.ready.is_none() {
            return Err(usage("standard input is empty: it is to hold the runner's READY, then commands"));
        }
        if !self.held.is_empty() {
            bail!("standard input ended before the input of a command did; that command was not signed");
        }
        Ok(0)
    }
}

/// Foreign words, fit to be shown.
fn shown(text: &str) -> String {
    String::from_utf8_lossy(&harmless(text.as_bytes())).into_owned()
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}
