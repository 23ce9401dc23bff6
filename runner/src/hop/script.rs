//! The line of shell that puts this very runner in place as another user, and becomes it.
//!
//! The same ideas as the client's script for the host, made simpler by what is known here: the machine, and that nothing is
//! sent behind the runner's bytes before it says READY, so that a reader may read ahead. No newline, backslash, `!` or
//! single quote: su hands it to the shell of the user, whichever that is.

/// Arguments: a marker, 32 hexadecimal digits for the directory, bytes of the runner, the user, the runner as the kernel
/// holds it, then the runner's flags. After the marker it says `kept` (nothing needs to be sent), `send`, `no DIRECTORY why`
/// or `failed why`.
pub(super) const SCRIPT: &str = concat!(
    "_m=$1 _d=$2 _n=$3 _p=$5 USER=$4 LOGNAME=$4;shift 5;export USER LOGNAME;unset LC_ALL SUDO_COMMAND;",
    "cd 2>/dev/null||cd /;set -f;",
    // Root may run what the kernel still holds, unless it lacks CAP_SYS_PTRACE: then nothing is sent or stored. Of an emulated
    // process it holds the emulator.
    "case $($_p --version 2>/dev/null) in sortie-runner*)echo $_m kept;exec $_p --keep $@;;esac;",
    "_u=$(umask);umask 077;",
    "_q(){ rm -f $_p/r;rmdir $_p;} 2>/dev/null;trap _q 0;trap \"exit 1\" 1 2 13 15;",
    // A directory is fit if a program can be run there.
    "for _b in /dev/shm /tmp /var/tmp /run \"$HOME\" -;do [ \"$_b\" = - ]&&exit 1;_p=$_b/.sortie-$_d;",
    "_y=$( (mkdir $_p&&:>$_p/r&&chmod 700 $_p/r&&$_p/r) 2>&1)&&break;_q;echo $_m no $_b $_y;done;",
    "echo $_m send;_r=\"head -c \";command -v head >/dev/null||_r=\"dd bs=1 count=\";",
    "_y=$({ $_r$_n>$_p/r;} 2>&1&&$_p/r --version 2>&1)||{ echo $_m failed $_b $_y;exit 1;};",
    "umask $_u;exec $_p/r --dir $_p $@",
);

#[cfg(test)]
mod tests {
    use super::SCRIPT;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};

    /// Stands for the runner: says with what it was started, and cleans up as the runner does.
    const RUNNER: &str = "#!/bin/sh\n[ \"$1\" = --version ]&&{ echo sortie-runner 0;exit;}\necho ran $* as $USER;umask\nrm -rf \"$2\"\n";

    /// Runs the script by a shell; gives what it says before and after the runner is sent, piece by piece.
    fn run(shell: &[&str], path: &str, exe: &str) -> Option<(String, String)> {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", SCRIPT, "sh", "mark", &format!("{:032x}", std::process::id())]);
        command.args([&RUNNER.len().to_string(), "jane", exe, "--ttl=5", "--hop=x"]);
        command.env("PATH", path).env("HOME", "/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        stdout.read_line(&mut said).unwrap();
        if said.contains("send") {
            for piece in RUNNER.as_bytes().chunks(7) {
                stdin.write_all(piece).unwrap();
                stdin.flush().unwrap();
            }
        }
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        child.wait().unwrap();
        Some((said, rest))
    }

    #[test]
    fn it_passes_any_shell_unchanged() {
        assert!(!SCRIPT.contains(['\n', '\\', '!', '\'']));
    }

    #[test]
    fn any_shell_puts_the_runner_in_place() {
        let path = std::env::var("PATH").unwrap();
        let mut tried = 0;
        for shell in [&["sh"][..], &["dash"], &["bash"], &["busybox", "sh"], &["mksh"]] {
            let Some((said, rest)) = run(shell, &path, "/nonexistent") else { continue };
            assert_eq!(said, "mark send\n", "{shell:?}");
            let directory = rest.split(' ').nth(2).unwrap();
            assert!(
                rest.starts_with("ran --dir /") && rest.contains(" --ttl=5 --hop=x as jane\n"),
                "{shell:?}: {rest}"
            );
            assert!(!std::path::Path::new(directory).exists(), "{shell:?}: {directory}");
            tried += 1;
        }
        assert!(tried > 0);
    }

    #[test]
    fn dd_will_do_where_there_is_no_head() {
        let directory = tempfile::tempdir().unwrap();
        for tool in ["sh", "mkdir", "chmod", "rm", "rmdir", "dd"] {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|d| d.join(tool))
                .find(|p| p.exists());
            std::os::unix::fs::symlink(found.unwrap(), directory.path().join(tool)).unwrap();
        }
        let (said, rest) = run(&["/bin/sh"], directory.path().to_str().unwrap(), "/nonexistent").unwrap();
        assert_eq!(said, "mark send\n");
        assert!(rest.starts_with("ran --dir"), "{rest}");
    }

    #[test]
    fn what_the_kernel_still_holds_is_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("r");
        std::fs::write(&exe, RUNNER).unwrap();
        std::fs::set_permissions(&exe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (said, rest) = run(&["sh"], &std::env::var("PATH").unwrap(), exe.to_str().unwrap()).unwrap();
        assert_eq!(said, "mark kept\n");
        assert!(rest.starts_with("ran --keep --ttl=5 --hop=x as jane\n"), "{rest}");
        let (said, _) = run(&["sh"], &std::env::var("PATH").unwrap(), "/bin/true").unwrap();
        assert_eq!(said, "mark send\n", "another program is not the runner");
    }
}
