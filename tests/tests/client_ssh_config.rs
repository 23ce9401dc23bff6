//! The parser of ssh_config(5) against ssh(1) itself: for every file in `tests/ssh_config` and every host that its first
//! line names, the values that `ssh -G` tells, or a refusal that names the line.
//!
//! A file says which hosts are to be refused: `refused` where ssh takes what Sortie does not support, `both refuse`
//! where ssh refuses too, and `left to ssh` where the parser refuses by itself and `ssh -G` is asked.

mod ssh_config_support;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sortie_client::ssh_config::{
    ConfigError, ConfigSource, HostConfig, Query, ThisMachine, World, evaluate, lookup,
};
use sortie_client::transport::SshOptions;
use sortie_client::{SshSettings, Target};
use sortie_tests::require_programs;
use ssh_config_support::{Answer, effective, ssh_g};
use tempfile::TempDir;

/// Stands in the files for the directory that they are put in.
const HERE: &str = "@DIR@";

/// The files of `tests/ssh_config`, in a directory of the test's own.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Result<Self> {
        let files = Self { directory: TempDir::new()? };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("ssh_config");
        fs::create_dir(files.path().join("included"))?;
        for folder in [source.clone(), source.join("included")] {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_file() {
                    let text = fs::read_to_string(&path)?.replace(HERE, &files.path().to_string_lossy());
                    fs::write(files.path().join(path.strip_prefix(&source)?), text)?;
                }
            }
        }
        Ok(files)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// In order; at least the twenty that were asked for.
    fn configurations(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                all.push(path);
            }
        }
        all.sort();
        ensure!(all.len() >= 20, "only {} files", all.len());
        Ok(all)
    }
}

