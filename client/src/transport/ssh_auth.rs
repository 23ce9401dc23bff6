//! Logging in over SSH: keys, questions of the server, passwords, in the order of ssh(1), as far as the server goes along.
//!
//! Nothing of a key, passphrase or password ever gets into an error; keys are named by file, comment or fingerprint.
//!
//! Round trips: the service request 1, each key 1 for the question whether it would do and 1 for the signature, each
//! password 1. russh always asks before it signs; without that a login by key would take 2, not 3.

use std::collections::VecDeque;
use std::time::SystemTime;

use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::HashAlg;
use russh::keys::ssh_key::{Certificate, PublicKey};
use russh::{MethodKind, MethodSet};

use super::ssh_hostkey::Handler;
use super::ssh_keys::{KeyFile, Shown, Signing, flaw, read_certificate};
use super::ssh_options::SshOptions;
use crate::agent::Agent;
use crate::error::{Error, printable};
use crate::secret::{Question, Secret};

/// Rounds of questions that one try may take. Two are usual; without an end the server could ask until the limit of time.
const ROUNDS: u32 = 16;

/// The order of ssh(1), as far as there is something of it here.
const METHODS: [MethodKind; 3] =
    [MethodKind::PublicKey, MethodKind::KeyboardInteractive, MethodKind::Password];

/// How somebody got in.
pub(super) struct LoggedIn {
    pub(super) method: String,
    pub(super) round_trips: u32,
    /// A person may have been asked for something, so this cannot be repeated unattended.
    pub(super) asked: bool,
}

pub(super) struct Login<'a> {
    options: &'a SshOptions,
    handle: &'a mut Handle<Handler>,
    agent: Option<Agent>,
    files: Vec<KeyFile>,
    tried: Vec<String>,
    /// What the server would still accept; `None` until it has said so.
    allowed: Option<MethodSet>,
    round_trips: u32,
    asked: bool,
    /// Questions with hidden answers so far: a password that is known is the answer to the first of them alone.
    hidden_prompts: u32,
    /// The last try was right, and the server wants something else besides.
    partial: bool,
    /// The library waits for answers that nobody has, so nothing else can be tried.
    stuck: bool,
}

/// A key or certificate that may be tried.
#[derive(Clone)]
struct Candidate {
    /// Names it in errors.
    what: String,
    /// `None` for a file that tells even its public half only with its passphrase.
    shown: Option<Shown>,
    holder: Holder,
}

/// Who can sign for it.
#[derive(Clone)]
enum Holder {
    /// The agent, by this name of the key.
    Agent(Vec<u8>),
    /// The file of this number.
    File(usize),
}

/// What is left to be tried.
struct Means {
    /// Their numbers.
    candidates: VecDeque<usize>,
    /// How often a password may still be sent, and the server's questions be answered (`NumberOfPasswordPrompts`).
    passwords: u32,
    dialogues: u32,
}

impl Means {
    fn left(&self, method: MethodKind) -> bool {
        match method {
            MethodKind::PublicKey => !self.candidates.is_empty(),
            MethodKind::KeyboardInteractive => self.dialogues > 0,
            MethodKind::Password => self.passwords > 0,
            _ => false,
        }
    }
}

/// One outcome of one try.
enum Outcome {
    In,
    /// Go on with the next.
    Refused,
}

impl<'a> Login<'a> {
    pub(super) fn new(options: &'a SshOptions, handle: &'a mut Handle<Handler>) -> Self {
        Self {
            options,
            handle,
            agent: None,
            files: Vec::new(),
            tried: Vec::new(),
            allowed: None,
            round_trips: 1,
            asked: false,
            hidden_prompts: 0,
            partial: false,
            stuck: false,
        }
    }

