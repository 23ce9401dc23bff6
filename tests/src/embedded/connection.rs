//! One client's connection to the embedded server: who may log in, and the requests on its channels. It starts
//! children but knows nothing of their pipes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use russh::keys::PublicKey;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf};
use tokio::sync::{mpsc, watch};

use super::Shared;
use super::child::{self, Output};

/// The state of one connection. Dropped with it, and with it the pipes of its children.
pub(super) struct Connection {
    shared: Arc<Shared>,
    channels: HashMap<ChannelId, State>,
    input_left: Option<u64>,
    /// The round of questions that comes next.
    round: usize,
}

enum State {
    Open(ChannelWriteHalf<Msg>),
    Running {
        /// `None` after EOF.
        stdin: Option<mpsc::UnboundedSender<Bytes>>,
        /// Dropped with the channel or the connection: the child's output pipes close.
        _alive: watch::Sender<()>,
    },
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let input_left = shared.builder.faults.cut_after_input;
        Self { shared, channels: HashMap::new(), input_left, round: 0 }
    }

    fn accepts(&self, user: &str, key: &PublicKey) -> Auth {
        let builder = &self.shared.builder;
        let known = builder.keys.iter().any(|known| known.key_data() == key.key_data());
        if user == builder.user && known { Auth::Accept } else { Auth::reject() }
    }

    fn run(
        &mut self,
        id: ChannelId,
        command: Option<&[u8]>,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let faults = &self.shared.builder.faults;
        if faults.no_reply {
            return Ok(());
        }
        if faults.refuse_exec || !matches!(self.channels.get(&id), Some(State::Open(_))) {
            return session.channel_failure(id);
        }
        let Some(State::Open(write)) = self.channels.remove(&id) else { return Ok(()) };
        let (stdin, input) = mpsc::unbounded_channel();
        let (alive, gone) = watch::channel(());
        self.channels.insert(id, State::Running { stdin: Some(stdin), _alive: alive });
        let output = Output::new(write, session.handle(), gone);
        let command = command.map(<[u8]>::to_vec);
        tokio::spawn(child::run(Arc::clone(&self.shared), command, input, output));
        Ok(())
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(self.shared.builder.faults.banner.clone())
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let builder = &self.shared.builder;
        let right = user == builder.user && builder.password.as_deref() == Some(password);
        Ok(if right { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let rounds = &self.shared.builder.dialogue;
        let right = match (response, self.round.checked_sub(1).and_then(|last| rounds.get(last))) {
            // A new try.
            (None, _) => {
                self.round = 0;
                user == self.shared.builder.user && !rounds.is_empty()
            }
            (Some(answers), Some(asked)) => {
                answers.eq(asked.iter().map(|(_, _, answer)| answer.as_bytes().to_vec()))
            }
            (Some(_), None) => false,
        };
        if !right {
            return Ok(Auth::reject());
        }
        let Some(questions) = rounds.get(self.round) else { return Ok(Auth::Accept) };
        self.round += 1;
        let prompts: Vec<_> = questions.iter().map(|(text, echo, _)| (text.clone().into(), *echo)).collect();
        Ok(Auth::Partial {
            name: "".into(),
            instructions: format!("round {}", self.round).into(),
            prompts: prompts.into(),
        })
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.accepts(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.accepts(user, key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let limit = self.shared.builder.faults.max_sessions.unwrap_or(usize::MAX);
        if self.channels.len() >= limit {
            // What OpenSSH says when MaxSessions is reached.
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        }
        // Input comes by `data` below. The reading half is dropped: left alone it would fill and block the connection.
        let (_, write) = channel.split();
        self.channels.insert(write.id(), State::Open(write));
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.run(id, Some(command), session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.run(id, None, session)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _session: &mut Session) -> Result<(), Self::Error> {
        let cut = self.input_left.is_some_and(|left| data.len() as u64 >= left);
        let data = match self.input_left {
            Some(left) if cut => &data[..usize::try_from(left).unwrap_or(data.len())],
            _ => data,
        };
        if let Some(State::Running { stdin: Some(stdin), .. }) = self.channels.get(&id) {
            // It fails once the child no longer reads: OpenSSH discards the rest too.
            let _ = stdin.send(Bytes::copy_from_slice(data));
        }
        if cut {
            return Err(russh::Error::Disconnect);
        }
        if let Some(left) = &mut self.input_left {
            *left -= data.len() as u64;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(State::Running { stdin, .. }) = self.channels.get_mut(&id) {
            *stdin = None;
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}
