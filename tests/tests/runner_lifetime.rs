//! How a runner ends: by time, by silence, by loss of its peer, by signals; and what it leaves behind then.
//! Nothing here measures time: what must not be waited for is set so long that the wait itself would fail the test.

mod runner_support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use runner_support::{Dir, Session, ended, named, pids, runs, server_of, shell, status_kib, stream, with};
use serde_json::{Value, json};
use sortie_tests::process::{self, Process};
use sortie_tests::{eventually, runner};

/// A line of shell that says the pids of a tree on two levels, one of them in a session of its own, and then waits.
fn tree(file: &str) -> String {
    format!(
        "setsid sh -c 'echo $$ >> {file}; sleep 1000; :' & sh -c 'echo $$ >> {file}; sleep 1000; :' & \
         echo $$ >> {file}; wait"
    )
}

/// Starts that tree as command `id`; the pids of its three shells, the leader's last.
async fn start_tree(session: &mut Session, id: &str, dir: &Dir) -> Result<Vec<i32>> {
    let file = dir.text(id);
    session.send(&shell(id, &tree(&file))).await?;
    let mut found = pids(&dir.at(id), 3).await?;
    let leader = found.iter().position(|pid| {
        Process::read(*pid).is_some_and(|p| Process::read(p.ppid).is_some_and(|p| p.name == "sortie-keeper"))
    });
    let leader = found.remove(leader.context("no leader")?);
    found.push(leader);
    Ok(found)
}