    /// Tries everything there is.
    pub(super) async fn run(mut self) -> Result<LoggedIn, Error> {
        match self.try_all().await {
            Some(method) => Ok(LoggedIn { method, round_trips: self.round_trips, asked: self.asked }),
            None => {
                if self.handle.is_closed() {
                    self.tried.push("then the server hung up".into());
                }
                Err(Error::Auth {
                    host: self.options.name.clone(),
                    user: self.options.user.clone(),
                    tried: self.tried,
                    allowed: self.allowed.as_ref().map(method_names).unwrap_or_default(),
                })
            }
        }
    }

    /// One try after the other: always the first method that the server would still accept and that has something left.
    /// So a server that wants two of them (`AuthenticationMethods` of sshd_config(5)) gets them in its order.
    async fn try_all(&mut self) -> Option<String> {
        let methods = methods(self.options);
        let prompts = self.options.password_prompts;
        let mut means = Means { candidates: VecDeque::new(), passwords: prompts, dialogues: prompts };
        let mut candidates = Vec::new();
        if methods.contains(&MethodKind::PublicKey) {
            candidates = self.candidates().await;
            means.candidates = (0..candidates.len()).collect();
        }
        let mut asked_none = methods.first() != Some(&MethodKind::PublicKey) || means.candidates.is_empty();
        if asked_none && self.try_none().await {
            return Some("none".into());
        }
        let mut right = Vec::new();
        loop {
            let next = methods.iter().find(|method| self.goes_on(**method) && means.left(**method));
            let unknown = self.allowed.is_none() && !asked_none && !self.handle.is_closed();
            if unknown && next != Some(&MethodKind::PublicKey) {
                // No key could be signed with, so the server has still not said what it would take: be it for a method that
                // comes next, or for whoever reads why nothing got in.
                asked_none = true;
                if self.try_none().await {
                    return Some("none".into());
                }
                continue;
            }
            let method = match *next? {
                MethodKind::PublicKey => {
                    let number = means.candidates.pop_front()?;
                    let method = self.try_candidate(candidates[number].clone()).await;
                    if self.partial {
                        right.push(number);
                    }
                    method
                }
                MethodKind::KeyboardInteractive => {
                    means.dialogues -= 1;
                    let more = means.passwords > 0 && self.goes_on(MethodKind::Password);
                    let (method, again) = self.try_dialogue(more || !means.candidates.is_empty()).await;
                    means.dialogues *= u32::from(again);
                    method
                }
                _ => {
                    means.passwords -= 1;
                    let (method, again) = self.try_password(prompts - means.passwords).await;
                    means.passwords *= u32::from(again);
                    method
                }
            };
            if method.is_some() {
                return method;
            }
            if std::mem::take(&mut self.partial) {
                // A key that was refused while the server wanted something else may be what it wants now.
                means.candidates = (0..candidates.len()).filter(|number| !right.contains(number)).collect();
            }
        }
    }

    /// Asks what the server would take; whether it wants nothing at all. Nobody is asked for anything before.
    async fn try_none(&mut self) -> bool {
        let result = self.handle.authenticate_none(&self.options.user).await;
        matches!(self.judge(1, "none", result.map_err(|error| error.to_string())), Outcome::In)
    }

