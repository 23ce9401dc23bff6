use std::fs;
use std::io::Write as _;

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn who() -> Who {
    Who {
        user: "operator".into(),
        uid: 1000,
        login_uid: Some(1000),
        host: "controller".into(),
        pid: 7,
        program: "sortie exec".into(),
    }
}

fn begin(session: &str) -> Record {
    Record::Session {
        session: session.into(),
        host: "web1".into(),
        way: "ssh deploy@web1 port 22".into(),
        who: who(),
    }
}

fn command(session: &str, id: &str) -> Record {
    Record::Command {
        session: session.into(),
        host: "web1".into(),
        host_key: Some("SHA256:abc".into()),
        who: "operator".into(),
        signed_by: None,
        id: id.into(),
        command: "exec".into(),
        timeout: 30,
        r#become: None,
        check: false,
        params: json!({"argv": ["true"]}),
        input: false,
    }
}

fn end(session: &str) -> Record {
    Record::End {
        session: session.into(),
        host: "web1".into(),
        how: "closed".into(),
        reason: None,
        commands: 1,
        unanswered: Vec::new(),
        unrecorded: 0,
    }
}

struct Log {
    directory: TempDir,
}

impl Log {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    fn open(&self) -> AuditLog {
        AuditLog::open(&self.path(), who()).unwrap()
    }

    /// One session of one command, written by a process of its own as far as the file can tell.
    async fn session(&self, id: &str) {
        let log = self.open();
        log.record(vec![begin(id)]).await.unwrap();
        log.record(vec![command(id, "c1"), end(id)]).await.unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.bytes()).unwrap().lines().map(str::to_owned).collect()
    }

    fn add(&self, bytes: &[u8]) {
        fs::OpenOptions::new().append(true).open(self.path()).unwrap().write_all(bytes).unwrap();
    }
}

fn problems(log: &[u8], head: Option<&str>) -> Vec<(u64, Problem)> {
    let found = verify(log, head).unwrap();
    found.findings.iter().map(|finding| (finding.line, finding.problem)).collect()
}

fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

#[tokio::test]
async fn what_was_written_is_sound_whoever_wrote_it() {
    let log = Log::new();
    log.session("s1").await;
    log.session("s2").await;
    let found = verify(&log.bytes()[..], None).unwrap();
    assert_eq!((found.records, found.sessions, found.findings), (7, 2, Vec::new()));
    assert_eq!(problems(&log.bytes(), Some(&found.head)), []);
    let lines = log.lines();
    assert!(lines[0].starts_with("{\"seq\":1,\"time\":\"") && lines[0].contains("\"record\":\"log\""));
    // What a log tells can be read by the types that it was written by.
    let read: Vec<Record> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&read[1], &read[2], &read[3]), (&begin("s1"), &command("s1", "c1"), &end("s1")));
}

#[tokio::test]
async fn every_byte_that_is_changed_is_found() {
    let log = Log::new();
    log.session("s1").await;
    let whole = log.bytes();
    // The newline at the very end is no part of any line.
    for at in 0..whole.len() - 1 {
        for changed in [whole[at] ^ 1, b'\n', b'0', b'"', 0xff] {
            if whole[at] == changed {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] = changed;
            assert_ne!(problems(&bytes, None), [], "byte {at} as {changed:#x}");
        }
    }
}

#[tokio::test]
async fn a_removed_line_is_missing_and_two_swapped_are_out_of_order() {
    let log = Log::new();
    log.session("s1").await;
    log.session("s2").await;
    let lines = log.lines();
    for gone in 0..lines.len() - 1 {
        let mut left = lines.clone();
        left.remove(gone);
        let found = problems(&joined(&left), None);
        assert!(found.contains(&(gone as u64 + 1, Problem::Missing)), "without {gone}: {found:?}");
    }
    for first in 0..lines.len() - 1 {
        let mut moved = lines.clone();
        moved.swap(first, first + 1);
        let found = problems(&joined(&moved), None);
        assert!(found.iter().any(|(_, problem)| *problem == Problem::Reordered), "{first}: {found:?}");
    }
    let twice = [&lines[..4], &lines[3..]].concat();
    assert!(problems(&joined(&twice), None).contains(&(5, Problem::Reordered)));
}

#[tokio::test]
async fn a_cut_tail_is_found_by_whoever_kept_the_head() {
    let log = Log::new();
    log.session("s1").await;
    let early = verify(&log.bytes()[..], None).unwrap().head;
    log.session("s2").await;
    let late = verify(&log.bytes()[..], None).unwrap().head;
    // A log that has grown since still has the old head in it.
    assert_eq!(problems(&log.bytes(), Some(&early)), []);
    let cut = joined(&log.lines()[..4]);
    assert_eq!(problems(&cut, None), []);
    assert_eq!(problems(&cut, Some(&early)), []);
    assert_eq!(problems(&cut, Some(&late)), [(4, Problem::Head)]);
}

#[tokio::test]
async fn a_session_without_an_end_is_found_and_so_is_what_comes_after_one() {
    let log = Log::new();
    let open = log.open();
    open.record(vec![begin("s1"), command("s1", "c1")]).await.unwrap();
    assert_eq!(problems(&log.bytes(), None), [(2, Problem::NoEnd)]);
    open.record(vec![end("s1"), command("s1", "c2"), command("never", "c1")]).await.unwrap();
    assert_eq!(problems(&log.bytes(), None), [(5, Problem::Session), (6, Problem::Session)]);
}

