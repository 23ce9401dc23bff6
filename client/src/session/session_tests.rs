//! Sessions against a runner that the test plays.

use serde_json::{Value, json};
use sortie_protocol::command::exec::Exec;
use sortie_protocol::command::file_read::FileRead;
use sortie_protocol::command::sshd_harden::SshdHarden;
use sortie_protocol::message::Event;

use super::*;
use crate::error::Error;
use crate::runners::{Machine, Runner, RunnerSet};
use crate::transport::fake::{Far, fake};

const RUNNER: &[u8] = b"the runner";

fn client() -> Client {
    let mut runners = RunnerSet::new();
    runners.insert(Machine::X86_64, Runner::new(RUNNER));
    Client::builder().runners(runners).window(100).ssh(crate::SshSettings::default()).build()
}

/// The runner's side, once it is up.
struct Peer {
    far: Far,
}

impl Peer {
    /// The next frame that was sent.
    async fn frame(&mut self) -> Value {
        serde_json::from_str(&self.far.line().await.expect("the session still writes")).unwrap()
    }

    /// The next frame, which must be of this type; its data.
    async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.frame().await;
        assert_eq!(frame["type"], kind, "{frame}");
        frame["data"].clone()
    }

    /// The id of the next frame, which must be a CMD.
    async fn command(&mut self) -> String {
        self.expect("CMD").await["id"].as_str().unwrap().to_owned()
    }

    async fn send(&mut self, kind: &str, data: Value) {
        self.far.say(format!("{}\n", json!({"type": kind, "data": data}))).await;
    }

    async fn done(&mut self, id: &str) {
        let result = json!({"exit_code": 0, "duration": 0.1});
        self.send("DONE", json!({"command_id": id, "result": result, "duration": 0.1})).await;
    }

    async fn output(&mut self, id: &str, text: &str) {
        self.send("EVENT", json!({"command_id": id, "message": text, "stream": "stdout"})).await;
    }

    /// Answers SHUTDOWN as a runner does.
    async fn exit(&mut self) {
        let exit = json!({"reason": "completed", "exit_code": 0, "self_deleted": true, "commands_total": 0});
        self.send("EXIT", exit).await;
        self.far.exit(0);
    }
}

/// Plays the script and READY.
async fn come_up(mut far: Far) -> Peer {
    let words = far.launches.recv().await.unwrap().argv;
    far.say(format!("{}{} Linux x86_64 1 raw -\n", words[4], words[5])).await;
    far.line().await.unwrap();
    far.bytes(RUNNER.len()).await;
    far.line().await.unwrap();
    let mut peer = Peer { far };
    let sha256 = Runner::new(RUNNER).sha256().to_owned();
    let limits = json!({"stdin_window": 10});
    peer.send(
        "READY",
        json!({"version": "1", "platform": "linux", "arch": "amd64", "pid": 4711, "sha256": sha256,
            "protocol": {"major": 1, "minor": 1}, "limits": limits}),
    )
    .await;
    peer
}

async fn session_of(client: Client) -> (Session, Peer) {
    let (transport, far) = fake();
    let (session, peer) = tokio::join!(client.connect_by(Arc::new(transport)), come_up(far));
    (session.unwrap(), peer)
}

async fn session() -> (Session, Peer) {
    session_of(client()).await
}

fn text(event: Option<Event>) -> String {
    event.unwrap().message
}

#[tokio::test]
async fn a_runner_that_knows_no_sequences_is_sent_none() {
    let (session, _peer) = session().await;
    let options = CommandOptions { sequence: "list".into(), ..CommandOptions::default() };
    let Err(Error::Command { error, .. }) = session.start_with(&Exec::shell("true"), options).await else {
        panic!("it was sent")
    };
    assert_eq!(error.code, ErrorCode::Unsupported);
}