    fn goes_on(&self, method: MethodKind) -> bool {
        !self.stuck
            && !self.handle.is_closed()
            && self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&method))
    }

    /// Takes note of what came of a try.
    fn judge(&mut self, round_trips: u32, what: &str, result: Result<AuthResult, String>) -> Outcome {
        self.round_trips += round_trips;
        match result {
            Ok(AuthResult::Success) => return Outcome::In,
            Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
                let verdict =
                    if partial_success { "accepted, but more is asked for" } else { "not accepted" };
                self.tried.push(format!("{what}: {verdict}"));
                self.partial |= partial_success;
                if !(remaining_methods.is_empty() && self.handle.is_closed()) {
                    self.allowed = Some(remaining_methods);
                }
            }
            Err(error) => self.tried.push(format!("{what}: {error}")),
        }
        Outcome::Refused
    }

    /// Everything to be shown to the server, in the order of ssh(1): certificates that somebody named, keys that somebody
    /// named and the agent holds, its other keys, and keys that are in files alone. Servers close after few tries.
    async fn candidates(&mut self) -> Vec<Candidate> {
        self.read_files();
        let held = self.agent_keys().await;
        let holder = |key: &Shown| held.iter().find(|(_, shown)| is_plain(shown) && shown.key() == key.key());
        let is_in = |file: &KeyFile, key: &Shown| {
            file.public.as_ref().is_some_and(|public| public.key_data() == key.key())
        };

        let mut all = Vec::new();
        for path in &self.options.certificate_files {
            let what = format!("certificate {}", path.display());
            match read_certificate(path) {
                Ok(certificate) => {
                    let shown = Shown::Certificate(Box::new(certificate));
                    let usable = |file: &KeyFile| file.elsewhere().is_none() && is_in(file, &shown);
                    let file = self.files.iter().position(usable);
                    let holder = holder(&shown)
                        .map(|(held, _)| Holder::Agent(held.blob.clone()))
                        .or(file.map(Holder::File));
                    match holder {
                        Some(holder) => all.push(Candidate { what, shown: Some(shown), holder }),
                        None => {
                            self.tried.push(format!("{what}: neither the agent nor a key file has its key"));
                        }
                    }
                }
                Err(reason) => self.tried.push(format!("{what}: {reason}")),
            }
        }

        let named = |shown: &Shown| self.files.iter().any(|file| is_in(file, shown));
        let (first, others): (Vec<_>, Vec<_>) = held.iter().partition(|(_, shown)| named(shown));
        let others = others.into_iter().filter(|_| !self.options.identities_only);
        for (held, shown) in first.into_iter().chain(others) {
            let fingerprint = PublicKey::new(shown.key().clone(), "").fingerprint(HashAlg::Sha256);
            let sort = if is_plain(shown) { "key" } else { "certificate" };
            let comment = printable(held.comment.as_bytes(), 100);
            all.push(Candidate {
                what: format!("agent {sort} {fingerprint} ({comment})"),
                shown: Some(shown.clone()),
                holder: Holder::Agent(held.blob.clone()),
            });
        }

        let mut unusable = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let by_agent =
                file.public.clone().map(Shown::Key).and_then(|key| holder(&key).map(|(held, _)| held));
            let what = format!("key {}", file.path.display());
            if by_agent.is_none() {
                match file.elsewhere() {
                    None => all.push(Candidate {
                        what: what.clone(),
                        shown: file.public.clone().map(Shown::Key),
                        holder: Holder::File(number),
                    }),
                    Some(why) => {
                        unusable.push(format!("{what}: {why}"));
                        continue;
                    }
                }
            }
            // Where somebody named certificates, those that lie beside key files do not count (ssh_config(5), CertificateFile).
            let beside = file.certificate.as_deref().filter(|_| self.options.certificate_files.is_empty());
            let known = |certificate: &Certificate| {
                all.iter()
                    .any(|c| matches!(&c.shown, Some(Shown::Certificate(shown)) if **shown == *certificate))
            };
            if let Some(certificate) = beside.filter(|certificate| !known(certificate)) {
                all.push(Candidate {
                    what: format!("{what} with its certificate"),
                    shown: Some(Shown::Certificate(Box::new(certificate.clone()))),
                    holder: by_agent.map_or(Holder::File(number), |held| Holder::Agent(held.blob.clone())),
                });
            }
        }
        self.tried.append(&mut unusable);
        all
    }

    /// Reads the key files that are there; what is wrong with the others is noted where somebody named them.
    fn read_files(&mut self) {
        for identity in &self.options.identities {
            match KeyFile::read(identity) {
                Ok(Some(file)) => self.files.push(file),
                Ok(None) => {}
                Err(reason) => self.tried.push(format!("key {}: {reason}", identity.file.display())),
            }
        }
    }

    /// The agent's keys, as far as they are of kinds that we know.
    async fn agent_keys(&mut self) -> Vec<(crate::agent::HeldKey, Shown)> {
        let Some(socket) = self.options.agent_socket.clone() else { return Vec::new() };
        let asked = async {
            let mut agent = Agent::connect(&socket).await?;
            // For keys that are bound to destinations.
            if let Some(binding) = self.handle.agent_session_binding() {
                let _ = agent.bind(binding.host_key(), binding.session_id(), binding.signature()).await;
            }
            let keys = agent.keys().await?;
            Ok::<_, crate::agent::AgentError>((agent, keys))
        };
        match asked.await {
            Ok((agent, keys)) => {
                self.agent = Some(agent);
                if keys.is_empty() {
                    self.tried.push("agent: it holds no key".into());
                }
                keys.into_iter()
                    .filter_map(|held| Shown::from_blob(&held.blob).map(|shown| (held, shown)))
                    .collect()
            }
            Err(error) => {
                self.tried.push(format!("agent at {}: {error}", socket.display()));
                Vec::new()
            }
        }
    }

    async fn try_candidate(&mut self, candidate: Candidate) -> Option<String> {
        let Candidate { mut what, shown, holder } = candidate;
        let user = &self.options.user;
        let shown = match (shown, &holder) {
            (Some(shown), _) => shown,
            // Its public half is not known, so the server cannot be asked first whether the key would do.
            (None, Holder::File(number)) => {
                match self.files[*number].open(&*self.options.secrets, &mut self.asked).await {
                    Ok(key) => Shown::Key(key.public_key().clone()),
                    Err(reason) => {
                        self.tried.push(format!("{what}: {reason}"));
                        return None;
                    }
                }
            }
            (None, Holder::Agent(_)) => return None,
        };
        let mut signing = match (&holder, &mut self.agent) {
            (Holder::Agent(blob), Some(agent)) => Signing::Agent { agent, blob },
            (Holder::Agent(_), None) => return None,
            (Holder::File(number), _) => Signing::File {
                file: &mut self.files[*number],
                secrets: &*self.options.secrets,
                asked: &mut self.asked,
            },
        };
        let (accepted, shortest) = (&self.options.pubkey_accepted_algorithms, self.options.required_rsa_size);
        let Some(hash) = shown.signature(accepted.as_deref(), shortest) else {
            self.tried.push(format!("{what}: PubkeyAcceptedAlgorithms or RequiredRSASize leave it out"));
            return None;
        };
        let result = match &shown {
            Shown::Key(key) => {
                self.handle.authenticate_publickey_with(user, key.clone(), hash, &mut signing).await
            }
            Shown::Certificate(certificate) => {
                let certificate = (**certificate).clone();
                self.handle.authenticate_certificate_with(user, certificate, hash, &mut signing).await
            }
        };
        if let (Ok(AuthResult::Failure { partial_success: false, .. }), Shown::Certificate(certificate)) =
            (&result, &shown)
        {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
            if let Some(flaw) = flaw(certificate, user, now) {
                what = format!("{what} ({flaw})");
            }
        }
        let round_trips = if matches!(result, Ok(AuthResult::Success)) { 2 } else { 1 };
        match self.judge(round_trips, &what, result.map_err(|error| error.0)) {
            Outcome::In => Some(what),
            Outcome::Refused => None,
        }
    }

    async fn ask(&mut self, question: Question<'_>) -> Option<Secret> {
        let answer = self.options.secrets.ask(question).await;
        self.asked |= answer.is_some() && !self.options.secrets.unattended();
        answer
    }

    /// The second of the pair is whether it is worth another try.
    async fn try_password(&mut self, attempt: u32) -> (Option<String>, bool) {
        let (user, host) = (&self.options.user, &self.options.name);
        let Some(password) = self.ask(Question::Password { user, host, attempt }).await else {
            if attempt == 1 {
                self.tried.push("password: nobody gave one".into());
            }
            return (None, false);
        };
        let result = self.handle.authenticate_password(user, password.expose()).await;
        match self.judge(1, "password", result.map_err(|error| error.to_string())) {
            Outcome::In => (Some("password".into()), false),
            Outcome::Refused => (None, true),
        }
    }

    /// The server's questions (RFC 4256): any number of rounds, any number of questions in each. The second of the pair is
    /// whether it is worth another try; `more` is whether there is anything else to try when nobody answers.
    async fn try_dialogue(&mut self, more: bool) -> (Option<String>, bool) {
        const WHAT: &str = "keyboard-interactive";
        let (user, host) = (&self.options.user, &self.options.name);
        let mut reply = self.handle.authenticate_keyboard_interactive_start(user, None).await;
        let mut unanswered = false;
        for _ in 0..ROUNDS {
            self.round_trips += 1;
            let (name, instructions, prompts) = match reply {
                Ok(KeyboardInteractiveAuthResponse::InfoRequest { name, instructions, prompts }) => {
                    (name, instructions, prompts)
                }
                Ok(KeyboardInteractiveAuthResponse::Success) => return (Some(WHAT.into()), false),
                Ok(KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success }) => {
                    let result = AuthResult::Failure { remaining_methods, partial_success };
                    self.judge(0, WHAT, Ok(result));
                    return (None, !unanswered);
                }
                Err(error) => {
                    self.judge(0, WHAT, Err(error.to_string()));
                    return (None, false);
                }
            };
            let said = [name, instructions].join("\n");
            let mut answers = Vec::new();
            for (number, prompt) in prompts.iter().enumerate() {
                self.hidden_prompts += u32::from(!prompt.echo);
                let question = Question::Prompt {
                    user,
                    host,
                    instructions: if number == 0 { said.trim() } else { "" },
                    prompt: &prompt.prompt,
                    echo: prompt.echo,
                    attempt: self.hidden_prompts.max(1),
                };
                let answer = if unanswered { None } else { self.ask(question).await };
                match answer {
                    Some(answer) => answers.push(answer.expose().to_owned()),
                    None => {
                        let asked = printable(prompt.prompt.as_bytes(), 100);
                        self.tried.push(format!("{WHAT}: nobody answered the server's question {asked:?}"));
                        unanswered = true;
                        break;
                    }
                }
            }
            if unanswered {
                if !more {
                    return (None, false);
                }
                // The library sends nothing else before the answers are in, so these are wrong ones.
                answers = vec![String::new(); prompts.len()];
            }
            reply = self.handle.authenticate_keyboard_interactive_respond(answers).await;
        }
        self.tried.push(format!("{WHAT}: no end after {ROUNDS} rounds of questions"));
        self.stuck = true;
        (None, false)
    }
}

/// The methods that may be tried, best first.
fn methods(options: &SshOptions) -> Vec<MethodKind> {
    let answered = !options.secrets.is_empty();
    let enabled = |method: &MethodKind| match method {
        MethodKind::PublicKey => options.pubkey_authentication,
        MethodKind::KeyboardInteractive => answered && options.kbd_interactive_authentication,
        MethodKind::Password => answered && options.password_authentication,
        _ => false,
    };
    let known = |name: &String| METHODS.into_iter().find(|method| <&str>::from(method) == name);
    let ordered: Vec<MethodKind> = match &options.preferred_authentications {
        Some(names) => names.iter().filter_map(known).collect(),
        None => METHODS.to_vec(),
    };
    ordered.into_iter().filter(enabled).collect()
}

fn is_plain(shown: &Shown) -> bool {
    matches!(shown, Shown::Key(_))
}

fn method_names(methods: &MethodSet) -> Vec<String> {
    methods.iter().map(|method| <&'static str>::from(method).to_owned()).collect()
}
