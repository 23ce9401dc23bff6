//! After a connection was lost: log in once more, look whether the runner is gone, and end it if it is not.
//!
//! Only what bears this session's random name is touched. The runner is asked by SIGTERM, so that it ends what is in
//! no critical section and lets the rest come to its own end.

use std::time::Duration;

use crate::observe::Observer;
use crate::transport::{Launch, Transport};

/// What a second login found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Aftermath {
    /// Nothing of the session.
    Gone,
    /// The runner, which has ended since.
    Ended,
    /// The runner, which was told to end and still has something to do.
    StillThere,
    /// It could not be told.
    Unknown(String),
}

/// For the second login and what it does.
const LIMIT: Duration = Duration::from_secs(45);

/// A runner's executable lies, or lay, in a directory that nobody else's has the name of, or in the cache under its
/// digest; so a process with the number of the runner is known to be it. Ten seconds are given: twice the grace.
const LOOK: &str = concat!(
    "_n=0;case $(ls -l /proc/$2/exe 2>&1) in *.sortie-$3*|*/sortie/$4*)kill $2;kill -CONT $2;",
    "while [ $_n -lt 20 ]&&kill -0 $2 2>/dev/null;do sleep 0.5||sleep 1;_n=$((_n+1));done;",
    "if kill -0 $2 2>/dev/null;then _r=there;else _r=ended;fi;;*)_r=gone;;esac;",
    "for _b in \"$XDG_RUNTIME_DIR\" /dev/shm \"$TMPDIR\" /tmp /var/tmp \"$HOME\";do ",
    "[ \"$_b\" ]&&[ -d \"$_b/.sortie-$3\" ]&&rm -f \"$_b/.sortie-$3/r\"&&rmdir \"$_b/.sortie-$3\";done;",
    "echo \"$1$3 $_r\"",
);

/// A runner as its session knew it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a> {
    /// Process id of its guardian.
    pub(crate) pid: u32,
    /// Names its directory.
    pub(crate) token: &'a str,
    /// SHA-256 of its executable.
    pub(crate) sha256: &'a str,
}

/// Logs in by `transport` and looks for what is left of a runner.
pub(crate) async fn look(transport: &dyn Transport, left: Left<'_>, observer: &dyn Observer) -> Aftermath {
    match tokio::time::timeout(LIMIT, look_unlimited(transport, left, observer)).await {
        Ok(found) => found,
        Err(_) => Aftermath::Unknown(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

async fn look_unlimited(transport: &dyn Transport, left: Left<'_>, observer: &dyn Observer) -> Aftermath {
    let Left { token, sha256, .. } = left;
    // Not in the command line as it stands, so that an echo of it is no answer.
    let marker = format!("sortie-{token}");
    let pid = left.pid.to_string();
    let words = ["sh", "-c", LOOK, "sh", "sortie-", &pid, token, sha256].map(String::from).to_vec();
    let launch =
        Launch { line: format!("exec sh -c '{LOOK}' sh sortie- {pid} {token} {sha256}"), argv: words };
    let mut connection = match transport.start(&launch, observer).await {
        Ok(connection) => connection,
        Err(error) => return Aftermath::Unknown(error.to_string()),
    };
    let mut seen: Vec<u8> = Vec::new();
    while let Some(chunk) = connection.output.recv().await {
        seen.extend_from_slice(&chunk);
        let excess = seen.len().saturating_sub(64 * 1024);
        seen.drain(..excess);
        let text = String::from_utf8_lossy(&seen);
        if let Some((_, said)) = text.split_once(&marker)
            && let Some((said, _)) = said.split_once('\n')
        {
            return match said.trim() {
                "gone" => Aftermath::Gone,
                "ended" => Aftermath::Ended,
                "there" => Aftermath::StillThere,
                _ => Aftermath::Unknown("its answer was not understood".into()),
            };
        }
    }
    Aftermath::Unknown("it gave no answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Unobserved;
    use crate::transport::Local;

    const TOKEN: &str = "fedcba98765432100123456789abcdef";

    fn left(pid: u32, token: &str) -> Left<'_> {
        Left { pid, token, sha256: "0123" }
    }

    #[test]
    fn the_script_holds_nothing_that_a_login_shell_would_change() {
        assert!(!LOOK.contains(['\n', '!', '\\', '\'']));
    }

    #[tokio::test]
    async fn a_process_of_the_same_number_that_is_not_the_runner_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let found = look(&Local, left(child.id(), TOKEN), &Unobserved).await;
        assert_eq!(found, Aftermath::Gone);
        assert!(child.try_wait().unwrap().is_none(), "it still runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn the_runner_is_ended_and_its_directory_removed() {
        let token = format!("{:032x}", std::process::id());
        let directory = std::path::Path::new("/tmp").join(format!(".sortie-{token}"));
        std::fs::create_dir(&directory).unwrap();
        let sleep = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|d| d.join("sleep"))
            .find(|p| p.is_file())
            .unwrap();
        std::fs::copy(sleep, directory.join("r")).unwrap();
        let child = std::process::Command::new(directory.join("r")).arg("1000").spawn().unwrap();
        let pid = child.id();
        // As on a host, somebody else reaps it.
        let reaper = std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        assert_eq!(look(&Local, left(pid, &token), &Unobserved).await, Aftermath::Ended);
        assert!(!directory.exists());
        reaper.join().unwrap().unwrap();
    }
}