#[tokio::test]
async fn records_that_a_session_could_not_write_are_found() {
    let log = Log::new();
    let mut last = end("s1");
    if let Record::End { unrecorded, .. } = &mut last {
        *unrecorded = 2;
    }
    log.open().record(vec![begin("s1"), last]).await.unwrap();
    assert_eq!(problems(&log.bytes(), None), [(3, Problem::Session)]);
}

#[tokio::test]
async fn a_torn_last_line_is_named_by_the_next_writer_and_nothing_is_lost() {
    let log = Log::new();
    log.session("s1").await;
    log.add(b"{\"seq\":5,\"time\":\"2026-");
    assert_eq!(problems(&log.bytes(), None), [(5, Problem::Torn)]);
    log.session("s2").await;
    let found = verify(&log.bytes()[..], None).unwrap();
    assert_eq!((found.findings.as_slice(), found.sessions), (&[][..], 2));
    assert_eq!(
        found.notes.iter().map(|note| (note.line, note.problem)).collect::<Vec<_>>(),
        [(5, Problem::Torn)]
    );
    // It is named by what is in it: another one in its place is none of a writer that died.
    let mut lines = log.lines();
    lines[4] = "{\"seq\":5,\"time\":\"2027-".into();
    assert!(problems(&joined(&lines), None).contains(&(5, Problem::Changed)));
}

#[tokio::test]
async fn a_writer_that_dies_in_the_first_line_or_before_a_newline_leaves_a_log_that_goes_on() {
    let log = Log::new();
    fs::write(log.path(), b"{\"se").unwrap();
    fs::set_permissions(log.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    log.session("s1").await;
    let found = verify(&log.bytes()[..], None).unwrap();
    assert_eq!((found.findings, found.notes.len()), (Vec::new(), 1));

    let log = Log::new();
    log.session("s1").await;
    fs::OpenOptions::new()
        .write(true)
        .open(log.path())
        .unwrap()
        .set_len(log.bytes().len() as u64 - 1)
        .unwrap();
    assert_eq!(problems(&log.bytes(), None), []);
    log.session("s2").await;
    let found = verify(&log.bytes()[..], None).unwrap();
    assert_eq!((found.records, found.findings), (7, Vec::new()));
}

#[test]
fn a_file_that_is_no_log_is_never_written_to() {
    let log = Log::new();
    for text in ["root:x:0:0::/root:/bin/sh\n", "{}\n", "no newline", "{\"seq\":1}\n"] {
        fs::write(log.path(), text).unwrap();
        let error = AuditLog::open(&log.path(), who()).unwrap_err().to_string();
        assert!(error.contains("is no audit log") && error.contains("audit.log"), "{error}");
        assert_eq!(fs::read_to_string(log.path()).unwrap(), text);
        assert_ne!(problems(text.as_bytes(), None), []);
    }
    assert_eq!(problems(b"", None), [(1, Problem::NotALog)]);
    assert!(AuditLog::open(log.directory.path(), who()).is_err());
    assert!(AuditLog::open(&log.directory.path().join("no/such"), who()).is_err());
    assert!(AuditLog::open(Path::new("/dev/null"), who()).unwrap_err().reason.contains("regular file"));
}

#[test]
fn a_log_that_others_may_write_to_proves_nothing_and_is_refused() {
    let log = Log::new();
    fs::write(log.path(), "").unwrap();
    fs::set_permissions(log.path(), std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
    assert!(AuditLog::open(&log.path(), who()).unwrap_err().reason.contains("chmod go-w"));
}

#[tokio::test]
async fn a_log_whose_last_line_was_changed_is_not_gone_on_with() {
    let log = Log::new();
    log.session("s1").await;
    let changed = String::from_utf8(log.bytes()).unwrap().replace("\"commands\":1", "\"commands\":0");
    fs::write(log.path(), changed).unwrap();
    assert!(AuditLog::open(&log.path(), who()).unwrap_err().reason.contains("was changed"));
}

#[tokio::test]
async fn many_writers_at_once_make_one_chain() {
    let log = Log::new();
    let writers: Vec<_> = (0..8)
        .map(|n| {
            // Each has the file open for itself, as a process of its own would.
            let open = log.open();
            tokio::spawn(async move {
                for round in 0..20 {
                    let id = format!("s{n}-{round}");
                    open.record(vec![begin(&id)]).await.unwrap();
                    open.record(vec![command(&id, "c1"), end(&id)]).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let found = verify(&log.bytes()[..], None).unwrap();
    assert_eq!((found.records, found.sessions, found.findings), (1 + 8 * 20 * 3, 160, Vec::new()));
}

#[tokio::test]
async fn a_long_line_is_written_read_and_gone_on_from() {
    let log = Log::new();
    let mut long = command("s1", "c1");
    if let Record::Command { params, .. } = &mut long {
        *params = json!({"argv": vec!["x".repeat(1000); 300]});
    }
    log.open().record(vec![begin("s1"), long]).await.unwrap();
    log.open().record(vec![end("s1")]).await.unwrap();
    assert_eq!(problems(&log.bytes(), None), []);
}