#[tokio::test]
async fn a_typed_command_gets_its_typed_result() {
    let (session, mut peer) = session().await;
    let far = async {
        let data = peer.expect("CMD").await;
        assert_eq!((&data["type"], &data["timeout"]), (&json!("file_read"), &json!(300)));
        assert_eq!(data["params"], json!({"path": "/etc/motd"}));
        let result = json!({"content": "hi", "size": 2, "mode": "0644", "owner": "0", "group": "0", "checksum": "", "truncated": false});
        peer.send("DONE", json!({"command_id": data["id"], "result": result, "duration": 0.1})).await;
    };
    let (done, ()) = tokio::join!(session.run(FileRead::new("/etc/motd")), far);
    assert_eq!(done.unwrap().result.content, "hi");
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let (session, mut peer) = session().await;
    let first = session.start(Exec::argv(["a"])).await.unwrap();
    let second = session.start(Exec::argv(["b"])).await.unwrap();
    let (one, two) = (peer.command().await, peer.command().await);
    assert_ne!(one, two);
    peer.done(&two).await;
    second.wait().await.unwrap();
    peer.done(&one).await;
    first.wait().await.unwrap();
}

#[tokio::test]
async fn an_error_of_a_command_is_its_own() {
    let (session, mut peer) = session().await;
    let (bad, good) =
        (session.start(Exec::argv(["a"])).await.unwrap(), session.start(Exec::argv(["b"])).await.unwrap());
    let (one, two) = (peer.command().await, peer.command().await);
    peer.send("ERROR", json!({"command_id": one, "code": "NOT_FOUND", "message": "no", "retryable": false}))
        .await;
    peer.done(&two).await;
    let error = bad.wait().await.unwrap_err();
    assert!(matches!(&error, Error::Command { error, .. } if error.code.as_str() == "NOT_FOUND"));
    assert_eq!(error.to_string(), "web1: NOT_FOUND: no");
    good.wait().await.unwrap();
}

#[tokio::test]
async fn credit_is_given_for_what_was_taken_and_nothing_else() {
    let (session, mut peer) = session().await;
    let mut slow = session.start(Exec::argv(["a"]).stream_lines(true)).await.unwrap();
    let quick = session.start(Exec::argv(["b"])).await.unwrap();
    let (one, two) = (peer.command().await, peer.command().await);
    peer.output(&one, &"x".repeat(40)).await;
    peer.output(&one, &"y".repeat(60)).await;
    // The window of the first is full and nobody reads it; the second is answered all the same.
    peer.done(&two).await;
    quick.wait().await.unwrap();
    assert!(!peer.far.has_more(), "no credit before anything was taken");

    assert_eq!(text(slow.next_event().await), "x".repeat(40));
    assert!(!peer.far.has_more(), "less than half a window is not worth a frame");
    assert_eq!(text(slow.next_event().await), "y".repeat(60));
    let credit = peer.expect("CREDIT").await;
    assert_eq!(credit, json!({"command_id": one, "stream": "stdout", "bytes": 100}));
    peer.output(&one, &"z".repeat(100)).await;
    peer.done(&one).await;
    assert_eq!(text(slow.next_event().await).len(), 100);
    assert!(slow.next_event().await.is_none());
    slow.wait().await.unwrap();
}

#[tokio::test]
async fn a_peer_that_sends_more_than_its_window_is_given_up() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"]).stream_lines(true)).await.unwrap();
    let id = peer.command().await;
    peer.output(&id, &"x".repeat(101)).await;
    let error = child.wait().await.unwrap_err();
    assert!(matches!(&error, Error::Lost { pid: Some(4711), .. }), "{error}");
    assert!(error.to_string().contains("101 bytes of output"), "{error}");
    assert!(session.run(Exec::argv(["b"])).await.is_err(), "nothing is started on a lost session");
}

#[tokio::test]
async fn messages_that_nobody_takes_are_bounded() {
    let (session, mut peer) = session().await;
    let mut child = session.start(Exec::argv(["a"])).await.unwrap();
    let id = peer.command().await;
    for n in 0..2000 {
        peer.send("EVENT", json!({"command_id": id, "message": n.to_string()})).await;
    }
    peer.done(&id).await;
    // The session's reader takes everything in before this second command is answered.
    let other = session.start(Exec::argv(["b"])).await.unwrap();
    let other_id = peer.command().await;
    peer.done(&other_id).await;
    other.wait().await.unwrap();
    let mut count = 0;
    while child.next_event().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 1024);
}

#[tokio::test]
async fn frames_about_unknown_commands_are_passed_over() {
    let (session, mut peer) = session().await;
    peer.output("nobody", "x").await;
    peer.done("nobody").await;
    peer.send("CREDIT", json!({"command_id": "nobody", "stream": "stdin", "bytes": 1})).await;
    peer.send("ERROR", json!({"code": "BUSY", "message": "m", "retryable": true})).await;
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    let id = peer.command().await;
    peer.done(&id).await;
    child.wait().await.unwrap();
}

