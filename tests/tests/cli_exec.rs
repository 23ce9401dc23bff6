//! `sortie exec` and `sortie sh` against the embedded server: bytes, statuses, input, ends.

mod cli_support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use cli_support::{NASTY, NO_TEXT, name, on, sortie};
use nix::sys::signal::Signal;
use sortie_tests::embedded::Embedded;
use tokio::io::AsyncReadExt as _;

/// Nothing of a session is on the host any more.
async fn clean(host: &Embedded) -> Result<()> {
    host.quiet().await?;
    assert_eq!(host.files()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn arguments_arrive_byte_for_byte_without_a_shell() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let texts = on(host.access(), "exec").args(["--", "printf", "%s\\0"]).args(NASTY).run().await?.fine();
    assert_eq!(
        texts.stdout,
        NASTY.iter().flat_map(|arg| [arg.as_bytes(), b"\0"].concat()).collect::<Vec<_>>()
    );
    let bytes = on(host.access(), "exec")
        .args(["--", "printf", "%s\\0", "text", ""])
        .arg(OsStr::from_bytes(NO_TEXT))
        .run()
        .await?
        .fine();
    assert_eq!(bytes.stdout, [b"text\0\0", NO_TEXT, b"\0"].concat());
    clean(&host).await
}

#[tokio::test]
async fn a_line_of_shell_is_given_to_one_shell_as_it_is() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let line = "x='a  b'; printf '%s|' \"$x\" $x '!' \\\\; echo \"$(printf hi)\" >&2; exit 9";
    let ended = on(host.access(), "sh").arg(line).run().await?.ended_with(9);
    assert_eq!((ended.text(), ended.stderr.as_str()), ("a  b|a|b|!|\\|", "hi\n"));
    Ok(())
}

#[tokio::test]
async fn the_streams_stay_apart_and_every_byte_comes() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let script = "printf 'out\\000\\377'; printf 'err\\033[1m\\n' >&2; head -c 3000000 /dev/zero";
    let ended = on(host.access(), "exec").args(["--", "sh", "-c", script]).run().await?.ended_with(0);
    assert_eq!(&ended.stdout[..5], b"out\0\xff");
    assert_eq!(ended.stdout.len(), 5 + 3_000_000);
    assert_eq!(ended.stderr, "err\x1b[1m\n");
    clean(&host).await
}

#[tokio::test]
async fn piped_input_reaches_the_command_beyond_any_window() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let ended = on(host.access(), "exec").args(["--", "cat"]).run_with(&input).await?.fine();
    assert!(ended.stdout == input, "{} bytes came back", ended.stdout.len());
    let empty = on(host.access(), "exec").args(["--", "cat"]).run_with(b"").await?.fine();
    assert!(empty.stdout.is_empty());
    clean(&host).await
}

#[tokio::test]
async fn a_command_that_does_not_read_its_input_ends_without_it() -> Result<()> {
    let host = Embedded::builder().start().await?;
    // The pipe stays open, and more is in it than anybody takes.
    let mut started = on(host.access(), "exec").args(["--", "head", "-n", "1"]).piped().start()?;
    let mut stdin = started.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, &b"line\n".repeat(10_000)).await?;
    let ended = started.end().await?.fine();
    assert_eq!(ended.text(), "line\n");
    drop(stdin);
    clean(&host).await
}

#[tokio::test]
async fn without_input_a_command_reads_the_end_at_once() -> Result<()> {
    let host = Embedded::builder().start().await?;
    // Were it read, it would never end.
    let mut started = on(host.access(), "exec").args(["-n", "--", "cat"]).piped().start()?;
    let stdin = started.stdin.take();
    assert!(started.end().await?.fine().stdout.is_empty());
    drop(stdin);
    Ok(())
}

#[tokio::test]
async fn exit_statuses_say_what_happened() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let run = |script: &'static str| on(host.access(), "sh").arg(script).run();
    run("exit 0").await?.fine();
    run("exit 7").await?.ended_with(7);
    run("kill -9 $$").await?.ended_with(137).says(&["SIGKILL"]);
    run("kill -15 $$").await?.ended_with(143).says(&["SIGTERM"]);
    let exec = |argv: &'static [&'static str]| on(host.access(), "exec").arg("--").args(argv).run();
    exec(&["no-such-program"]).await?.ended_with(127).says(&["no-such-program"]);
    exec(&["/etc/passwd"]).await?.ended_with(126).says(&["/etc/passwd"]);
    exec(&["sh", "-c", "exit 255"]).await?.ended_with(255);
    clean(&host).await
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree_and_is_never_a_success() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let script = "setsid sleep 1000 & trap 'exit 0' TERM; echo begun; wait";
    let ended = on(host.access(), "sh").args(["--timeout", "2", script]).run().await?.ended_with(124);
    assert_eq!(ended.text(), "begun\n");
    let ended = ended.says(&["timeout of 2 s", "--timeout"]);
    assert!(ended.stderr.contains(&name(host.access())));
    on(host.access(), "sh")
        .args(["--timeout", "60", "--ttl", "2", script])
        .run()
        .await?
        .ended_with(124)
        .says(&["--ttl"]);
    clean(&host).await
}