#[tokio::test]
async fn the_time_to_live_ends_what_runs_and_names_itself() -> Result<()> {
    let mut session = Session::start(&["--ttl", "2", "--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let pids = start_tree(&mut session, "c", &dir).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!((&error["data"]["command_id"], &error["data"]["code"]), (&json!("c"), &json!("TTL_EXPIRED")));
    assert!(pids.iter().all(|pid| !runs(*pid)), "the tree outlived the answer");
    session.leaves("ttl_expired", 0).await?;
    session.quiet().await
}

#[tokio::test]
async fn the_time_to_live_ends_queued_commands_too() -> Result<()> {
    let mut session = Session::start(&["--ttl", "2"]).await?;
    for id in ["a", "b", "c"] {
        session.send(&shell(id, "sleep 1000")).await?;
    }
    for id in ["a", "b", "c"] {
        let answer = session.answer(id).await;
        // The order of the answers is not promised.
        if let Ok(answer) = answer {
            assert_eq!(answer["data"]["code"], "TTL_EXPIRED", "{answer}");
        }
    }
    assert_eq!(session.exit_code().await?, 0);
    session.quiet().await
}

#[tokio::test]
async fn the_time_to_live_holds_although_nobody_reads() -> Result<()> {
    let mut session = Session::start(&["--ttl", "2", "--concurrency", "4"]).await?;
    session.send(&stream("a", "exec yes")).await?;
    session.send(&shell("b", "head -c 3000000 /dev/zero | tr '\\0' x")).await?;
    assert_eq!(session.exit_code().await?, 0);
    session.quiet().await
}

#[tokio::test]
async fn a_timeout_beyond_the_time_to_live_does_not_extend_it() -> Result<()> {
    let mut session = Session::start(&["--ttl", "1"]).await?;
    let frame = with(shell("c", "sleep 1000"), json!({"timeout": u32::MAX}));
    session.failed("TTL_EXPIRED", &frame).await?;
    session.leaves("ttl_expired", 0).await?;
    Ok(())
}

#[tokio::test]
async fn silence_for_a_lease_ends_the_runner_and_what_runs() -> Result<()> {
    let mut session = Session::start(&["--lease", "1"]).await?;
    assert_eq!(session.ready["data"]["limits"]["lease"], 1);
    let dir = Dir::new()?;
    let pids = start_tree(&mut session, "c", &dir).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "CANCELLED");
    session.leaves("lease_expired", 1).await?;
    assert!(pids.iter().all(|pid| !runs(*pid)), "the tree outlived the session");
    session.quiet().await
}

#[tokio::test]
async fn pings_keep_the_lease_while_a_command_runs_for_longer() -> Result<()> {
    let mut session = Session::start(&["--lease", "4"]).await?;
    session.send(&shell("c", "sleep 6")).await?;
    loop {
        session.send(&json!({"type": "PING", "data": {"token": "t"}})).await?;
        let frame = session.next().await?.context("ended")?;
        if frame["type"] == "DONE" {
            break;
        }
        ensure!(frame["type"] == "PONG", "{frame}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    session.close_stdin();
    session.expect("EXIT").await?;
    Ok(())
}

#[tokio::test]
async fn after_the_end_of_input_the_lease_does_not_count() -> Result<()> {
    let mut session = Session::start(&["--lease", "1"]).await?;
    session.send(&shell("c", "sleep 3; echo whole")).await?;
    session.close_stdin();
    assert_eq!(session.answer("c").await?["data"]["result"]["stdout"], "whole\n");
    session.leaves("stdin_closed", 0).await?;
    Ok(())
}

#[tokio::test]
async fn every_command_accepted_before_the_end_of_input_is_answered() -> Result<()> {
    for flags in [&[][..], &["--concurrency", "8"]] {
        let mut session = Session::start(flags).await?;
        for n in 0..30 {
            session.send(&shell(&n.to_string(), &format!("echo {n}"))).await?;
        }
        session.close_stdin();
        let mut frames = session.rest().await?;
        let exit = frames.pop().context("nothing")?;
        assert_eq!(
            (&exit["data"]["reason"], &exit["data"]["commands_total"]),
            (&json!("stdin_closed"), &json!(30))
        );
        let mut answered: Vec<i64> = frames
            .iter()
            .filter_map(|frame| frame["data"]["result"]["stdout"].as_str()?.trim().parse().ok())
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..30).collect::<Vec<_>>());
        assert_eq!(session.exit_code().await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_runner_ends_when_nobody_reads_its_output_any_more() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session.close_stdout();
    assert_eq!(session.exit_code().await?, 1);
    session.quiet().await
}

#[tokio::test]
async fn stop_signals_to_the_pid_of_ready_end_the_session_and_every_tree() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut session = Session::start(&["--concurrency", "4"]).await?;
        let dir = Dir::new()?;
        let mut all = start_tree(&mut session, "a", &dir).await?;
        all.extend(start_tree(&mut session, "b", &dir).await?);
        let pid =
            session.ready["data"]["pid"].as_i64().and_then(|pid| pid.try_into().ok()).context("no pid")?;
        process::kill(pid, signal)?;
        for _ in 0..2 {
            assert_eq!(session.frame("ERROR").await?["data"]["code"], "CANCELLED");
        }
        session.leaves("signal", 1).await?;
        assert!(all.iter().all(|pid| !runs(*pid)), "{signal}: a tree outlived the session");
        session.quiet().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_signal_to_the_whole_process_group_ends_the_session_in_order() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    start_tree(&mut session, "a", &dir).await?;
    process::kill(-session.pid(), Signal::SIGTERM)?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "CANCELLED");
    session.leaves("signal", 1).await?;
    session.quiet().await
}

#[tokio::test]
async fn a_timeout_ends_double_forked_grandchildren_that_ignore_sigterm() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let file = dir.text("pids");
    let line = format!(
        "(setsid sh -c 'trap \"\" TERM HUP; echo $$ >> {file}; while :; do sleep 1000; done' &); \
         echo $$ >> {file}; sleep 1000; :"
    );
    let error = session.failed("TIMEOUT", &with(shell("c", &line), json!({"timeout": 1}))).await?;
    assert_eq!(error["class"], "transient");
    for pid in pids(&dir.at("pids"), 2).await? {
        assert!(!runs(pid), "{pid} outlived the answer");
    }
    session.finish().await
}

#[tokio::test]
async fn a_stopped_process_is_woken_to_hear_that_it_has_to_end() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    session.send(&stream("c", "trap 'echo heard; exit 7' TERM; echo $$; kill -STOP $$; echo never")).await?;
    let pid = session.number("c").await?;
    eventually("the stop", || {
        ensure!(Process::read(pid).is_some_and(|process| process.state == 'T'), "not yet");
        Ok(())
    })
    .await?;
    // A grace longer than the test waits: only a process that is woken answers in time.
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "c", "grace": 300}})).await?;
    let answer = session.answer("c").await?;
    assert_eq!(answer["data"]["code"], "CANCELLED");
    assert!(!runs(pid));
    session.finish().await
}