#[tokio::test]
async fn dropping_a_running_command_cancels_it_and_an_ended_one_not() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"]).stream_lines(true)).await.unwrap();
    let id = peer.command().await;
    drop(child);
    assert_eq!(peer.expect("CANCEL").await, json!({"command_id": id}));
    // What still comes of it holds nobody up, whatever its window was.
    peer.output(&id, &"x".repeat(500)).await;

    let child = session.start(Exec::argv(["b"])).await.unwrap();
    let id = peer.command().await;
    peer.done(&id).await;
    child.wait().await.unwrap();
    assert!(!peer.far.has_more());
}

#[tokio::test]
async fn a_started_command_whose_start_is_given_up_is_cancelled() {
    let (session, mut peer) = session().await;
    let canceller = {
        let child = session.start(Exec::argv(["a"])).await.unwrap();
        child.canceller()
    };
    let id = peer.command().await;
    assert_eq!(peer.expect("CANCEL").await, json!({"command_id": id}));
    canceller.cancel(Some(1));
    assert_eq!(peer.expect("CANCEL").await, json!({"command_id": id, "grace": 1}));
}

#[tokio::test]
async fn input_goes_as_far_as_its_credit() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["cat"]).stdin_from_input()).await.unwrap();
    let id = peer.command().await;
    let input = child.input();
    let feeder = tokio::spawn(async move {
        let all = input.write(b"0123456789abcde\xff").await.unwrap();
        input.finish().await.unwrap();
        all
    });
    assert_eq!(peer.expect("INPUT").await, json!({"command_id": id, "data": "0123456789"}));
    peer.send("CREDIT", json!({"command_id": id, "stream": "stdin", "bytes": 5})).await;
    assert_eq!(peer.expect("INPUT").await, json!({"command_id": id, "data": "abcde"}));
    peer.send("CREDIT", json!({"command_id": id, "stream": "stdin", "bytes": u64::MAX})).await;
    peer.send("CREDIT", json!({"command_id": id, "stream": "stdin", "bytes": u64::MAX})).await;
    assert_eq!(peer.expect("INPUT").await, json!({"command_id": id, "data": "/w==", "encoding": "base64"}));
    assert_eq!(peer.expect("INPUT").await, json!({"command_id": id, "data": "", "eof": true}));
    assert!(feeder.await.unwrap());
    peer.done(&id).await;
    child.wait().await.unwrap();
}

