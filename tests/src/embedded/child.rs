//! One command of the embedded server: the child process, and the pumps between its pipes and the channel. Each pump
//! waits for its own side alone, so none can hold up another. It knows nothing of requests.

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use nix::sys::signal::Signal;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Disconnect, Sig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};

use super::Shared;

/// The way back to the client on one channel.
#[derive(Clone)]
pub(super) struct Output {
    write: Arc<ChannelWriteHalf<Msg>>,
    handle: Handle,
    /// Closed when the channel or the connection is gone.
    gone: watch::Receiver<()>,
}

impl Output {
    pub(super) fn new(write: ChannelWriteHalf<Msg>, handle: Handle, gone: watch::Receiver<()>) -> Self {
        Self { write: Arc::new(write), handle, gone }
    }

    /// Awaits `future` unless the client goes first: a full window would otherwise be waited on for ever.
    async fn unless_gone<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut gone = self.gone.clone();
        tokio::select! {
            _ = gone.changed() => None,
            value = future => Some(value),
        }
    }
}

/// Runs a command (a login shell without one) to its end and tells the client of it.
pub(super) async fn run(
    shared: Arc<Shared>,
    command: Option<Vec<u8>>,
    input: mpsc::UnboundedReceiver<Bytes>,
    output: Output,
) {
    let faults = &shared.builder.faults;
    if !faults.delay_exec.is_zero() {
        tokio::time::sleep(faults.delay_exec).await;
    }
    let id = output.write.id();
    // An error below means that the client is gone: there is nobody to tell.
    let Ok(mut child) = spawn(&shared, command.as_deref()) else {
        let _ = output.handle.channel_failure(id).await;
        return;
    };
    let _ = output.handle.channel_success(id).await;
    if let Some(stdin) = child.stdin.take() {
        tokio::spawn(feed(stdin, input));
    }
    let budget = faults.cut_after_output.map(AtomicU64::new);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let drained = async {
        let noisy = output.send(None, faults.noise.clone(), budget.as_ref()).await;
        if noisy {
            tokio::join!(output.pump(None, stdout, budget.as_ref()), output.pump(Some(STDERR), stderr, None));
        }
        let _ = output.unless_gone(output.write.eof()).await;
    };
    let ended = async {
        if let Ok(status) = child.wait().await {
            output.report(status).await;
        }
    };
    tokio::join!(drained, ended);
    let _ = output.unless_gone(output.write.close()).await;
}

/// `SSH_EXTENDED_DATA_STDERR`, RFC 4254 §5.2.
const STDERR: u32 = 1;

impl Output {
    /// Copies a pipe of the child to the client until its last holder closes it or the client is gone.
    async fn pump(
        &self,
        stream: Option<u32>,
        pipe: Option<impl AsyncRead + Unpin>,
        budget: Option<&AtomicU64>,
    ) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(64 * 1024);
            match self.unless_gone(pipe.read_buf(&mut buffer)).await {
                None | Some(Ok(0) | Err(_)) => return,
                Some(Ok(_)) => {}
            }
            if !self.send(stream, buffer.split().freeze(), budget).await {
                return;
            }
        }
    }

    /// Sends bytes as the window allows. `false` when the client is gone or has had all it was to get.
    async fn send(&self, stream: Option<u32>, mut bytes: Bytes, budget: Option<&AtomicU64>) -> bool {
        let mut cut = false;
        if let Some(left) = budget {
            // Only the pump of standard output has a budget, so nothing else changes it in between.
            let now = left.load(Ordering::Relaxed);
            bytes.truncate(usize::try_from(now).unwrap_or(usize::MAX));
            left.store(now - bytes.len() as u64, Ordering::Relaxed);
            cut = now == bytes.len() as u64;
        }
        let sent = match stream {
            None => self.unless_gone(self.write.data_bytes(bytes)).await,
            Some(code) => self.unless_gone(self.write.extended_data_bytes(code, bytes)).await,
        };
        if cut {
            // By the same queue, hence after the bytes.
            let why = "cut by the test".to_owned();
            let _ = self.handle.disconnect(Disconnect::ByApplication, why, String::new()).await;
        }
        matches!(sent, Some(Ok(()))) && !cut
    }

    async fn report(&self, status: ExitStatus) {
        let id = self.write.id();
        let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
        if let Some(signal) = signal {
            let name = signal.as_str().trim_start_matches("SIG");
            let core = status.core_dumped();
            let name = named(name);
            let sent = self.handle.exit_signal_request(id, name, core, String::new(), String::new());
            let _ = self.unless_gone(sent).await;
        } else {
            let code = status.code().unwrap_or(255);
            let _ = self.unless_gone(self.write.exit_status(code.unsigned_abs())).await;
        }
    }
}

/// The name of a signal on the wire, RFC 4254 §6.10.
fn named(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(format!("{other}@openssh.com")),
    }
}

/// Writes what comes from the client until EOF or the end of the connection, then closes the pipe. What had come
/// before is written first: a cut connection does not take back bytes that arrived.
async fn feed(mut stdin: ChildStdin, mut input: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// The login shell in a session of its own, as sshd starts it without a terminal.
fn spawn(shared: &Shared, command: Option<&[u8]>) -> Result<Child> {
    let shell = &shared.builder.shell;
    let name = shell.file_name().unwrap_or(shell.as_os_str());
    let mut child = Command::new(shell);
    match command {
        Some(command) => child.arg0(name).arg("-c").arg(OsStr::from_bytes(command)),
        None => child.arg0(format!("-{}", name.display())),
    };
    child.env_clear().envs(&shared.env).current_dir(&shared.home);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: setsid(2) is async-signal-safe and allocates nothing.
    unsafe {
        child.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    child.spawn().with_context(|| format!("starting {}", shell.display()))
}