#[tokio::test]
async fn a_process_whose_main_thread_has_ended_is_ended_too() -> Result<()> {
    sortie_tests::require_programs!("cc");
    let dir = Dir::new()?;
    let source = "#include <pthread.h>\n#include <unistd.h>\n#include <stdio.h>\n#include <signal.h>\n\
        static void *stay(void *x) { for (;;) pause(); return x; }\n\
        int main(void) { pthread_t t; signal(SIGTERM, SIG_IGN); pthread_create(&t, 0, stay, 0);\n\
        printf(\"%d\\n\", getpid()); fflush(stdout); pthread_exit(0); }\n";
    let source = dir.write("a.c", source)?;
    let built =
        std::process::Command::new("cc").args(["-pthread", "-o", &dir.text("a"), &source]).status()?;
    assert!(built.success());
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    // Below the leader, so that the walk through /proc has to find it.
    session.send(&stream("c", &format!("setsid {} & sleep 1000; :", dir.text("a")))).await?;
    let pid = session.number("c").await?;
    eventually("the end of the main thread", || {
        ensure!(Process::read(pid).is_some_and(|process| process.is_zombie()), "not yet");
        Ok(())
    })
    .await?;
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "c", "grace": 0}})).await?;
    assert_eq!(session.answer("c").await?["data"]["code"], "CANCELLED");
    assert!(Process::read(pid).is_none(), "its other thread lives on");
    session.finish().await
}

#[tokio::test]
async fn a_tree_of_200_processes_that_ignore_sigterm_is_ended() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let dir = Dir::new()?;
    let file = dir.text("pids");
    let script = dir.write(
        "fork.sh",
        format!(
            "trap '' TERM\necho $$ >> {file}\nif [ $1 -gt 0 ]; then for i in 1 2 3 4 5; do\n\
             setsid sh $0 $(($1 - 1)) & done; sh $0 $(($1 - 1)) & fi\nsleep 1000\n"
        ),
    )?;
    session.send(&shell("c", &format!("exec sh {script} 3"))).await?;
    // 1 + 6 + 36 + 216 shells, each with a sleep.
    let all = pids(&dir.at("pids"), 200).await?;
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "c", "grace": 0}})).await?;
    assert_eq!(session.answer("c").await?["data"]["code"], "CANCELLED");
    assert!(all.iter().all(|pid| !runs(*pid)), "some of the tree outlived the answer");
    let pids = pids(&dir.at("pids"), 200).await?;
    ended(&pids).await?;
    session.finish().await
}

#[tokio::test]
async fn a_daemon_of_a_finished_command_is_counted_and_outlives_the_session() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let result = session.sh("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!").await?;
    let daemon: i32 = result["stdout"].as_str().unwrap_or_default().trim().parse()?;
    assert_eq!(result["left_running"], 1, "{result}");
    assert!(result.get("stdout_open").is_none(), "{result}");
    let guardian = session.pid();
    eventually("its new parent", || {
        ensure!(Process::read(daemon).is_some_and(|process| process.ppid == guardian), "not yet");
        Ok(())
    })
    .await?;
    // The next command's end, by force, is not its end.
    session.failed("TIMEOUT", &with(shell("c", "sleep 1000"), json!({"timeout": 1}))).await?;
    session.close_stdin();
    session.leaves("stdin_closed", 0).await?;
    eventually("the runner gone and the daemon alone", || {
        let left = session.leftovers();
        ensure!(left.len() == 1 && left[0].pid == daemon && left[0].ppid != guardian, "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn kill_leftovers_ends_what_the_program_started() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let line = "setsid sleep 1000 >/dev/null 2>&1 & echo $!; sleep 1000 & echo $!";
    let params = json!({"command": line, "capture_out": true, "kill_leftovers": true});
    let result = session.done("exec", params).await?;
    let said = result["stdout"].as_str().unwrap_or_default();
    let left: Vec<i32> = said.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(left.len(), 2, "{result}");
    assert!(left.iter().all(|pid| !runs(*pid)), "{result}");
    assert!(result.get("left_running").is_none(), "{result}");
    session.finish().await
}

#[tokio::test]
async fn death_of_the_server_ends_every_tree_and_the_guardian_says_so() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let mut all = start_tree(&mut session, "a", &dir).await?;
    all.extend(start_tree(&mut session, "b", &dir).await?);
    process::kill(server_of(&session)?, Signal::SIGKILL)?;
    assert_eq!(session.exit_code().await?, 1);
    assert!(all.iter().all(|pid| !runs(*pid)), "a tree outlived the guardian");
    assert!(session.rest().await?.is_empty());
    session.quiet().await
}

#[tokio::test]
async fn death_of_the_guardian_ends_the_session_as_a_signal_does() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let all = start_tree(&mut session, "a", &dir).await?;
    session.kill(Signal::SIGKILL)?;
    let exit = session.expect("EXIT").await?;
    assert_eq!(exit["data"]["reason"], "signal");
    ended(&all).await?;
    session.quiet().await
}

