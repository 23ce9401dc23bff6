//! `--via`: a session into whatever a program runs `sh` in, shown for namespaces (nsenter, as into a container) and for a
//! chroot that holds busybox and nothing else.

mod cli_support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cli_support::{Sortie, sortie};
use sortie_tests::{eventually, process, require_programs, require_root};

/// A process in namespaces of its own, ended with the test and everything in them with it.
struct Inside {
    unshare: Child,
    pid: i32,
}

impl Inside {
    /// `script` runs as the first process of new namespaces, and says when it is ready by becoming `sleep`.
    async fn start(script: &str) -> Result<Self> {
        let unshare = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
                "--net",
                "--uts",
            ])
            .args(["--ipc", "--mount-proc", "sh", "-c", &format!("{script} exec sleep 1000")])
            .stdin(Stdio::null())
            .spawn()
            .context("starting unshare")?;
        let mut inside = Self { pid: 0, unshare };
        let parent = i32::try_from(inside.unshare.id())?;
        inside.pid = eventually("the namespaces", || {
            let first = process::all().into_iter().find(|process| process.ppid == parent);
            let first = first.context("no process in them")?;
            ensure!(first.name == "sleep", "it is still being made: {first:?}");
            Ok(first.pid)
        })
        .await?;
        Ok(inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The first process of the namespaces goes with it, and the kernel ends the others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn via(verb: &str, program: &str) -> Sortie {
    sortie(verb).args(["--via", program])
}

#[tokio::test]
async fn a_session_goes_into_the_namespaces_of_a_process() -> Result<()> {
    require_root!();
    require_programs!("unshare", "nsenter");
    let inside = Inside::start("hostname inside;").await?;
    let program = format!("nsenter -t {} --mount --pid --net --uts --ipc", inside.pid);
    let line = "hostname; grep -c : /proc/net/dev; cat; exit 3";
    let done = via("sh", &program).arg(line).run_with(b"input\n").await?.ended_with(3);
    assert_eq!(done.text(), "inside\n1\ninput\n");
    let left = format!("nsenter -t {} --pid --mount ps -e -o comm=", inside.pid);
    let left = Command::new("sh").args(["-c", &left]).output()?;
    let left = String::from_utf8(left.stdout)?;
    assert!(!left.contains("sortie"), "it leaves nothing: {left}");
    Ok(())
}

/// busybox under all its names, and the directories that a system has.
fn fill(root: &Path) -> Result<()> {
    sortie_tests::busybox::install(root)?;
    for directory in ["tmp", "dev", "proc", "root"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    Ok(fs::write(root.join("etc/group"), "root:x:0:\n")?)
}

#[tokio::test]
async fn a_session_goes_into_a_chroot_and_leaves_nothing_there() -> Result<()> {
    require_root!();
    require_programs!("unshare", "nsenter", "chroot", "busybox", "dropbear");
    let root = tempfile::tempdir()?;
    fill(root.path())?;
    let shown = root.path().display();
    let inside = Inside::start(&format!(
        "mount -t proc proc {shown}/proc && mknod {shown}/dev/null c 1 3 && mknod {shown}/dev/zero c 1 5 &&"
    ))
    .await?;
    let program = format!("nsenter -t {} --mount --pid chroot {shown}", inside.pid);

    let done = via("sh", &program)
        .arg("readlink /bin/sh; test -e /usr/bin/perl || echo alone")
        .run()
        .await?
        .ended_with(0);
    assert_eq!(done.text(), "/bin/busybox\nalone\n");
    let put = via("put", &program).args(["--mode", "0640", "-", "/etc/motd"]).run_with(b"hello\n").await?;
    put.ended_with(0);
    assert_eq!(fs::read_to_string(root.path().join("etc/motd"))?, "hello\n");
    assert_eq!(fs::read_dir(root.path().join("tmp"))?.count(), 0, "nothing stays in /tmp");
    let failed = via("sh", &program).arg("exit 7").run().await?;
    failed.ended_with(7);
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_get_there_is_named_with_what_it_said() -> Result<()> {
    require_programs!("chroot");
    let failed = via("sh", "chroot /nonexistent/root").arg("true").run().await?.ended_with(255);
    failed.says(&["/nonexistent/root"]);
    Ok(())
}
