//! What a collector gets of a session: the real exporter, a real runner on this machine, and a collector of the test's own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::Result;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::{Client, Local, RunnerSet};
use sortie_otel::Export;
use tracing_subscriber::layer::SubscriberExt as _;

/// Nothing of this may leave.
const PLANTED: &str = "hunter2-planted";

/// Takes one request: its path and its body.
fn request(stream: TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).unwrap();
    (path, body)
}

/// The fields of a protobuf message that are bytes, by number; all that is read here is of that kind.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (bytes, rest) = message.split_at(length);
        message = rest;
        found.push((tag >> 3, bytes));
    }
    found
}

/// The messages at a path of fields.
fn at<'m>(message: &'m [u8], path: &[u64]) -> Vec<&'m [u8]> {
    path.iter().fold(vec![message], |messages, number| {
        let inner = messages.iter().flat_map(|message| fields(message));
        inner.filter(|(found, _)| found == number).map(|(_, bytes)| bytes).collect()
    })
}

#[derive(Debug)]
struct Span {
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    /// Those that are text.
    attributes: HashMap<String, String>,
}

/// ExportTraceServiceRequest of opentelemetry-proto: resource_spans 1, scope_spans 2, spans 2.
fn spans(body: &[u8]) -> Vec<Span> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let first =
        |message: &[u8], number: u64| at(message, &[number]).first().map_or(Vec::new(), |b| b.to_vec());
    let attribute = |pair: &[u8]| {
        let value = at(pair, &[2, 1]).first().map_or(String::new(), |bytes| text(bytes));
        (text(&first(pair, 1)), value)
    };
    let span = |span: &[u8]| Span {
        id: first(span, 2),
        parent: first(span, 4),
        name: text(&first(span, 5)),
        attributes: at(span, &[9]).into_iter().map(attribute).collect(),
    };
    at(body, &[1, 2, 2]).into_iter().map(span).collect()
}

#[test]
fn a_session_its_steps_and_its_commands_arrive_as_spans_without_a_secret() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}/v1/traces", listener.local_addr()?);
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if sender.send(request(stream.unwrap())).is_err() {
                return;
            }
        }
    });
    let export = Export::to(&address, "sortie-test")?;
    let subscriber = tracing_subscriber::registry().with(export.layer());
    let runners = RunnerSet::from_dir(&sortie_tests::runner::directory()?)?;
    // One thread, so that the subscriber of this one sees everything.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(async {
            let session = Client::builder().runners(runners).build().connect_by(Arc::new(Local)).await?;
            let planted = Exec::shell(format!(": {PLANTED}; echo {PLANTED}; exit 7")).env("TOKEN", PLANTED);
            assert_eq!(session.run(planted).await?.result.exit_code, 7);
            session.run(Exec::argv(["no-such-program"])).await.unwrap_err();
            session.close().await?;
            anyhow::Ok(())
        })
    })?;
    drop(runtime);
    export.finish()?;

    let mut all = Vec::new();
    let mut bodies = Vec::new();
    while let Ok((path, body)) = requests.try_recv() {
        assert_eq!(path, "/v1/traces");
        all.extend(spans(&body));
        bodies.extend(body);
    }
    let session: Vec<&Span> = all.iter().filter(|span| span.name == "session").collect();
    let [session] = session[..] else { panic!("{all:?}") };
    assert_eq!(session.attributes["server.address"], "localhost");
    let below: Vec<&str> =
        all.iter().filter(|span| span.parent == session.id).map(|span| span.name.as_str()).collect();
    for name in ["starting a shell", "starting the runner", "exec", "ending the session"] {
        assert!(below.contains(&name), "{name}: {below:?}");
    }
    let errors: Vec<&String> = all.iter().filter_map(|span| span.attributes.get("error.type")).collect();
    assert_eq!(errors, ["NOT_FOUND"], "{all:?}");
    assert!(!bodies.windows(PLANTED.len()).any(|window| window == PLANTED.as_bytes()));
    Ok(())
}
