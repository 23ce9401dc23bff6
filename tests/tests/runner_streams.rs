//! The streams of `exec` with the real binary: INPUT and its window, EVENTs and theirs, capture and its bounds.

mod runner_support;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use runner_support::{Dir, Session, cmd, runs, server_of, shell, status_kib, stream, with};
use serde_json::{Value, json};

fn input(id: &str, data: &str) -> Value {
    json!({"type": "INPUT", "data": {"command_id": id, "data": data}})
}

fn eof(id: &str) -> Value {
    json!({"type": "INPUT", "data": {"command_id": id, "eof": true}})
}

fn credit(id: &str, stream: &str, bytes: u64) -> Value {
    json!({"type": "CREDIT", "data": {"command_id": id, "stream": stream, "bytes": bytes}})
}

/// The bytes of an EVENT's message, or of any field with an encoding.
fn bytes(text: &Value, encoding: &Value) -> Result<Vec<u8>> {
    let text = text.as_str().context("no text")?;
    if encoding.is_null() {
        return Ok(text.as_bytes().to_vec());
    }
    ensure!(encoding == "base64", "{encoding}");
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

/// Reads a command's EVENTs up to its answer: the bytes of each stream, whose offsets have to be right, and the answer.
async fn streamed(session: &mut Session, id: &str) -> Result<(BTreeMap<String, Vec<u8>>, Vec<Value>, Value)> {
    let mut streams: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut events = Vec::new();
    loop {
        let frame = session.next().await?.context("the output ended")?;
        if frame["data"]["command_id"] != id || frame["type"] == "CREDIT" {
            continue;
        }
        if frame["type"] != "EVENT" {
            return Ok((streams, events, frame));
        }
        let data = &frame["data"];
        let stream = streams.entry(data["stream"].as_str().context("no stream")?.to_owned()).or_default();
        ensure!(data["seq"] == stream.len(), "after {} bytes came {frame}", stream.len());
        stream.extend(bytes(&data["message"], &data["encoding"])?);
        events.push(frame);
    }
}

#[tokio::test]
async fn input_reaches_the_program_as_it_comes_and_is_credited() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session
        .send(&cmd("c", "exec", json!({"command": "exec cat", "stdin_from": "input", "stream_lines": true})))
        .await?;
    session.send(&input("c", "one\n")).await?;
    let (mut credited, mut heard) = (0, String::new());
    while heard != "one\n" || credited < 4 {
        let frame = session.next().await?.context("ended")?;
        match frame["type"].as_str() {
            Some("CREDIT") => {
                assert_eq!(frame["data"]["stream"], "stdin");
                credited += frame["data"]["bytes"].as_u64().unwrap_or(0);
            }
            _ => heard.push_str(frame["data"]["message"].as_str().context("no EVENT")?),
        }
    }
    assert_eq!(credited, 4);
    session.send(&json!({"type": "INPUT", "data": {"command_id": "c", "data": "/w==", "encoding": "base64", "eof": true}})).await?;
    let event = session.expect("EVENT").await?;
    assert_eq!((&event["data"]["message"], &event["data"]["encoding"]), (&json!("/w=="), &json!("base64")));
    assert_eq!(event["data"]["seq"], 4);
    let done = session.expect("DONE").await?;
    assert_eq!(done["data"]["result"]["exit_code"], 0);
    session.finish().await
}

#[tokio::test]
async fn the_window_of_input_holds_also_while_the_command_is_queued() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "1"]).await?;
    let window = session.ready["data"]["limits"]["stdin_window"].as_u64().context("no window")?;
    assert_eq!(window, 256 * 1024);
    let half = "x".repeat(usize::try_from(window / 2)?);
    session.send(&cmd("first", "exec", json!({"command": "cat > /dev/null", "stdin_from": "input"}))).await?;
    session
        .send(&cmd("c", "exec", json!({"command": "wc -c", "stdin_from": "input", "capture_out": true})))
        .await?;
    for _ in 0..2 {
        session.send(&input("c", &half)).await?;
    }
    session.send(&eof("c")).await?;
    session.send(&cmd("d", "exec", json!({"command": "wc -c", "stdin_from": "input"}))).await?;
    for _ in 0..2 {
        session.send(&input("d", &half)).await?;
    }
    session.send(&input("d", "y")).await?;
    let error = session.answer("d").await?;
    assert_eq!(error["data"]["code"], "BUSY", "{error}");
    session.send(&eof("first")).await?;
    session.answer("first").await?;
    assert_eq!(session.answer("c").await?["data"]["result"]["stdout"], format!("{window}\n"));
    session.finish().await
}