#[tokio::test]
async fn death_of_guardian_and_server_at_once_ends_every_tree() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    let all = start_tree(&mut session, "a", &dir).await?;
    let server = server_of(&session)?;
    for pid in [session.pid(), server] {
        process::kill(pid, Signal::SIGKILL)?;
    }
    ended(&all).await?;
    session.quiet().await
}

#[tokio::test]
async fn death_of_a_keeper_ends_its_command_and_no_other() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    let dir = Dir::new()?;
    session
        .send(&shell(
            "a",
            &format!("sh -c 'echo $$ >> {0}; sleep 1000; :' & echo $$ >> {0}; wait", dir.text("a")),
        ))
        .await?;
    let tree = pids(&dir.at("a"), 2).await?;
    let keeper = named(&session, "sortie-keeper")?;
    session.send(&stream("b", "echo $$; read x < /dev/null; sleep 1000; :")).await?;
    let other = session.number("b").await?;
    process::kill(keeper, Signal::SIGKILL)?;
    let answer = session.answer("a").await?;
    assert_eq!(answer["data"]["code"], "INTERNAL", "{answer}");
    ended(&tree).await?;
    assert!(runs(other));
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "b", "grace": 0}})).await?;
    session.answer("b").await?;
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn death_of_guardian_server_and_keeper_at_once_ends_at_least_the_program() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let tree = start_tree(&mut session, "a", &dir).await?;
    let victims = [session.pid(), server_of(&session)?, named(&session, "sortie-keeper")?];
    // None of them has time to do anything about the death of another.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in victims {
            process::kill(pid, signal)?;
        }
    }
    ended(&tree[2..]).await?;
    eventually("no process of the runner", || {
        let left = session.leftovers();
        ensure!(left.iter().all(|process| !process.name.starts_with("sortie")), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn no_zombies_are_left_to_the_guardian_or_the_server() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "8"]).await?;
    for n in 0..20 {
        session.send(&shell(&n.to_string(), "(sleep 0.01 &) ; true | true & exit 0")).await?;
    }
    for _ in 0..20 {
        session.frame("DONE").await?;
    }
    eventually("no process but the two", || {
        let left = session.descendants();
        ensure!(left.len() == 1 && left[0].name == "sortie-server", "{left:?}");
        Ok(())
    })
    .await?;
    session.finish().await
}

#[tokio::test]
async fn an_idle_runner_takes_little_memory() -> Result<()> {
    // One that is not built as it ships has more code; then what counts is what is its own.
    let shipped = std::fs::metadata(runner::binary()?)?.len() <= 704 * 1024;
    let memory = if shipped { "VmRSS" } else { "RssAnon" };
    let mut session = Session::start(&[]).await?;
    let (guardian, server) = (session.pid(), server_of(&session)?);
    // The guardian may settle down after READY.
    eventually("little memory", || {
        let both = status_kib(guardian, memory)? + status_kib(server, memory)?;
        ensure!(both <= 1228, "{both} KiB of {memory}");
        Ok(())
    })
    .await?;
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn the_guardian_holds_little_of_the_code_that_it_came_by() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let (guardian, server) = (session.pid(), server_of(&session)?);
    eventually("little code", || {
        let (of_guardian, of_server) = (resident_code(guardian)?, resident_code(server)?);
        ensure!(of_guardian * 4 <= of_server * 3, "{of_guardian} KiB of code beside {of_server} KiB");
        Ok(())
    })
    .await?;
    session.is_in_step().await?;
    session.finish().await
}