#[tokio::test]
async fn ctrl_c_ends_the_remote_tree_in_order() -> Result<()> {
    let host = Embedded::builder().start().await?;
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let script = "setsid sleep 1000 & echo begun; wait";
        let mut started = on(host.access(), "sh").arg(script).start()?;
        assert_eq!(started.line().await?, "begun\n");
        started.signal(signal)?;
        started.end().await?.ended_with(status).says(&["CANCELLED"]);
        clean(&host).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_ctrl_c_leaves_at_once_and_the_host_cleans_up_itself() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let script = "trap '' TERM; echo begun; while :; do sleep 1; done";
    let mut started = on(host.access(), "sh").arg(script).start()?;
    assert_eq!(started.line().await?, "begun\n");
    started.signal(Signal::SIGINT)?;
    assert!(started.error_line().await?.contains("Ctrl-C again"));
    started.signal(Signal::SIGINT)?;
    let ended = started.end().await?.ended_with(130);
    assert!(!ended.stderr.contains("CANCELLED"), "it waited: {ended:?}");
    clean(&host).await
}

#[tokio::test]
async fn ctrl_c_while_connecting_ends_at_once() -> Result<()> {
    let host = Embedded::builder().no_reply().start().await?;
    let mut started = on(host.access(), "exec").args(["--trace", "--", "true"]).start()?;
    // The command is on its way, and nobody will ever answer.
    assert!(started.error_line().await?.contains("CMD"));
    started.signal(Signal::SIGINT)?;
    started.end().await?.ended_with(130);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_command_quietly() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let mut started = on(host.access(), "exec").args(["--", "yes"]).start()?;
    let mut some = [0; 4];
    started.stdout.as_mut().unwrap().read_exact(&mut some).await?;
    started.stdout = None;
    let ended = started.end().await?.ended_with(141);
    assert!(!ended.stderr.contains("roken pipe"), "{ended:?}");
    clean(&host).await
}

#[tokio::test]
async fn a_full_disk_under_our_output_is_told() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let inner = format!(
        "exec {} exec -i {} --known-hosts {} -F none --batch -H {} -- yes >/dev/full",
        cli_support::program().display(),
        host.access().identity.display(),
        host.access().known_hosts.display(),
        name(host.access())
    );
    let output = tokio::process::Command::new("sh")
        .args(["-c", &inner])
        .env("SORTIE_RUNNERS", sortie_tests::runner::directory()?)
        .output();
    let output = sortie_tests::within("sortie", output).await??;
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot write to standard output"),
        "{output:?}"
    );
    clean(&host).await
}

#[tokio::test]
async fn directory_and_environment_are_those_asked_for() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let ended = on(host.access(), "sh")
        .args(["--cd", "/usr/bin", "-e", "A=one two", "--env", "B=x=y", "pwd; echo \"$A $B $USER\""])
        .run()
        .await?
        .fine();
    assert_eq!(ended.text(), "/usr/bin\none two x=y deploy\n");
    on(host.access(), "exec").args(["--cd", "/no/such", "--", "true"]).run().await?.says(&["/no/such"]);
    Ok(())
}

