//! The script against the shells of this machine, starved in every way that a host or a link may starve it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use super::*;

const MARKER: &str = "0123456789abcdeffedcba9876543210";
/// Stands in for the runner: says how it was started, removes itself as the runner does, and echoes its input.
const RUNNER: &str = "#!/bin/sh\n\
    [ \"$1\" = --version ] && exit 0\n\
    d=; [ \"$1\" = --dir ] && { d=$2; rm -f \"$0\"; rmdir \"$d\"; }\n\
    echo \"runner $*\"; umask; pwd; echo \"var=$_x:$LC_ALL:$KEPT\"; cat\n";

struct Bench {
    directory: tempfile::TempDir,
    /// Unlike every other's, for some directories are shared by all.
    token: String,
    path: String,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["home", "run", "tmp"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let token = sha256(directory.path().as_os_str().as_encoded_bytes())[..32].to_owned();
        Self { directory, token, path: std::env::var("PATH").unwrap() }
    }

    /// A PATH of these tools only, each a link to the first of its candidates that is there.
    fn with_only(tools: &[&str]) -> Self {
        let mut bench = Self::new();
        let bin = bench.directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for tool in tools {
            std::os::unix::fs::symlink(find(tool).unwrap(), bin.join(tool)).unwrap();
        }
        bench.path = bin.display().to_string();
        bench
    }

    /// Makes one of the tools another program.
    fn with_tool(self, name: &str, program: &Path) -> Self {
        let link = Path::new(&self.path).join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, link).unwrap();
        self
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let program = find(program).unwrap_or_else(|| program.into());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.directory.path().join("run"))
            .env("TMPDIR", self.directory.path().join("tmp"))
            .env("KEPT", "as it was")
            .current_dir(self.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Header, payload and token, as the client sends them.
    fn upload(&self, packing: &str, runner: &[u8]) -> Vec<u8> {
        let payload = if packing == "gzip" { gzip(runner) } else { runner.to_vec() };
        let header = format!("{packing} {} {} {}\n", payload.len(), runner.len(), sha256(runner));
        [header.as_bytes(), &payload, self.token.as_bytes(), b"\n"].concat()
    }

    /// Runs the script in `shell` (a program and its first arguments) with `input`, which ends there.
    fn run(&self, shell: &[&str], cache: &str, input: &[u8]) -> Output {
        let own =
            ["-c", SCRIPT, "sh", &MARKER[..16], &MARKER[16..], &self.token, "60", cache, "--ttl", "600"];
        let command = self.command(shell[0], &[&shell[1..], &own].concat());
        feed(command, input)
    }

    /// Whatever is left in the directories that the script may use.
    fn litter(&self) -> Vec<String> {
        let ours = ["run", "tmp", "home"].map(|name| self.directory.path().join(name));
        let shared = ["/dev/shm", "/tmp", "/var/tmp"].map(PathBuf::from);
        ours.into_iter()
            .chain(shared)
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(&self.token))
            .collect()
    }
}

fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The script may end before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file())
}

