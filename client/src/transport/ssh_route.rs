//! The stream that SSH runs on where it is not a TCP connection of our own: a channel through another host
//! (`ProxyJump`), or the standard streams of a program (`ProxyCommand`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use russh::client::Handle;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client::Msg};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, Join, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::ssh_hostkey::Handler;
use super::ssh_options::SshOptions;
use crate::error::{Error, printable};
use crate::observe::{Observer, Step, StepTimer};

/// What may wait between a hop's connection and the one through it, each way.
const BUFFER: usize = 64 * 1024;
/// How much is kept of what a `ProxyCommand` complained of, in bytes: its end.
const COMPLAINT: usize = 4 * 1024;
/// How long a `ProxyCommand` may take to end by itself once nobody speaks to it.
const GOODBYE: Duration = Duration::from_secs(2);

/// Anything that SSH can run on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A TCP connection to the host of `options` that `hop`, where we are logged in, makes for us. It lives as long as the
/// stream does.
pub(super) async fn through(
    hop: &Arc<Handle<Handler>>,
    hop_name: &str,
    options: &SshOptions,
    observer: &dyn Observer,
) -> Result<DuplexStream, Error> {
    let timer = StepTimer::start(observer, Step::Connect);
    // Where the connection comes from is for the server's log; there is no listening socket here.
    let opened =
        hop.channel_open_direct_tcpip(options.address.clone(), options.port.into(), "127.0.0.1", 0).await;
    let channel = opened.map_err(|error| {
        let reason = match error {
            russh::Error::ChannelOpenFailure(reason) => format!("{reason:?}"),
            error => error.to_string(),
        };
        let (address, port) = (&options.address, options.port);
        Error::Unreachable {
            host: options.name.clone(),
            step: Step::Connect,
            reason: format!(
                "{hop_name}, which is passed on the way, does not connect to {address} port {port}: {reason}"
            ),
        }
    })?;
    timer.done(1, &format!("through {hop_name}"));
    let (read, write) = channel.split();
    let (near, far) = tokio::io::duplex(BUFFER);
    let hop = Arc::clone(hop);
    tokio::spawn(async move {
        let (from_near, to_near) = tokio::io::split(far);
        // When one way is closed the whole connection is over: SSH has no use for half of one.
        tokio::select! {
            () = receive(read, to_near) => {}
            () = send(from_near, write) => {}
        }
        let goodbye = hop.disconnect(russh::Disconnect::ByApplication, "", "");
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    });
    Ok(near)
}

async fn receive(mut read: ChannelReadHalf, mut near: impl AsyncWrite + Unpin) {
    while let Some(message) = read.wait().await {
        let over = match message {
            ChannelMsg::Data { data } => near.write_all(&data).await.is_err(),
            ChannelMsg::Eof | ChannelMsg::Close => true,
            _ => false,
        };
        if over {
            return;
        }
    }
}

async fn send(mut near: impl AsyncRead + Unpin, write: ChannelWriteHalf<Msg>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match near.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if write.data_bytes(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The end of what a program wrote to standard error, and who listens to it.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    said: Arc<Mutex<VecDeque<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl Complaint {
    fn of(stream: ChildStderr) -> Self {
        let said = Arc::default();
        let listener = tokio::spawn(listen(Arc::clone(&said), stream));
        Self { said, listener: Some(listener) }
    }

    /// All that it said, once the program has ended or a moment has passed: escaped, ready to be put behind a reason.
    /// Empty where nothing was said.
    pub(super) async fn text(self) -> String {
        if let Some(listener) = self.listener {
            let _ = tokio::time::timeout(GOODBYE, listener).await;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match printable(said.make_contiguous().trim_ascii(), 500) {
            text if text.is_empty() => text,
            text => format!("; ProxyCommand says {text:?}"),
        }
    }
}

async fn listen(said: Arc<Mutex<VecDeque<u8>>>, mut stream: ChildStderr) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend(&buffer[..length]);
        let excess = said.len().saturating_sub(COMPLAINT);
        said.drain(..excess);
    }
}

/// A `ProxyCommand` that runs.
#[derive(Debug)]
pub(super) struct Program {
    streams: Join<ChildStdout, ChildStdin>,
    child: Option<Child>,
}

impl Program {
    /// Starts `command` by the user's shell, as ssh(1) does: `exec` spares the shell.
    pub(super) fn start(
        command: &str,
        host: &str,
        observer: &dyn Observer,
    ) -> Result<(Self, Complaint), Error> {
        let timer = StepTimer::start(observer, Step::Connect);
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let started = Command::new(shell.unwrap_or("/bin/sh".into()))
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let failed = |reason: String| Error::Unreachable {
            host: host.to_owned(),
            step: Step::Connect,
            reason: format!("ProxyCommand {command:?} cannot be started: {reason}"),
        };
        let mut child = started.map_err(|error| failed(error.to_string()))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("it has no standard streams".into()));
        };
        timer.done(0, "by ProxyCommand");
        let streams = tokio::io::join(output, input);
        Ok((Self { streams, child: Some(child) }, Complaint::of(errors)))
    }
}

impl Drop for Program {
    /// Its streams are about to be closed, which is how it learns that it is not needed any more.
    fn drop(&mut self) {
        if let (Some(mut child), Ok(runtime)) = (self.child.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(GOODBYE, child.wait()).await;
            });
        }
    }
}

impl AsyncRead for Program {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.streams).poll_read(cx, buf)
    }
}

impl AsyncWrite for Program {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.streams).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}