#[tokio::test]
async fn input_for_a_command_that_has_ended_is_no_error() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["head"]).stdin_from_input()).await.unwrap();
    let id = peer.command().await;
    let input = child.input();
    let feeder = tokio::spawn(async move { input.write(&[b'x'; 100]).await.unwrap() });
    peer.expect("INPUT").await;
    peer.done(&id).await;
    assert!(!feeder.await.unwrap(), "it says that not all was taken");
    child.wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pings_go_out_at_a_third_of_the_lease_and_any_frame_keeps_the_host() {
    let (session, mut peer) = session().await;
    for n in 1..=12 {
        let began = tokio::time::Instant::now();
        assert_eq!(peer.expect("PING").await, json!({"token": n.to_string()}));
        assert!(began.elapsed() <= Duration::from_secs(21));
        peer.output("nobody", "alive").await;
    }
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    let id = peer.command().await;
    peer.done(&id).await;
    child.wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_is_lost_only_after_a_whole_lease_of_silence() {
    let (session, mut peer) = session().await;
    let began = tokio::time::Instant::now();
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    peer.command().await;
    let error = child.wait().await.unwrap_err();
    assert!(matches!(&error, Error::Lost { .. }), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(60));
    assert!(session.close().await.is_err_and(|e| matches!(e, Error::Lost { pid: Some(4711), .. })));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_outlives_its_time_to_live_is_ended_from_here() {
    let (session, mut peer) = session_of(client_with_ttl(30)).await;
    let echo = tokio::spawn(async move {
        while let Some(line) = peer.far.line().await {
            if line.contains("PING") {
                peer.send("PONG", json!({"token": ""})).await;
            }
        }
    });
    let began = tokio::time::Instant::now();
    let error = session.ended().await.unwrap_err();
    assert!(error.to_string().contains("time to live"), "{error}");
    assert_eq!(began.elapsed().as_secs(), 40, "time to live and twice the grace");
    echo.await.unwrap();
}

fn client_with_ttl(seconds: u64) -> Client {
    let mut runners = RunnerSet::new();
    runners.insert(Machine::X86_64, Runner::new(RUNNER));
    Client::builder()
        .runners(runners)
        .ssh(crate::SshSettings::default())
        .ttl(Duration::from_secs(seconds))
        .build()
}

#[tokio::test]
async fn closing_proves_that_the_runner_is_gone() {
    let (session, mut peer) = session().await;
    let far = async {
        assert_eq!(peer.expect("SHUTDOWN").await, json!({"grace": 5}));
        peer.exit().await;
    };
    let (farewell, ()) = tokio::join!(session.close(), far);
    let farewell = farewell.unwrap();
    assert!(farewell.is_proven(), "{farewell:?}");
    assert_eq!(farewell.status, Some(ExitStatus::Code(0)));
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_something_else_holds_open_does_not_hold_up_the_end() {
    let (session, mut peer) = session().await;
    let far = async {
        peer.expect("SHUTDOWN").await;
        let exit = json!({"reason": "completed", "exit_code": 0, "self_deleted": true, "commands_total": 0});
        peer.send("EXIT", exit).await;
    };
    let began = tokio::time::Instant::now();
    let (farewell, ()) = tokio::join!(session.shutdown(None), far);
    let farewell = farewell.unwrap();
    assert!(farewell.exit.is_some() && !farewell.is_proven(), "{farewell:?}");
    assert!(began.elapsed() <= Duration::from_secs(6));
}

#[tokio::test]
async fn commands_of_a_runner_that_ends_by_itself_are_told_why() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    peer.command().await;
    let exit = json!({"reason": "signal", "exit_code": 1, "self_deleted": true, "commands_total": 1});
    peer.send("EXIT", exit).await;
    peer.far.exit(1);
    let error = child.wait().await.unwrap_err();
    assert!(
        matches!(&error, Error::Lost { pid: None, .. }) && error.to_string().contains("Signal"),
        "{error}"
    );
    assert!(session.close().await.unwrap().is_proven());
}

#[tokio::test]
async fn a_runner_that_goes_without_a_word_is_lost_with_its_last_words() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    peer.command().await;
    peer.far.complain("out of memory\n");
    peer.far.exit(137);
    let error = child.wait().await.unwrap_err().to_string();
    assert!(error.contains("exit status 137") && error.contains("out of memory"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_does_not_go_is_reported_with_its_process_id() {
    let (session, peer) = session().await;
    let error = session.close().await.unwrap_err();
    assert!(matches!(&error, Error::Lost { step: Step::Close, pid: Some(4711), .. }), "{error}");
    drop(peer);
}

#[tokio::test]
async fn dropping_a_session_ends_its_runner() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    let id = peer.command().await;
    drop(session);
    assert_eq!(peer.expect("SHUTDOWN").await, json!({"grace": 0}));
    peer.send("ERROR", json!({"command_id": id, "code": "CANCELLED", "message": "m", "retryable": false}))
        .await;
    peer.exit().await;
    assert!(matches!(child.wait().await.unwrap_err(), Error::Command { .. }), "it still gets its answer");
    assert!(peer.far.line().await.is_none(), "input is closed at the end");
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_stays_after_its_session_was_dropped_is_cut_off() {
    let (session, peer) = session().await;
    drop(session);
    peer.far.aborted().await;
}

#[tokio::test]
async fn what_is_no_frame_ends_the_session_and_is_shown() {
    let (session, mut peer) = session().await;
    let child = session.start(Exec::argv(["a"])).await.unwrap();
    peer.command().await;
    peer.far.say("background job of .bashrc\n").await;
    let error = child.wait().await.unwrap_err().to_string();
    assert!(error.contains("background job of .bashrc"), "{error}");
}

#[tokio::test]
async fn a_second_ready_ends_the_session() {
    let (session, mut peer) = session().await;
    peer.send("READY", json!({"version": "1", "platform": "linux", "arch": "amd64", "pid": 1})).await;
    assert!(session.ended().await.unwrap_err().to_string().contains("second READY"));
}

#[tokio::test]
async fn a_command_over_the_frame_limit_is_not_sent() {
    let (session, mut peer) = session().await;
    let error = session.start(Exec::shell("x".repeat(FRAME_LIMIT))).await.unwrap_err();
    assert!(error.to_string().contains("send contents as input"), "{error}");
    assert!(!peer.far.has_more());
}

#[tokio::test]
async fn raw_commands_keep_their_id_which_nobody_else_may_have_meanwhile() {
    let (session, mut peer) = session().await;
    let message: CommandMessage = serde_json::from_value(
        json!({"id": "mine", "type": "exec", "timeout": 5, "params": {"command": "true"}}),
    )
    .unwrap();
    let child = session.start_raw(&message).await.unwrap();
    assert!(session.start_raw(&message).await.unwrap_err().to_string().contains("mine"));
    assert_eq!(peer.command().await, "mine");
    peer.done("mine").await;
    assert!(child.wait().await.unwrap().result.get().contains("exit_code"));
    session.start_raw(&message).await.unwrap();
}

#[tokio::test]
async fn what_is_started_early_travels_with_the_runner() {
    let (transport, far) = fake();
    let mut opening = client().open(Arc::new(transport));
    let child = opening.start(&Exec::argv(["a"]), CommandOptions::default()).unwrap();
    opening.shutdown();
    assert!(
        opening.start(&Exec::argv(["b"]), CommandOptions::default()).is_err(),
        "nothing after the shutdown"
    );
    let (session, mut peer) = tokio::join!(opening.connect(), come_up(far));
    let id = peer.command().await;
    assert_eq!(peer.expect("SHUTDOWN").await, json!({}));
    peer.done(&id).await;
    peer.exit().await;
    child.wait().await.unwrap();
    assert!(session.unwrap().ended().await.unwrap().is_proven());
}

#[tokio::test]
async fn commands_of_a_session_that_never_came_up_say_why() {
    let (transport, mut far) = fake();
    let mut opening = client().open(Arc::new(transport));
    let child = opening.start(&Exec::argv(["a"]), CommandOptions::default()).unwrap();
    far.exit(1);
    assert!(opening.connect().await.is_err());
    assert!(matches!(child.wait().await.unwrap_err(), Error::Bootstrap { .. }));
}

#[tokio::test]
async fn output_comes_as_bytes() {
    let event = |message: &str, encoding| Event {
        message: message.into(),
        stream: Some(sortie_protocol::Stream::Stderr),
        encoding,
        ..Event::default()
    };
    let base64 = Some(sortie_protocol::Encoding::Base64);
    assert_eq!(output(&event("hi", None)).unwrap().1.as_ref(), b"hi");
    assert_eq!(output(&event("/wA=", base64)).unwrap().1.as_ref(), b"\xff\0");
    assert_eq!(output_len(&event("/wA=", base64)), 2);
    assert_eq!(output(&Event::default()), None);
}

#[tokio::test]
async fn what_wants_a_second_login_is_refused_where_that_would_ask_somebody() {
    let confirmed = SshdHarden { confirm: Some(30), ..SshdHarden::default() };
    let (transport, _far) = fake();
    let mut opening = client().open(Arc::new(transport));
    let early = opening.start(&confirmed, CommandOptions::default());
    assert!(matches!(early, Err(Error::Config { .. })), "{early:?}");

    let (session, mut peer) = session().await;
    match session.run(confirmed).await {
        Err(Error::Command { error, .. }) => {
            assert_eq!(error.code, sortie_protocol::ErrorCode::Unsupported, "{error:?}");
            assert!(error.message.contains("nothing was changed"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    // It was not sent: this is the next frame.
    let running = session.start(SshdHarden::default()).await.unwrap();
    assert_eq!(peer.expect("CMD").await["params"], json!({}));
    drop(running);
}

#[tokio::test]
async fn without_a_second_login_a_change_is_cancelled_and_not_confirmed() {
    let (session, mut peer) = session().await;
    let waits = |port: Option<&str>| {
        let mut event = Event { command_id: "c9".into(), ..Event::default() };
        event.metadata.insert("awaiting".into(), "confirm".into());
        if let Some(port) = port {
            event.metadata.insert("port".into(), port.into());
        }
        assert!(awaits_confirmation(&event));
        event
    };
    for port in [None, Some("2222")] {
        assert!(session.confirm(&waits(port)).await.is_err());
        assert_eq!(peer.expect("CANCEL").await["command_id"], "c9");
    }
    assert!(!awaits_confirmation(&Event::default()));
}