#[tokio::test]
async fn input_beyond_the_window_ends_a_program_that_does_not_read() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let line = "echo $$; sleep 1000";
    session
        .send(&cmd("c", "exec", json!({"command": line, "stdin_from": "input", "stream_lines": true})))
        .await?;
    let pid = session.number("c").await?;
    // What its pipe takes is credited, and no more: far below this.
    let piece = "x".repeat(64 * 1024);
    for _ in 0..32 {
        session.send(&input("c", &piece)).await?;
    }
    let answer = session.answer("c").await?;
    assert_eq!(
        (&answer["data"]["code"], &answer["data"]["retryable"]),
        (&json!("BUSY"), &json!(true)),
        "{answer}"
    );
    assert!(!runs(pid));
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn input_nobody_announced_is_refused_and_late_input_is_not() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    session.send(&stream("c", "echo 1; sleep 1000")).await?;
    session.number("c").await?;
    session.send(&input("c", "x")).await?;
    let error = session.frame("ERROR").await?;
    assert_eq!(error["data"]["code"], "INVALID_CMD");
    assert!(error["data"].get("command_id").is_none(), "that would be taken for the command's answer");
    session.send(&input("never", "x")).await?;
    session.is_in_step().await?;
    session.send(&json!({"type": "INPUT", "data": {"command_id": 5}})).await?;
    assert_eq!(session.frame("ERROR").await?["data"]["code"], "INVALID_CMD");
    session.send(&cmd("b", "exec", json!({"command": "cat", "stdin_from": "input"}))).await?;
    session
        .send(&json!({"type": "INPUT", "data": {"command_id": "b", "data": "?", "encoding": "base64"}}))
        .await?;
    assert_eq!(session.answer("b").await?["data"]["code"], "INVALID_CMD");
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "c", "grace": 0}})).await?;
    session.answer("c").await?;
    session.finish().await
}

#[tokio::test]
async fn input_that_was_cut_by_the_end_of_the_session_ends_the_command() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let dir = Dir::new()?;
    let line = format!("cat > /dev/null; touch {}", dir.text("used"));
    session.send(&cmd("c", "exec", json!({"command": line, "stdin_from": "input"}))).await?;
    session.send(&input("c", "half")).await?;
    session.close_stdin();
    assert_eq!(session.answer("c").await?["data"]["code"], "CANCELLED");
    session.leaves("stdin_closed", 0).await?;
    assert!(dir.names()?.is_empty(), "half of the input was used");
    Ok(())
}

#[tokio::test]
async fn a_program_that_ends_before_its_input_is_done() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session
        .send(&cmd("c", "exec", json!({"command": "head -c 1 > /dev/null", "stdin_from": "input"})))
        .await?;
    session.send(&input("c", &"x".repeat(200_000))).await?;
    let done = session.answer("c").await?;
    assert_eq!(done["data"]["result"]["exit_code"], 0, "{done}");
    session.send(&input("c", "late")).await?;
    session.send(&eof("c")).await?;
    session.is_in_step().await?;
    session.finish().await
}

#[tokio::test]
async fn events_are_whole_lines_with_their_offsets() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session.send(&stream("c", "seq 1 200000; seq 1 3 >&2")).await?;
    let (streams, events, done) = streamed(&mut session, "c").await?;
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(streams["stdout"] == expected.as_bytes());
    assert_eq!(streams["stderr"], b"1\n2\n3\n");
    for event in &events {
        let message = event["data"]["message"].as_str().unwrap_or_default();
        assert!(message.len() <= 64 * 1024 && message.ends_with('\n'), "{} bytes", message.len());
    }
    assert!(events.len() < 1000, "{} events where a few would do", events.len());
    assert!(done["data"]["result"].get("stdout").is_none());
    session.finish().await
}

#[tokio::test]
async fn any_bytes_come_back_as_they_were() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let mut state = 12345u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(1_000_000)
    .collect();
    let path = dir.write("noise", &noise)?;
    session
        .send(&cmd("c", "exec", json!({"argv": ["cat", path], "stream_lines": true, "capture_out": true})))
        .await?;
    let (streams, _, done) = streamed(&mut session, "c").await?;
    assert!(streams["stdout"] == noise);
    let result = &done["data"]["result"];
    assert!(bytes(&result["stdout"], &result["stdout_encoding"])? == noise);
    session.finish().await
}

#[tokio::test]
async fn an_unfinished_line_is_sent_once_it_is_quiet() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    session.send(&cmd("c", "exec", json!({"command": "printf 'Password: '; read x; echo $x", "stdin_from": "input", "stream_lines": true}))).await?;
    // The program waits for an answer to what it has asked, without a newline.
    let event = session.frame("EVENT").await?;
    assert_eq!(event["data"]["message"], "Password: ");
    session.send(&input("c", "secret\n")).await?;
    let event = session.expect("EVENT").await?;
    assert_eq!((&event["data"]["seq"], &event["data"]["message"]), (&json!(10), &json!("secret\n")));
    session.expect("DONE").await?;
    session.finish().await
}