/// KiB of the program's code that are in this process's memory: smaps of proc(5).
fn resident_code(pid: i32) -> Result<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let is_code = |line: &&str| line.contains(" r-xp ") && line.ends_with(&*program.to_string_lossy());
    let mut lines = smaps.lines();
    lines.by_ref().find(is_code).context("no code")?;
    let resident = lines.find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    Ok(resident.trim().trim_end_matches(" kB").parse()?)
}

/// The runner in a directory of its own, started by a line of shell where it is `$0` and the directory `$1`.
async fn by_shell(line: &str) -> Result<(Dir, std::process::Output)> {
    let dir = Dir::new()?;
    std::fs::create_dir(dir.at("own"))?;
    let copied = std::process::Command::new("cp")
        .arg(sortie_tests::runner::binary()?)
        .arg(dir.at("own/runner"))
        .status()?;
    ensure!(copied.success(), "cp failed");
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", line, &dir.text("own/runner"), &dir.text("own")]);
    let output = sortie_tests::within("the runner's end", command.output()).await??;
    Ok((dir, output))
}

#[tokio::test]
async fn its_own_file_and_directory_are_gone_before_ready() -> Result<()> {
    let session = Session::start(&[]).await?;
    assert!(!session.executable().exists());
    session.finish().await?;
    let (dir, output) = by_shell("exec \"$0\" --dir \"$1\" </dev/null").await?;
    assert!(output.status.success());
    assert!(dir.names()?.is_empty());
    let (dir, output) = by_shell("touch \"$1/not-ours\"; exec \"$0\" --dir=\"$1\" </dev/null").await?;
    assert!(output.status.success());
    assert_eq!(std::fs::read_dir(dir.at("own"))?.count(), 1, "more was deleted than what is the runner's");
    Ok(())
}

#[tokio::test]
async fn keep_keeps_the_file_and_says_so() -> Result<()> {
    let mut session = Session::start(&["--keep"]).await?;
    session.close_stdin();
    let exit = session.leaves("stdin_closed", 0).await?;
    assert_eq!(exit["data"]["self_deleted"], false);
    assert!(session.executable().exists());
    Ok(())
}

#[tokio::test]
async fn started_without_standard_streams_it_ends_at_once() -> Result<()> {
    let (_dir, output) = by_shell("exec \"$0\" <&- >&- 2>&-").await?;
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    let (_dir, output) = by_shell("exec \"$0\" <&-").await?;
    assert_eq!(output.status.code(), Some(0));
    let frames: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    assert_eq!(frames.len(), 2, "{frames:?}");
    let frame = r#"{"type":"CMD","data":{"id":"c","type":"exec","timeout":9,"params":{"command":"echo out; echo err >&2"}}}"#;
    let (_dir, output) = by_shell(&format!("printf '%s' '{frame}' | \"$0\" 2>&-")).await?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    Ok(())
}

#[tokio::test]
async fn few_descriptors_make_errors_and_no_hang() -> Result<()> {
    let mut frames = String::new();
    for n in 0..40 {
        let frame = shell(&n.to_string(), "sleep 0.3; ulimit -n");
        frames.push_str(&format!("{frame}\n"));
    }
    let dir = Dir::new()?;
    let input = dir.write("frames", frames)?;
    let (_dir, output) = by_shell(&format!("ulimit -n 64; exec \"$0\" --concurrency 40 < {input}")).await?;
    let answers: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(answers.len(), 42, "READY, 40 answers and EXIT");
    let (mut done, mut failed) = (0, 0);
    for answer in &answers[1..41] {
        if answer["type"] == "DONE" {
            assert_eq!(
                answer["data"]["result"]["stdout"], "64\n",
                "the login's own limit is not the program's"
            );
            done += 1;
        } else {
            assert_eq!(answer["type"], "ERROR", "{answer}");
            failed += 1;
        }
    }
    assert!(done > 0 && failed > 0, "{done} done, {failed} failed");
    assert_eq!(answers[41]["data"]["reason"], "stdin_closed");
    assert_eq!(output.status.code(), Some(0));
    Ok(())
}