/// Every shell of this machine that could be its `sh`.
fn shells() -> Vec<Vec<&'static str>> {
    let all: [&[&str]; 8] = [
        &["sh"],
        &["dash"],
        &["bash", "--posix"],
        &["busybox", "sh"],
        &["mksh"],
        &["ksh"],
        &["yash"],
        &["zsh", "--emulate", "sh"],
    ];
    all.iter().filter(|shell| find(shell[0]).is_some()).map(|shell| shell.to_vec()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_script_holds_nothing_that_a_login_shell_would_change() {
    for forbidden in ["\n", "!", "\\", "'"] {
        assert!(!SCRIPT.contains(forbidden), "{forbidden:?}");
    }
    assert!(SCRIPT.len() <= 2048, "{} bytes are sent before anything else can be", SCRIPT.len());
}

#[test]
fn every_sh_starts_the_runner_with_its_flags_and_the_logins_own_umask_directory_and_environment() {
    for shell in shells() {
        for packing in ["gzip", "raw"] {
            let bench = Bench::new();
            let input =
                [&bench.upload(packing, RUNNER.as_bytes())[..], b"{\"frame\":1}\nrest without newline"]
                    .concat();
            let output = bench.run(&shell, "-", &input);
            let run = bench.directory.path().join(format!("run/.sortie-{}", bench.token));
            let mask =
                text(&feed(bench.command(shell[0], &[&shell[1..], &["-c", "umask"]].concat()), b"").stdout);
            let expected = format!(
                "{MARKER} {} 1 gzip -\nrunner --dir {} --ttl 600\n{}{}\nvar=::as it was\n{{\"frame\":1}}\nrest without newline",
                text(&Command::new("uname").arg("-sm").output().unwrap().stdout).trim(),
                run.display(),
                text(&feed(bench.command("sh", &["-c", "umask"]), b"").stdout),
                bench.home().display(),
            );
            assert_eq!(text(&output.stdout), expected, "{shell:?} {packing} {mask} {}", text(&output.stderr));
            assert_eq!(bench.litter(), [""; 0]);
        }
    }
}

#[test]
fn a_link_cut_at_any_byte_leaves_nothing_and_starts_nothing() {
    let bench = Bench::new();
    let whole = bench.upload("gzip", RUNNER.as_bytes());
    let raw = bench.upload("raw", RUNNER.as_bytes());
    for shell in shells() {
        // All bytes with the machine's own sh; elsewhere the places where something begins or ends.
        let header = whole.iter().position(|&b| b == b'\n').unwrap();
        let some = [
            0,
            1,
            header,
            header + 1,
            header + 2,
            whole.len() - 40,
            whole.len() - 34,
            whole.len() - 33,
            whole.len() - 1,
        ];
        let cuts: Vec<usize> = if shell == ["sh"] { (0..whole.len()).collect() } else { some.to_vec() };
        for cut in cuts {
            let output = bench.run(&shell, "-", &whole[..cut]);
            assert!(!output.status.success(), "{shell:?} at {cut}");
            assert!(!text(&output.stdout).contains("runner"), "{shell:?} at {cut}: {}", text(&output.stdout));
            assert_eq!(bench.litter(), [""; 0], "{shell:?} at {cut}");
        }
        for cut in [header + 5, raw.len() - 34, raw.len() - 1] {
            let output = bench.run(&shell, "-", &raw[..cut]);
            assert!(!text(&output.stdout).contains("runner"), "{shell:?} at {cut}");
            assert_eq!(bench.litter(), [""; 0], "{shell:?} at {cut}");
        }
    }
}

#[test]
fn input_that_comes_byte_by_byte_is_enough() {
    for shell in shells() {
        let bench = Bench::new();
        let own = ["-c", SCRIPT, "sh", &MARKER[..16], &MARKER[16..], &bench.token, "60", "-"];
        let mut child = bench.command(shell[0], &[&shell[1..], &own].concat()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for byte in bench.upload("gzip", RUNNER.as_bytes()) {
            stdin.write_all(&[byte]).unwrap();
        }
        stdin.write_all(b"frames\n").unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(text(&output.stdout).ends_with("frames\n"), "{shell:?}: {}", text(&output.stderr));
    }
}

const BARE: &[&str] = &["sh", "uname", "mkdir", "chmod", "rm", "rmdir", "cat"];

#[test]
fn head_alone_or_dd_alone_will_do_without_gzip_timeout_or_a_hash_tool() {
    for (tools, exact) in [(&["head"][..], "1"), (&["dd"][..], "1"), (&["head", "dd", "gzip"][..], "1")] {
        let bench = Bench::with_only(&[BARE, tools].concat());
        let packing = if tools.contains(&"gzip") { "gzip" } else { "raw" };
        let input = [&bench.upload(packing, RUNNER.as_bytes())[..], b"frames\n"].concat();
        let output = bench.run(&["sh"], "-", &input);
        let stdout = text(&output.stdout);
        assert!(stdout.contains(&format!(" {exact} {packing} -\n")), "{tools:?}: {stdout}");
        assert!(stdout.ends_with("frames\n"), "{tools:?}: {stdout} {}", text(&output.stderr));
        assert_eq!(bench.litter(), [""; 0]);
    }
}

#[test]
fn a_reader_that_reads_ahead_is_noticed_and_nothing_is_lost() {
    // As busybox 1.35 does: takes a block from the pipe and puts out its beginning.
    let bench = Bench::with_only(&[BARE, &["head"]].concat());
    let greedy = bench.directory.path().join("greedy");
    let real = find("head").unwrap();
    let block = find("dd").unwrap();
    fs::write(
        &greedy,
        format!("#!/bin/sh\n{} bs=4096 count=1 2>/dev/null | {} \"$@\"\n", block.display(), real.display()),
    )
    .unwrap();
    fs::set_permissions(&greedy, fs::Permissions::from_mode(0o755)).unwrap();
    let bench = bench.with_tool("head", &greedy);

    let own = ["-c", SCRIPT, "sh", &MARKER[..16], &MARKER[16..], &bench.token, "60", "-"];
    let mut child = bench.command("sh", &own).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut line = || {
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        text(&line)
    };
    assert!(line().ends_with(" 0 raw -"), "it says that it reads ahead");
    let input = bench.upload("raw", RUNNER.as_bytes());
    let (payload, token) = input.split_at(input.len() - bench.token.len() - 1);
    stdin.write_all(payload).unwrap();
    assert_eq!(line(), format!("{MARKER} got"));
    stdin.write_all(&[token, b"frames\n"].concat()).unwrap();
    drop(stdin);
    assert!(line().starts_with("runner --dir"));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("frames\n"));
    child.wait().unwrap();
    assert_eq!(bench.litter(), [""; 0]);
}

#[test]
fn a_payload_that_is_not_what_was_promised_is_refused() {
    for shell in shells() {
        let bench = Bench::new();
        let mut broken = bench.upload("gzip", RUNNER.as_bytes());
        let at = broken.len() - 60;
        broken[at] ^= 1;
        let mut other = bench.upload("raw", RUNNER.as_bytes());
        let at = other.len() - 60;
        other[at] ^= 1;
        for input in [broken, other] {
            let output = bench.run(&shell, "-", &input);
            assert!(
                text(&output.stdout).contains(&format!("{MARKER} damaged")),
                "{shell:?} {}",
                text(&output.stdout)
            );
            assert_eq!(output.status.code(), Some(1), "{shell:?}");
            assert_eq!(bench.litter(), [""; 0], "{shell:?}");
        }
    }
}

#[test]
fn directories_that_will_not_do_are_named_and_the_next_is_taken() {
    for shell in shells() {
        let bench = Bench::new();
        fs::remove_dir(bench.directory.path().join("run")).unwrap();
        let output = bench.run(&shell, "-", &bench.upload("gzip", RUNNER.as_bytes()));
        let stdout = text(&output.stdout);
        let run = bench.directory.path().join("run");
        assert!(stdout.contains(&format!("{MARKER} no {}: ", run.display())), "{shell:?}: {stdout}");
        assert!(stdout.contains("No such file"), "{shell:?}: {stdout}");
        assert!(stdout.contains("runner --dir"), "{shell:?}: {stdout}");
    }
}

#[test]
fn a_directory_with_a_space_in_its_name_works() {
    let bench = Bench::new();
    let odd = bench.directory.path().join("run time");
    fs::create_dir(&odd).unwrap();
    let own = ["-c", SCRIPT, "sh", &MARKER[..16], &MARKER[16..], &bench.token, "60", "-"];
    let mut command = bench.command("sh", &own);
    command.env("XDG_RUNTIME_DIR", &odd);
    let output = feed(command, &bench.upload("gzip", RUNNER.as_bytes()));
    assert!(text(&output.stdout).contains(&format!("runner --dir {}/.sortie-", odd.display())));
    assert_eq!(fs::read_dir(&odd).unwrap().count(), 0);
}

#[test]
fn something_that_waits_under_our_name_is_not_touched() {
    let bench = Bench::new();
    let trap = bench.directory.path().join("elsewhere");
    fs::create_dir(&trap).unwrap();
    let name = bench.directory.path().join(format!("run/.sortie-{}", bench.token));
    std::os::unix::fs::symlink(&trap, &name).unwrap();
    let output = bench.run(&["sh"], "-", &bench.upload("gzip", RUNNER.as_bytes()));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("File exists") && stdout.contains("runner --dir"), "{stdout}");
    assert!(!stdout.contains(&format!("--dir {}", name.display())), "{stdout}");
    assert!(fs::symlink_metadata(&name).unwrap().is_symlink());
}