#[tokio::test]
async fn a_line_beyond_64_kib_comes_in_pieces_that_cut_no_character() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let dir = Dir::new()?;
    let long = format!("x{}\nend\n", "ż".repeat(300_000));
    let path = dir.write("long", &long)?;
    session.send(&cmd("c", "exec", json!({"argv": ["cat", path], "stream_lines": true}))).await?;
    let (streams, events, _) = streamed(&mut session, "c").await?;
    assert!(streams["stdout"] == long.as_bytes());
    assert!(events.iter().all(|event| event["data"].get("encoding").is_none()), "a character was cut");
    session.finish().await
}

#[tokio::test]
async fn a_window_is_never_exceeded_and_never_stalls() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    let window = 10_000u64;
    let line = "seq 1 20000; seq 1 20000 >&2; seq 1 20000";
    session.send(&with(stream("c", line), json!({"window": window}))).await?;
    let (mut unacknowledged, mut total) = (0, BTreeMap::<String, u64>::new());
    loop {
        // Until the window is used up, or the command is done, nothing is acknowledged.
        let frame = session.next().await?.context("ended")?;
        if frame["type"] == "DONE" {
            break;
        }
        let data = &frame["data"];
        let length = bytes(&data["message"], &data["encoding"])?.len() as u64;
        let stream = data["stream"].as_str().context("no stream")?.to_owned();
        unacknowledged += length;
        ensure!(unacknowledged <= window, "{unacknowledged} bytes");
        *total.entry(stream.clone()).or_default() += length;
        if unacknowledged == window {
            session.send(&credit("c", &stream, unacknowledged)).await?;
            unacknowledged = 0;
        }
    }
    let length: u64 = (1..=20_000).map(|n: u64| n.to_string().len() as u64 + 1).sum();
    assert_eq!((total["stdout"], total["stderr"]), (2 * length, length));
    session.finish().await
}

#[tokio::test]
async fn two_streams_that_share_a_window_are_both_whole() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    // Both pipes are full of output when the last byte of the window goes to one of them.
    let line = "yes out | head -n 30000 & yes err | head -n 30000 >&2; wait";
    session.send(&with(stream("c", line), json!({"window": 1000}))).await?;
    let mut total = BTreeMap::<String, u64>::new();
    let mut used = 0;
    loop {
        let frame = session.next().await?.context("ended")?;
        if frame["type"] != "EVENT" {
            assert_eq!(frame["data"]["result"]["exit_code"], 0, "{frame}");
            break;
        }
        let data = &frame["data"];
        let stream = data["stream"].as_str().context("no stream")?;
        let length = bytes(&data["message"], &data["encoding"])?.len() as u64;
        *total.entry(stream.to_owned()).or_default() += length;
        used += length;
        if used >= 1000 {
            session.send(&credit("c", stream, used)).await?;
            used = 0;
        }
    }
    assert_eq!((total.get("stdout"), total.get("stderr")), (Some(&120_000), Some(&120_000)));
    session.finish().await
}

#[tokio::test]
async fn a_consumer_that_gives_no_credit_holds_up_nobody_else() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "4"]).await?;
    session
        .send(&with(stream("big", "head -c 1073741824 /dev/zero | tr '\\0' '\\n'"), json!({"window": 65536})))
        .await?;
    for n in 0..100 {
        session.send(&shell(&n.to_string(), &format!("echo {n}"))).await?;
    }
    let (mut answers, mut unread) = (0, 0);
    while answers < 100 {
        let frame = session.next().await?.context("ended")?;
        match frame["type"].as_str() {
            Some("EVENT") => unread += frame["data"]["message"].as_str().map_or(0, str::len),
            Some("DONE") => {
                ensure!(frame["data"]["command_id"] != "big", "{frame}");
                answers += 1;
            }
            _ => anyhow::bail!("{frame}"),
        }
    }
    assert!(unread <= 65536, "{unread}");
    session.send(&json!({"type": "CANCEL", "data": {"command_id": "big", "grace": 0}})).await?;
    assert_eq!(session.answer("big").await?["data"]["code"], "CANCELLED");
    session.finish().await
}

#[tokio::test]
async fn a_program_that_is_done_waits_for_credit_for_what_it_said() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "2"]).await?;
    session.send(&with(stream("c", "seq 1 100"), json!({"window": 0}))).await?;
    session.is_in_step().await?;
    session.send(&credit("c", "stdout", 1000)).await?;
    let (streams, _, done) = streamed(&mut session, "c").await?;
    assert_eq!(streams["stdout"].len(), 292);
    assert_eq!(done["type"], "DONE");
    session.finish().await
}

