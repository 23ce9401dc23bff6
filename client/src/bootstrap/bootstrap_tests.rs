//! The client's side of the bootstrap against a far side that the test plays.

use super::*;
use crate::observe::Unobserved;
use crate::transport::fake::{Far, fake};

fn runners() -> RunnerSet {
    let mut set = RunnerSet::new();
    set.insert(Machine::X86_64, Runner::new(&b"the runner"[..]));
    set
}

fn digest() -> String {
    runners().get(Machine::X86_64).unwrap().sha256().to_owned()
}

fn ready(sha256: &str, major: u32) -> String {
    format!(
        "{{\"type\":\"READY\",\"data\":{{\"version\":\"1\",\"platform\":\"linux\",\"arch\":\"amd64\",\"pid\":7,\
         \"sha256\":\"{sha256}\",\"protocol\":{{\"major\":{major},\"minor\":0}}}}}}\n"
    )
}

/// Plays a far side against a start, with the marker and the token that the script was given.
async fn play<F>(cache: bool, far_side: impl FnOnce(Far, String, String) -> F) -> Result<Started, Error>
where
    F: Future<Output = ()>,
{
    play_with(StartOptions { cache, ..options() }, far_side).await
}

fn options() -> StartOptions {
    StartOptions {
        flags: vec!["--ttl".into(), "600".into()],
        cache: false,
        shell_timeout: Duration::from_secs(30),
        start_timeout: Duration::from_secs(60),
        installed: Installed::Refused,
        known_only: false,
    }
}

async fn play_with<F>(
    options: StartOptions,
    far_side: impl FnOnce(Far, String, String) -> F,
) -> Result<Started, Error>
where
    F: Future<Output = ()>,
{
    let (transport, mut far) = fake();
    let cache = options.cache;
    let runners = runners();
    let start = start(&transport, &runners, &options, Bytes::from_static(b"early\n"), &Unobserved);
    let played = async {
        let words = far.launches.recv().await.unwrap().argv;
        let (marker, token) = (words[4].clone() + &words[5], words[6].clone());
        assert_eq!(words[3..].len(), 8);
        assert_eq!(words[7..], ["60", if cache { &words[8] } else { "-" }, "--ttl", "600"]);
        far_side(far, marker, token).await;
    };
    let (result, ()) = tokio::join!(start, played);
    result
}