#[tokio::test]
async fn check_runs_nothing() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let file = host.home().join("made");
    let ended =
        on(host.access(), "exec").args(["--check", "--", "touch"]).arg(&file).run().await?.ended_with(0);
    assert!(!file.exists() && ended.stderr.contains("nothing was run"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn on_several_hosts_every_line_names_its_host() -> Result<()> {
    let key = sortie_tests::keys::KeyPair::generate()?;
    let one = Embedded::builder().host_key(key.clone()).env("N", "1").start().await?;
    let two = Embedded::builder()
        .host_key(key)
        .env("N", "2")
        .authorized_key(russh::keys::load_public_key(one.access().identity.with_extension("pub"))?)
        .start()
        .await?;
    let known = one.home().join("known");
    let lines =
        [one.access(), two.access()].map(|access| std::fs::read_to_string(&access.known_hosts).unwrap());
    std::fs::write(&known, lines.concat())?;
    let (first, second) = (name(one.access()), name(two.access()));
    let both = |verb: &str| {
        sortie(verb).arg("-i").arg(&one.access().identity).arg("--known-hosts").arg(&known).args([
            "-F".to_owned(),
            "none".to_owned(),
            "--batch".to_owned(),
            "-H".to_owned(),
            format!("{first},{second}"),
        ])
    };
    let ended = both("sh").arg("echo out $N; printf 'no newline' >&2").run().await?.ended_with(0);
    let mut lines: Vec<&str> = ended.text().lines().collect();
    lines.sort_unstable();
    let mut expected = [format!("{first}: out 1"), format!("{second}: out 2")];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    let ended = ended.says(&[
        &format!("{first}: no newline\n"),
        &format!("{second}: no newline\n"),
        "2 hosts: 2 fine",
    ]);
    assert_eq!(ended.stderr.lines().count(), 3);

    let ended = both("sh").arg("[ $N = 1 ]").run().await?.ended_with(1);
    ended.says(&[&format!("{second}: exit status 1"), "1 fine, 1 failed"]);

    // Input goes to several only when asked.
    let ended = both("exec").args(["--", "cat"]).run_with(b"data\n").await?.ended_with(0);
    assert_eq!(ended.text(), "");
    let ended = both("exec").args(["--stdin", "--", "cat"]).run_with(b"data\n").await?.ended_with(0);
    assert_eq!(ended.text().matches("data").count(), 2);

    let gone = two.access().port;
    drop(two);
    let ended = both("exec").args(["--", "true"]).run().await?.ended_with(3);
    ended.says(&[&format!("127.0.0.1:{gone}"), "1 fine, 1 unreachable"]);
    Ok(())
}

#[tokio::test]
async fn events_as_json_carry_all_that_people_are_shown() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let host_name = name(host.access());
    let ended = on(host.access(), "sh")
        .args(["--json", "echo out; printf '\\377' >&2; exit 3"])
        .run()
        .await?
        .ended_with(3);
    assert_eq!(ended.stderr, "");
    let events = ended.events();
    assert!(events.iter().all(|event| event["host"] == host_name.as_str() && event["time"].is_string()));
    let find = |kind: &str| events.iter().find(move |event| event["event"] == kind).unwrap();
    let output: Vec<_> = events.iter().filter(|event| event["event"] == "output").collect();
    assert!(output.iter().any(|event| event["stream"] == "stdout" && event["data"] == "out\n"));
    let raw = output.iter().find(|event| event["stream"] == "stderr").unwrap();
    assert_eq!((raw["data"].as_str(), raw["encoding"].as_str()), (Some("/w=="), Some("base64")));
    let done = find("done");
    assert_eq!((done["command"].as_str(), done["result"]["exit_code"].as_i64()), (Some("exec"), Some(3)));

    let ended =
        on(host.access(), "exec").args(["--json", "--", "no-such-program"]).run().await?.ended_with(127);
    let events = ended.events();
    assert_eq!(
        (&events[0]["event"], &events[0]["code"], &events[0]["kind"]),
        (&"error".into(), &"NOT_FOUND".into(), &"command".into())
    );
    Ok(())
}

#[tokio::test]
async fn a_trace_shows_every_frame_and_nothing_that_is_in_it() -> Result<()> {
    let host = Embedded::builder().start().await?;
    let ended = on(host.access(), "sh")
        // It reads its input to the end, or it could be done before any was sent.
        .args(["--trace", "-e", "T=hunter2", "cat > /dev/null; echo $T"])
        .run_with(b"sesame")
        .await?
        .ended_with(0);
    assert_eq!(ended.text(), "hunter2\n");
    for secret in ["hunter2", "sesame", "echo"] {
        assert!(!ended.stderr.contains(secret), "{secret}: {}", ended.stderr);
    }
    ended.says(&["> CMD", "> SHUTDOWN", "> INPUT", "< READY", "< EVENT", "< DONE", "< EXIT"]);
    Ok(())
}

#[tokio::test]
async fn what_a_host_prints_cannot_drive_our_terminal() -> Result<()> {
    sortie_tests::require_programs!("script");
    let host = Embedded::builder().start().await?;
    let access = host.access();
    let inner = format!(
        "{} sh -i {} --known-hosts {} -F none --batch -n -H {} 'printf \"\\033]0;owned\\007safe\\n\"'",
        cli_support::program().display(),
        access.identity.display(),
        access.known_hosts.display(),
        name(access)
    );
    let output = tokio::process::Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .env("SORTIE_RUNNERS", sortie_tests::runner::directory()?)
        .env("SHELL", "/bin/sh")
        .stdin(std::process::Stdio::null())
        .output();
    let output = sortie_tests::within("script", output).await??;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("^[]0;owned^Gsafe"), "{output:?}");
    assert!(!shown.contains('\x1b') && !shown.contains('\x07'), "{shown:?}");
    Ok(())
}