#[tokio::test]
async fn capture_keeps_head_and_tail_and_says_what_is_missing() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let params = json!({"command": "seq 1 100000", "capture_out": true, "output_bytes": 1000});
    let result = session.done("exec", params).await?;
    let whole: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let text = result["stdout"].as_str().context("no text")?;
    let (at, missing) = (result["stdout_gap"]["offset"].as_u64(), result["stdout_gap"]["bytes"].as_u64());
    let (head, tail) = text.split_at(usize::try_from(at.context("no gap")?)?);
    assert_eq!(text.len(), 1000);
    assert!(whole.starts_with(head) && whole.ends_with(tail) && !head.is_empty() && !tail.is_empty());
    assert_eq!(text.len() as u64 + missing.unwrap_or(0), whole.len() as u64);
    // The default is what READY says; more than that is not to be had.
    let most = session.ready["data"]["limits"]["output_bytes"].as_u64().context("no limit")?;
    for asked in [json!(null), json!(most * 10)] {
        let params = json!({"command": "head -c 4000000 /dev/zero | tr '\\0' x", "capture_out": true, "output_bytes": asked});
        let result = session.done("exec", params).await?;
        assert_eq!(result["stdout"].as_str().map(|text| text.len() as u64), Some(most));
        assert_eq!(result["stdout_gap"]["bytes"], 4_000_000 - most);
    }
    let params = json!({"command": "echo x", "capture_out": true, "output_bytes": 0});
    let result = session.done("exec", params).await?;
    assert_eq!((&result["stdout"], &result["stdout_gap"]["bytes"]), (&json!(""), &json!(2)));
    session.finish().await
}

#[tokio::test]
async fn what_is_captured_fits_a_frame_whatever_it_is() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    for (kind, encoded) in [("\\n", true), ("\\001", true), ("\\377", true), ("x", false)] {
        let line = format!("head -c 3145728 /dev/zero | tr '\\0' '{kind}' | tee /dev/stderr");
        let id = session.next_id();
        session.send(&shell(&id, &line)).await?;
        let text = session.next_line().await?.context("ended")?;
        assert!(text.len() < 10_485_760, "{kind}: {}", text.len());
        let frame: Value = serde_json::from_str(&text)?;
        let result = &frame["data"]["result"];
        for stream in ["stdout", "stderr"] {
            let text = result[stream].as_str().context("no text")?;
            let coded = result.get(format!("{stream}_encoding")).is_some();
            let length = if coded { text.trim_end_matches('=').len() * 3 / 4 } else { text.len() };
            assert_eq!(length, 3_145_728, "{kind}");
        }
        assert!(encoded || result.get("stdout_encoding").is_none());
    }
    session.finish().await
}

#[tokio::test]
async fn all_captured_output_shares_a_pool_and_memory_stays_bounded() -> Result<()> {
    let mut session = Session::start(&["--concurrency", "16"]).await?;
    let server = server_of(&session)?;
    for n in 0..16 {
        session
            .send(&shell(&n.to_string(), "head -c 3145728 /dev/zero | tr '\\0' x | tee /dev/stderr"))
            .await?;
    }
    let mut missing = 0;
    for _ in 0..16 {
        let done = session.frame("DONE").await?;
        for stream in ["stdout", "stderr"] {
            let result = &done["data"]["result"];
            let kept = result[stream].as_str().map_or(0, |text| text.len() as u64);
            let gap = result[format!("{stream}_gap")]["bytes"].as_u64().unwrap_or(0);
            assert_eq!(kept + gap, 3_145_728);
            missing += gap;
        }
    }
    assert!(missing > 0, "96 MiB cannot have been kept in a pool of 12");
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 40 * 1024, "{peak} KiB");
    // The pool is whole again.
    let result = session.sh("head -c 3145728 /dev/zero | tr '\\0' x").await?;
    assert!(result.get("stdout_gap").is_none());
    session.finish().await
}

#[tokio::test]
async fn memory_is_bounded_however_much_is_streamed() -> Result<()> {
    let mut session = Session::start(&[]).await?;
    let server = server_of(&session)?;
    session.send(&stream("c", "yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 268435456")).await?;
    let mut bytes = 0;
    loop {
        let line = session.next_line().await?.context("ended")?;
        if line.starts_with("{\"type\":\"DONE\"") {
            break;
        }
        bytes += line.len();
    }
    assert!(bytes > 1 << 28);
    let peak = status_kib(server, "VmHWM")?;
    assert!(peak <= 24 * 1024, "{peak} KiB");
    session.finish().await
}