/// The problem of a bootstrap that must fail.
fn problem(result: Result<Started, Error>) -> (BootstrapProblem, String) {
    match result {
        Err(Error::Bootstrap { host, problem, printed }) => {
            assert_eq!(host, "web1");
            (problem, printed)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn with_an_exact_reader_everything_goes_in_one_flight() {
    let started = play(false, |mut far, marker, token| async move {
        far.say(format!("motd\nno newline{marker} Linux x86_64 1 raw -\n")).await;
        assert_eq!(far.line().await.unwrap(), format!("raw 10 10 {}", digest()));
        assert_eq!(far.bytes(10).await, b"the runner");
        assert_eq!(far.line().await.unwrap(), token);
        assert_eq!(far.line().await.unwrap(), "early", "sent before the far side has said anything");
        far.say(ready(&digest(), 1) + "{\"rest\":1}\n").await;
    })
    .await
    .unwrap();
    assert_eq!(started.ready.pid, 7);
    let mut decoder = started.decoder;
    assert_eq!(decoder.next_line(), Some(Line::Frame(b"{\"rest\":1}")));
}

#[tokio::test]
async fn without_an_exact_reader_nothing_follows_the_payload_until_it_was_read() {
    play(false, |mut far, marker, token| async move {
        far.say(format!("{marker} Linux amd64 0 gzip -\n")).await;
        let header = far.line().await.unwrap();
        let bytes: usize = header.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(header.starts_with("gzip "));
        far.bytes(bytes).await;
        tokio::task::yield_now().await;
        assert!(!far.has_more());
        far.say(format!("{marker} got\n")).await;
        assert_eq!(far.line().await.unwrap(), token);
        assert_eq!(far.line().await.unwrap(), "early");
        far.say(ready(&digest(), 1)).await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_cached_runner_is_not_sent_again() {
    play(true, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 gzip {}\n", digest())).await;
        assert_eq!(far.line().await.unwrap(), format!("cached 0 0 {}", digest()));
        assert_eq!(far.line().await.unwrap(), "early");
        far.say(ready(&digest(), 1)).await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn noise_in_pieces_and_before_ready_is_passed_over() {
    let started = play(false, |mut far, marker, _| async move {
        let (half, other_half) = marker.split_at(9);
        far.say(format!("noise {half}")).await;
        far.say(format!("x{half}")).await;
        far.say(other_half.to_owned()).await;
        far.say(" Linux x86_64 1 raw -").await;
        far.say("\n").await;
        far.line().await.unwrap();
        far.say("fortune of the day\n{\"type\":\"x\"}\n").await;
        far.say(ready(&digest(), 1)).await;
        while far.line().await.is_some_and(|line| line != "early") {}
    })
    .await;
    assert!(started.is_ok(), "{started:?}");
}

#[tokio::test]
async fn a_shell_that_refuses_is_named_with_what_it_printed() {
    let result = play(false, |mut far, _, _| async move {
        far.say("This account is currently not available.\n").await;
        far.complain("rbash: exec: restricted\x1b[2J\n");
        far.exit(1);
    });
    let (problem, printed) = problem(result.await);
    assert_eq!(problem, BootstrapProblem::ShellRefused { reason: "it ended with exit status 1".into() });
    assert!(printed.contains("not available. | rbash: exec: restricted"), "{printed}");
    assert!(!printed.contains('\x1b'));
}

#[tokio::test]
async fn an_echo_of_the_command_line_is_not_taken_for_the_script() {
    let (transport, mut far) = fake();
    let options = StartOptions { flags: Vec::new(), ..options() };
    let runners = runners();
    let start = start(&transport, &runners, &options, Bytes::new(), &Unobserved);
    let played = async {
        let line = far.launches.recv().await.unwrap().line;
        far.say(line + "\n").await;
        far.exit(0);
    };
    let (result, ()) = tokio::join!(start, played);
    assert!(matches!(problem(result).0, BootstrapProblem::ShellRefused { .. }));
}

#[tokio::test]
async fn endless_noise_is_given_up_and_the_connection_broken_off() {
    let result = play(false, |mut far, _, _| async move {
        loop {
            tokio::select! {
                () = far.say(vec![b'y'; 60_000]) => {}
                () = tokio::task::yield_now() => {}
            }
            if far.ending.get().is_some()
                || tokio::time::timeout(Duration::from_millis(1), far.aborted()).await.is_ok()
            {
                break;
            }
        }
    });
    assert!(matches!(problem(result.await).0, BootstrapProblem::TooNoisy { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_shell_that_never_comes_to_the_script_ends_at_its_limit() {
    let error = play(false, |mut far, _, _| async move {
        far.say("Press any key to continue\n").await;
        far.aborted().await;
    })
    .await
    .unwrap_err();
    assert!(matches!(&error, Error::TimedOut { step: Step::StartShell, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_never_comes_up_ends_at_its_limit() {
    let error = play(false, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
        far.aborted().await;
    })
    .await
    .unwrap_err();
    assert!(matches!(&error, Error::TimedOut { step: Step::StartRunner, .. }), "{error}");
}

#[tokio::test]
async fn machines_without_a_runner_are_named() {
    for (said, expected) in [
        ("Linux i686", BootstrapProblem::UnsupportedMachine { machine: "Linux i686".into() }),
        ("Darwin arm64", BootstrapProblem::UnsupportedMachine { machine: "Darwin arm64".into() }),
        ("", BootstrapProblem::UnsupportedMachine { machine: "uname told nothing".into() }),
        (
            "Linux riscv64",
            BootstrapProblem::NoRunner {
                machine: "riscv64gc-unknown-linux-musl".into(),
                held: vec!["x86_64-unknown-linux-musl".into()],
            },
        ),
    ] {
        let result = play(false, move |mut far, marker, _| async move {
            far.say(format!("{marker} {said} 1 gzip -\n")).await;
            far.aborted().await;
        });
        assert_eq!(problem(result.await).0, expected);
    }
}

#[tokio::test]
async fn directories_that_would_not_do_are_all_named() {
    let result = play(false, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
        far.say(format!("{marker} no /run/user/0: mkdir: cannot create: Read-only file system\n")).await;
        far.say(format!("{marker} no /dev/shm: sh: 1: /dev/shm/x: Permission denied noexec\n")).await;
        far.say(format!("{marker} no /tmp: head: error writing: No space left on device\n{marker} none\n"))
            .await;
        far.aborted().await;
    });
    let (problem, _) = problem(result.await);
    let text = problem.to_string();
    assert!(text.contains("/run/user/0: read-only file system; /dev/shm: programs cannot be run from it (noexec); /tmp: no space left"), "{text}");
}

#[tokio::test]
async fn damage_and_a_runner_that_does_not_run_are_told_apart() {
    let say = |what: &'static str| {
        play(false, move |mut far, marker, _| async move {
            far.say(format!("{marker} Linux x86_64 1 raw -\n{marker} {what}\n")).await;
            far.aborted().await;
        })
    };
    let (damaged, _) = problem(say("damaged sha256 0123").await);
    assert_eq!(damaged, BootstrapProblem::Damaged { reason: "sha256 0123".into() });
    let (broken, _) = problem(say("broken Illegal instruction").await);
    assert!(broken.to_string().contains("Illegal instruction"), "{broken}");
}

#[tokio::test]
async fn a_runner_of_another_hash_or_version_is_not_used() {
    let answer = |ready: String| {
        play(false, move |mut far, marker, _| async move {
            far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
            far.say(ready).await;
            far.aborted().await;
        })
    };
    let error = answer(ready(&"0".repeat(64), 1)).await.unwrap_err();
    assert!(matches!(&error, Error::RunnerMismatch { expected, .. } if *expected == digest()), "{error}");
    let (newer, _) = problem(answer(ready(&digest(), 2)).await);
    assert!(matches!(newer, BootstrapProblem::Incompatible { .. }));
}

#[tokio::test]
async fn a_link_cut_on_the_way_is_a_loss_and_says_where() {
    let shell =
        play(false, |mut far, _, _| async move { far.cut("the connection was cut") }).await.unwrap_err();
    assert!(matches!(&shell, Error::Lost { step: Step::StartShell, .. }), "{shell}");
    let runner = play(false, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
        far.cut("the connection was cut");
    });
    let runner = runner.await.unwrap_err();
    assert!(matches!(&runner, Error::Lost { step: Step::StartRunner, .. }), "{runner}");
}

#[tokio::test]
async fn a_runner_that_dies_at_once_is_told_with_its_last_words() {
    let result = play(false, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
        far.complain("thread main panicked\n");
        far.exit(101);
    });
    let (problem, printed) = problem(result.await);
    assert!(
        problem.to_string().contains("exit status 101") && printed.contains("panicked"),
        "{problem} {printed}"
    );
}

/// What a host says that starts a runner by itself.
fn installed(sha256: &str, signed: bool, nonce: &str) -> String {
    format!(
        "{{\"type\":\"READY\",\"data\":{{\"version\":\"1\",\"platform\":\"linux\",\"arch\":\"amd64\",\"pid\":7,\
         \"capabilities\":{{\"exec\":true,\"signed\":{signed}}},\"session\":\"{0}\",\"nonce\":\"{nonce}\",\
         \"sha256\":\"{sha256}\",\"protocol\":{{\"major\":1,\"minor\":2}}}}}}\n",
        "0".repeat(32)
    )
}

async fn meet(how: Installed, known_only: bool, says: String) -> Result<Started, Error> {
    let options = StartOptions { installed: how, known_only, ..options() };
    play_with(options, |mut far, _, _| async move {
        far.say(format!("motd\n{says}{{\"rest\":1}}\n")).await;
    })
    .await
}

#[tokio::test]
async fn a_runner_that_the_host_starts_by_itself_is_taken_where_that_is_asked_for() {
    let nonce = "1".repeat(32);
    for how in [Installed::Taken, Installed::Required] {
        let started = meet(how, false, installed("abc", true, &nonce)).await.unwrap();
        assert_eq!(started.ready.pid, 7);
        assert_eq!(started.token, "", "there is no directory of it");
        let mut decoder = started.decoder;
        assert_eq!(decoder.next_line(), Some(Line::Frame(b"{\"rest\":1}")));
    }
    meet(Installed::Taken, true, installed(&digest(), true, &nonce)).await.unwrap();
}

#[tokio::test]
async fn a_runner_that_the_host_starts_by_itself_is_refused_unless_it_is_what_was_asked_for() {
    let nonce = "1".repeat(32);
    let refused = meet(Installed::Refused, false, installed("abc", true, &nonce)).await;
    assert_eq!(problem(refused).0, BootstrapProblem::Installed);
    for (says, part) in [
        (installed("abc", false, &nonce), "without an anchor"),
        (installed("abc", true, ""), "no session and nonce"),
        (installed("abc", true, &nonce).replace("\"major\":1", "\"major\":2"), "version 2.2"),
    ] {
        match problem(meet(Installed::Taken, false, says).await).0 {
            BootstrapProblem::Incompatible { reason } => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let unknown = meet(Installed::Taken, true, installed("abc", true, &nonce)).await;
    assert!(matches!(unknown, Err(Error::RunnerMismatch { .. })), "{unknown:?}");
}

#[tokio::test]
async fn a_shell_will_not_do_where_an_anchored_runner_must_be() {
    let options = StartOptions { installed: Installed::Required, ..options() };
    let result = play_with(options, |mut far, marker, _| async move {
        far.say(format!("{marker} Linux x86_64 1 raw -\n")).await;
        assert_eq!(far.line().await, None, "no runner is sent");
    });
    assert_eq!(problem(result.await).0, BootstrapProblem::NotAnchored);
}