#[test]
fn a_runner_that_cannot_be_run_leaves_nothing() {
    for shell in shells() {
        let bench = Bench::new();
        let output = bench.run(&shell, "-", &bench.upload("raw", b"\x7fELF this is for another machine"));
        assert!(!output.status.success(), "{shell:?}");
        assert!(
            text(&output.stdout).contains(&format!("{MARKER} broken ")),
            "{shell:?} {}",
            text(&output.stdout)
        );
        assert_eq!(bench.litter(), [""; 0], "{shell:?}");
    }
}

#[test]
fn the_cache_keeps_a_runner_and_finds_it_again() {
    for shell in shells() {
        let bench = Bench::new();
        let digest = sha256(RUNNER.as_bytes());
        let both = format!("{} {digest}", "0".repeat(64));
        let first = bench.run(&shell, &both, &bench.upload("gzip", RUNNER.as_bytes()));
        let cached = bench.home().join(".cache/sortie").join(&digest);
        let started = "runner --keep --ttl 600\n";
        assert!(
            text(&first.stdout).contains(started),
            "{shell:?}: {} {}",
            text(&first.stdout),
            text(&first.stderr)
        );
        assert_eq!(fs::read(&cached).unwrap(), RUNNER.as_bytes());
        assert_eq!(fs::metadata(&cached).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(cached.parent().unwrap()).unwrap().count(), 1, "{shell:?}");

        let input = format!("cached 0 0 {digest}\nframes\n");
        let second = bench.run(&shell, &both, input.as_bytes());
        let stdout = text(&second.stdout);
        assert!(
            stdout.contains(&format!(" {digest}\n{started}")) && stdout.ends_with("frames\n"),
            "{shell:?}: {stdout}"
        );

        fs::set_permissions(&cached, fs::Permissions::from_mode(0o720)).unwrap();
        let third = bench.run(&shell, &both, b"");
        assert!(text(&third.stdout).ends_with(" gzip -\n"), "a file that others may write is not used");
    }
}

