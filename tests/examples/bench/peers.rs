//! Other programs that do the same: ansible-core, with its own strategy and with Mitogen's, and pyinfra. Installed from PyPI where the
//! bench keeps them, and told to do a piece of work in their own words.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sortie_tests::access::Access;

/// Mitogen knows the inside of ansible-core: which versions it was made for stands in its changelog. 0.3.28 and later take 2.19.
const PACKAGES: [&str; 3] = ["ansible-core>=2.16,<2.20", "mitogen>=0.3.28,<0.4", "pyinfra>=3.2,<4"];

/// One thing to be done, the same for everybody.
pub(crate) enum Step {
    /// A program that changes nothing.
    True,
    /// A small file and its content.
    Write(String, String),
    /// A line of a file: which is meant, and what it is to be.
    Line { path: &'static str, regexp: String, line: String },
}

/// Where the programs are.
pub(crate) struct Peers {
    directory: PathBuf,
    /// What was installed.
    pub(crate) versions: String,
    mitogen: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Ansible,
    Mitogen,
    Pyinfra,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Ansible, Self::Mitogen, Self::Pyinfra];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ansible => "ansible-core with pipelining",
            Self::Mitogen => "ansible-core with Mitogen's strategy",
            Self::Pyinfra => "pyinfra",
        }
    }
}

impl Peers {
    /// Installs them into this directory, unless they are there.
    pub(crate) fn install(directory: PathBuf) -> Result<Self> {
        let python = directory.join("bin/python");
        if !python.exists() {
            said(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
        }
        let pip = || {
            let mut pip = Command::new(&python);
            pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]);
            pip
        };
        said(pip().args(["install", "--quiet"]).args(PACKAGES))?;
        let list = said(pip().args(["list", "--format=freeze"]))?;
        let wanted = ["ansible-core==", "mitogen==", "pyinfra=="];
        let mut versions: Vec<String> = list
            .lines()
            .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
            .map(|line| line.replace("==", " "))
            .collect();
        versions.push(said(Command::new(&python).arg("--version"))?);
        let mitogen = "import ansible_mitogen; print(ansible_mitogen.__path__[0])";
        let mitogen = said(Command::new(&python).args(["-c", mitogen]))?;
        Ok(Self { directory, versions: versions.join(", "), mitogen: mitogen.into() })
    }

    /// Writes the work down for this one, and says how it is started.
    pub(crate) fn command(
        &self,
        peer: Peer,
        access: &Access,
        directory: &Path,
        work: &[Step],
    ) -> Result<Command> {
        let directory = directory.join(peer.name().replace([' ', '\''], "-"));
        std::fs::create_dir_all(&directory)?;
        let file = |name: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let ssh = file("ssh", &access.ssh_config("bench"))?;
        let mut command;
        if peer == Peer::Pyinfra {
            let inventory = file("inventory.py", &inventory(access))?;
            let deploy = file("deploy.py", &deploy(work))?;
            command = Command::new(self.directory.join("bin/pyinfra"));
            command.arg("--yes").arg(inventory).arg(deploy);
        } else {
            let settings = file("ansible.cfg", &self.settings(peer, &directory, &ssh))?;
            let inventory = file("inventory", "bench ansible_python_interpreter=/usr/bin/python3\n")?;
            let playbook = file("playbook.yaml", &playbook(work))?;
            command = Command::new(self.directory.join("bin/ansible-playbook"));
            command.arg("-i").arg(inventory).arg(playbook).env("ANSIBLE_CONFIG", settings);
            // Its own files, in the user's home otherwise.
            command.env("ANSIBLE_HOME", directory.join("home"));
        }
        command.current_dir(&directory).env_remove("SSH_AUTH_SOCK");
        Ok(command)
    }

    /// As fast as their manuals say: pipelining, and a connection that stays open.
    fn settings(&self, peer: Peer, directory: &Path, ssh: &Path) -> String {
        let strategy = if peer == Peer::Mitogen {
            format!(
                "strategy_plugins = {}/plugins/strategy\nstrategy = mitogen_linear\n",
                self.mitogen.display()
            )
        } else {
            String::new()
        };
        format!(
            "[defaults]\ngathering = explicit\nretry_files_enabled = false\n{strategy}[ssh_connection]\npipelining = true\n\
             control_path = {}/%%C\nssh_args = -F {} -o ControlMaster=auto -o ControlPersist=60s\n",
            directory.display(),
            ssh.display(),
        )
    }
}

/// Runs a program to its end; what it printed.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Text as JSON, YAML and Python read it alike.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Ansible's.
fn playbook(work: &[Step]) -> String {
    let mut text = "- hosts: all\n  gather_facts: false\n  tasks:\n".to_owned();
    for step in work {
        // Into a String, which takes everything.
        let _ = match step {
            Step::True => writeln!(text, "  - ansible.builtin.command: {{argv: [\"true\"]}}"),
            Step::Write(path, content) => {
                let (path, content) = (quoted(path), quoted(content));
                writeln!(
                    text,
                    "  - ansible.builtin.copy: {{dest: {path}, content: {content}, mode: \"0644\"}}"
                )
            }
            Step::Line { path, regexp, line } => {
                let (regexp, line) = (quoted(regexp), quoted(line));
                writeln!(
                    text,
                    "  - ansible.builtin.lineinfile: {{path: {path}, regexp: {regexp}, line: {line}}}"
                )
            }
        };
    }
    text
}

fn inventory(access: &Access) -> String {
    format!(
        "hosts = [(\"bench\", {{\"ssh_hostname\": \"{}\", \"ssh_port\": {}, \"ssh_user\": \"{}\", \"ssh_key\": {}, \
         \"ssh_known_hosts_file\": {}, \"ssh_strict_host_key_checking\": \"yes\"}})]\n",
        access.address,
        access.port,
        access.user,
        quoted(&access.identity.to_string_lossy()),
        quoted(&access.known_hosts.to_string_lossy()),
    )
}

/// pyinfra's.
fn deploy(work: &[Step]) -> String {
    let mut text = "from io import StringIO\nfrom pyinfra.operations import files, server\n".to_owned();
    for (at, step) in work.iter().enumerate() {
        // Into a String, which takes everything.
        let _ = match step {
            Step::True => writeln!(text, "server.shell(name=\"{at}\", commands=[\"true\"])"),
            Step::Write(path, content) => {
                let (path, content) = (quoted(path), quoted(content));
                writeln!(text, "files.put(name=\"{at}\", src=StringIO({content}), dest={path}, mode=\"644\")")
            }
            Step::Line { path, regexp, line } => {
                let (regexp, line) = (quoted(&format!("{regexp}.*")), quoted(line));
                writeln!(text, "files.line(name=\"{at}\", path=\"{path}\", line={regexp}, replace={line})")
            }
        };
    }
    text
}