/// The words behind `# NAME:` in a file.
fn words(text: &str, name: &str) -> Vec<String> {
    let prefix = format!("# {name}: ");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

fn settings(config: &Path) -> SshSettings {
    SshSettings {
        config: ConfigSource::File(config.to_owned()),
        ssh_program: None,
        ..SshSettings::from_env()
    }
}

/// What the strict parser says, without help.
fn parsed(config: &Path, target: &Target, settings: &SshSettings) -> Result<Result<HostConfig, ConfigError>> {
    let files = settings.config.read(settings.home.as_deref(), ThisMachine.user_id());
    let files = files.map_err(|(path, error)| anyhow::anyhow!("{}: {error}", path.display()))?;
    ensure!(files.len() == 1, "{} is one file", config.display());
    Ok(lookup(&files, &query(target, settings), &ThisMachine))
}

fn query<'a>(target: &'a Target, settings: &'a SshSettings) -> Query<'a> {
    Query {
        host: target.host(),
        user: target.user(),
        port: target.port(),
        proxy: None,
        home: settings.home.as_deref(),
        local_user: settings.local_user.as_deref(),
    }
}

/// One row: what came of a host.
fn judge(config: &Path, text: &str, host: &str, defaults: &Answer) -> Result<String> {
    let listed = |name: &str| words(text, name).iter().any(|word| word == host);
    let settings = settings(config);
    let target = if host.contains(':') { Target::new(host)? } else { Target::parse(host)? };
    let ours = parsed(config, &target, &settings)?;
    let theirs = ssh_g(config, &target)?;
    let same = |found: &HostConfig, answer: &Answer| -> Result<usize> {
        let ssh_program = Some("ssh".into());
        let options = SshOptions::resolve(&target, &SshSettings { ssh_program, ..settings.clone() })?;
        let local_user = settings.local_user.as_deref().unwrap_or_default();
        let compared = effective(found, &options, &target, local_user, defaults);
        for (keyword, values) in &compared {
            let told = answer.get(keyword).map(Vec::as_slice).unwrap_or_default();
            ensure!(values == told, "{keyword} is {values:?} for us and {told:?} for ssh");
        }
        Ok(compared.len())
    };
    match (ours, theirs) {
        (Ok(found), Ok(answer)) => {
            ensure!(!listed("refused") && !listed("left to ssh"), "it was to be refused");
            Ok(format!("same {} values", same(&found, &answer)?))
        }
        (Ok(_), Err(reason)) => anyhow::bail!("only ssh refuses: {reason}"),
        (Err(error), theirs) => {
            let line = text.lines().nth(error.line.wrapping_sub(1));
            ensure!(
                error.file == config || error.file.starts_with(config.with_file_name("included")),
                "{error}"
            );
            ensure!(error.file != config || line.is_some_and(|line| !line.trim().is_empty()), "{error}");
            let reason = error.reason.split([':', ' ']).next().unwrap_or_default();
            let place = format!("line {}, {reason}", error.line);
            match theirs {
                Err(_) => {
                    ensure!(listed("both refuse"), "both refuse: {error}");
                    Ok(format!("both refuse ({place})"))
                }
                Ok(answer) if error.not_understood => {
                    ensure!(listed("left to ssh"), "not understood: {error}");
                    let query = query(&target, &settings);
                    let asked = evaluate(&settings.config, &query, &ThisMachine, Some(Path::new("ssh")));
                    let found = asked.map_err(anyhow::Error::msg)?;
                    Ok(format!("ssh asked ({place}), same {} values", same(&found, &answer)?))
                }
                Ok(_) => {
                    ensure!(listed("refused"), "refused: {error}");
                    Ok(format!("refused ({place})"))
                }
            }
        }
    }
}

#[test]
fn every_file_means_what_it_means_to_ssh_or_is_refused_by_its_line() -> Result<()> {
    require_programs!("ssh");
    let files = Files::new()?;
    let empty = files.path().join("empty");
    fs::write(&empty, "")?;
    let mut wrong = Vec::new();
    for config in files.configurations()? {
        let text = fs::read_to_string(&config)?;
        let name = config.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        let hosts = words(&text, "hosts");
        ensure!(!hosts.is_empty(), "{name} names no hosts");
        for host in hosts {
            let target = if host.contains(':') { Target::new(&host)? } else { Target::parse(&host)? };
            let defaults = ssh_g(&empty, &target)?.map_err(anyhow::Error::msg)?;
            match judge(&config, &text, &host, &defaults) {
                Ok(row) => println!("{name:45} {host:20} {row}"),
                Err(error) => {
                    println!("{name:45} {host:20} WRONG: {error}");
                    wrong.push(format!("{name} {host}: {error}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn what_ssh_is_asked_for_is_refused_all_the_same_where_it_is_not_supported() -> Result<()> {
    require_programs!("ssh");
    let files = Files::new()?;
    let config = files.path().join("config");
    fs::write(
        &config,
        "CanonicalizeHostname always\nCanonicalizePermittedCNAMEs *:*\nRemoteCommand uptime\n",
    )?;
    let settings = SshSettings { ssh_program: Some("ssh".into()), ..settings(&config) };
    let error = SshOptions::resolve(&Target::parse("web1")?, &settings).err().context("it was obeyed")?;
    let text = error.to_string();
    assert!(text.contains("line 3") && text.contains("RemoteCommand"), "{text}");
    fs::write(
        &config,
        "Include @DIR@/[n]o\nRemoteCommand uptime\n".replace(HERE, &files.path().to_string_lossy()),
    )?;
    let error = SshOptions::resolve(&Target::parse("web1")?, &settings).err().context("it was obeyed")?;
    let text = error.to_string();
    assert!(text.contains("line 1") && text.contains("ssh -G") && text.contains("remotecommand"), "{text}");
    Ok(())
}

#[test]
fn without_an_ssh_program_what_is_not_understood_is_refused() -> Result<()> {
    let files = Files::new()?;
    let config = files.path().join("26-glob-left-to-ssh.conf");
    let settings = SshSettings { ssh_program: Some("/no/such/ssh".into()), ..settings(&config) };
    let error = SshOptions::resolve(&Target::parse("web1")?, &settings).err().context("it was understood")?;
    let text = error.to_string();
    assert!(text.contains("line 3") && text.contains("Include") && text.contains("/no/such/ssh"), "{text}");
    Ok(())
}