#[test]
fn nothing_is_put_into_a_cache_that_others_may_change() {
    for shell in shells() {
        for elsewhere in [false, true] {
            let bench = Bench::new();
            let digest = sha256(RUNNER.as_bytes());
            let cache = bench.home().join(".cache/sortie");
            if elsewhere {
                fs::create_dir_all(cache.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(bench.directory.path(), &cache).unwrap();
            } else {
                fs::create_dir_all(&cache).unwrap();
                fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
            }
            let before = fs::read_dir(&cache).unwrap().count();
            let output = bench.run(&shell, &digest, &bench.upload("gzip", RUNNER.as_bytes()));
            let stdout = text(&output.stdout);
            assert!(stdout.contains("runner --dir ") && !stdout.contains("--keep"), "{shell:?}: {stdout}");
            assert_eq!(fs::read_dir(&cache).unwrap().count(), before, "{shell:?}");
        }
    }
}

#[test]
fn two_clients_at_once_do_not_disturb_each_other() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for n in 0..8u8 {
            let bench = &bench;
            scope.spawn(move || {
                let token = format!("{n:032x}");
                let own = ["-c", SCRIPT, "sh", "aa", "bb", &token, "60", "-"];
                let digest = sha256(RUNNER.as_bytes());
                let payload = gzip(RUNNER.as_bytes());
                let header = format!("gzip {} {} {digest}\n", payload.len(), RUNNER.len());
                let input = [header.as_bytes(), &payload, format!("{token}\n{n}\n").as_bytes()].concat();
                let output = feed(bench.command("sh", &own), &input);
                assert!(text(&output.stdout).ends_with(&format!("\n{n}\n")), "{}", text(&output.stdout));
            });
        }
    });
    assert_eq!(fs::read_dir(bench.directory.path().join("run")).unwrap().count(), 0);
}

#[test]
fn every_login_shell_passes_the_line_on_unchanged() {
    for shell in ["sh", "bash", "dash", "tcsh", "csh", "fish", "zsh", "ksh", "mksh", "yash", "busybox"] {
        if find(shell).is_none() {
            continue;
        }
        let bench = Bench::new();
        let line =
            line(&[&MARKER[..16], &MARKER[16..], &bench.token, "60", "-", "--ttl", "600"].map(String::from));
        let own: &[&str] = if shell == "busybox" { &["sh", "-c", &line] } else { &["-c", &line] };
        let output = feed(
            bench.command(shell, own),
            &[&bench.upload("gzip", RUNNER.as_bytes())[..], b"frames\n"].concat(),
        );
        let stdout = text(&output.stdout);
        assert!(
            stdout.starts_with(MARKER) && stdout.ends_with("frames\n"),
            "{shell}: {stdout} {}",
            text(&output.stderr)
        );
        assert!(stdout.contains("--ttl 600\n"), "{shell}");
    }
}
