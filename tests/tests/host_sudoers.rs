//! `sudoers_ensure` on real hosts: what sudo makes of each rule, and what stays in force when one cannot be.

mod cli_support;
mod client_support;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cli_support::on;
use client_support::connect;
use serde_json::{Value, json};
use sortie_client::protocol::ErrorCode;
use sortie_client::protocol::command::sudoers_ensure::{SudoersEnsure, SudoersEnsureResult};
use sortie_client::protocol::message::ErrorFrame;
use sortie_client::{CommandOptions, Error, Session};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Host, Kind, Lab, matrix};

const HEADER: &str = "# Managed by Sortie; changes made here are lost.\n";

async fn put(session: &Session, command: &SudoersEnsure) -> Result<SudoersEnsureResult> {
    Ok(session.run(command.clone()).await?.result)
}

async fn put_with(
    session: &Session,
    command: &SudoersEnsure,
    options: CommandOptions,
) -> Result<SudoersEnsureResult> {
    Ok(session.start_with(command, options).await?.wait().await?.result)
}

async fn refused(session: &Session, code: &ErrorCode, command: &SudoersEnsure) -> Result<ErrorFrame> {
    match session.run(command.clone()).await {
        Err(Error::Command { error, .. }) if error.code == *code => Ok(*error),
        other => bail!("{command:?} is not refused as {code}: {other:?}"),
    }
}

/// Everything in the directory: names, owners, modes and contents.
async fn rules(host: &Host) -> Result<String> {
    let script = "cd /etc/sudoers.d; for f in $(find . -type f | sort); do stat -c '%n %u:%g %a %s %i %Z' $f; cat $f; done";
    host.sh(script).await?.fine()
}

/// What sudo says that a user may do: the lines below "may run".
async fn may_run(host: &Host, user: &str) -> Result<Vec<String>> {
    let said = host.exec(["sudo", "-l", "-U", user]).await?.stdout;
    let listed = said.lines().skip_while(|line| !line.contains("may run the following")).skip(1);
    // sudo 1.9.5 shows no arguments as \"\".
    Ok(listed.map(|line| line.trim().replace("\\\"", "\"")).collect())
}

/// As a user, without a password.
async fn as_user(host: &Host, user: &str, words: &[&str]) -> Result<(i32, String)> {
    let argv = ["runuser", "-u", user, "--", "sudo", "-n"].into_iter().chain(words.iter().copied());
    let ran = host.exec(argv).await?;
    Ok((ran.status, ran.stdout))
}

/// A host with a user, one with a dot, a service account, and a group that `member` is in.
async fn host_with_users(lab: &Lab, kind: Kind) -> Result<Host> {
    let host = lab.host(kind).name("web1").start().await?;
    host.sh(
        "useradd -m deploy; printf 'jane.doe:x:4001:4001::/home:/bin/sh\\n' >> /etc/passwd; echo jane.doe:x:4001: >> /etc/group; echo 'jane.doe:*:19000:0:99999:7:::' >> /etc/shadow; \
         useradd -r postgres; groupadd admins; useradd -m -G admins member; grep -q ^jane.doe: /etc/passwd",
    )
    .await?
    .fine()?;
    Ok(host)
}

for_each_kind!(sudo_shows_exactly_what_was_asked_for: Debian11, Debian12, Debian13);
async fn sudo_shows_exactly_what_was_asked_for(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let deploy = || SudoersEnsure::present("deploy");
    let one = || deploy().command("/usr/bin/id");
    let cases = [
        ("ALL", deploy(), "deploy ALL=(ALL:ALL) NOPASSWD: ALL", "(ALL : ALL) NOPASSWD: ALL"),
        ("with password", deploy().password(true), "deploy ALL=(ALL:ALL) ALL", "(ALL : ALL) ALL"),
        ("one", one(), "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id", "(ALL : ALL) NOPASSWD: /usr/bin/id"),
        (
            "several, with arguments",
            one().command("/bin/echo a,b c:d").command("/bin/true \"\""),
            "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id, /bin/echo a\\,b c\\:d, /bin/true \"\"",
            "(ALL : ALL) NOPASSWD: /usr/bin/id, /bin/echo a\\,b c\\:d, /bin/true \"\"",
        ),
        (
            "runas user",
            one().runas_user("postgres"),
            "deploy ALL=(postgres) NOPASSWD: /usr/bin/id",
            "(postgres) NOPASSWD: /usr/bin/id",
        ),
        (
            "runas user and group",
            one().runas_user("postgres").runas_group("admins"),
            "deploy ALL=(postgres:admins) NOPASSWD: /usr/bin/id",
            "(postgres : admins) NOPASSWD: /usr/bin/id",
        ),
        (
            "runas group",
            one().runas_group("admins"),
            "deploy ALL=(:admins) NOPASSWD: /usr/bin/id",
            "(deploy : admins) NOPASSWD: /usr/bin/id",
        ),
        (
            "this host",
            one().host("web1"),
            "deploy web1=(ALL:ALL) NOPASSWD: /usr/bin/id",
            "(ALL : ALL) NOPASSWD: /usr/bin/id",
        ),
        ("another host", one().host("web2"), "deploy web2=(ALL:ALL) NOPASSWD: /usr/bin/id", ""),
        (
            "SETENV",
            SudoersEnsure { setenv: true, ..one() },
            "deploy ALL=(ALL:ALL) NOPASSWD: SETENV: /usr/bin/id",
            "(ALL : ALL) SETENV: NOPASSWD: /usr/bin/id",
        ),
        (
            "NOEXEC",
            SudoersEnsure { noexec: true, ..one() },
            "deploy ALL=(ALL:ALL) NOPASSWD: NOEXEC: /usr/bin/id",
            "(ALL : ALL) NOEXEC: NOPASSWD: /usr/bin/id",
        ),
        (
            "patterns",
            SudoersEnsure { wildcards: true, ..deploy().command("/usr/bin/i[d] -*") },
            "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/i[d] -*",
            "(ALL : ALL) NOPASSWD: /usr/bin/i[d] -*",
        ),
        ("no rule", SudoersEnsure::absent("deploy"), "", ""),
    ];
    for (case, command, line, listed) in cases {
        let result = put(&session, &command).await.context(case)?;
        assert!(result.changed && result.note.is_none(), "{case}: {result:?}");
        assert_eq!(result.file_path, "/etc/sudoers.d/sortie-deploy");
        if line.is_empty() {
            assert_eq!(host.sh("test -e /etc/sudoers.d/sortie-deploy").await?.status, 1);
        } else {
            let text = String::from_utf8(host.read(&result.file_path).await?)?;
            assert_eq!(text, format!("{HEADER}{line}\n"), "{case}");
            let stat = host.exec(["stat", "-c", "%u:%g %a", &result.file_path]).await?.fine()?;
            assert_eq!(stat, "0:0 440\n", "{case}");
        }
        let strict = host.exec(["visudo", "-cs"]).await?;
        assert!(strict.status == 0 && strict.stderr.is_empty(), "{case}: {strict:?}");
        let expected: Vec<&str> = if listed.is_empty() { Vec::new() } else { vec![listed] };
        assert_eq!(may_run(&host, "deploy").await?, expected, "{case}");
        matrix::record("sudoers_ensure", kind, case, "as `visudo -cs` and `sudo -l -U` show it")?;
    }
    for (user, who, path) in [
        ("jane.doe", "jane.doe", "/etc/sudoers.d/sortie-jane%2Edoe"),
        ("%admins", "member", "/etc/sudoers.d/sortie-%25admins"),
        ("#4001", "jane.doe", "/etc/sudoers.d/sortie-%234001"),
    ] {
        let result = put(&session, &SudoersEnsure::present(user)).await?;
        assert_eq!((result.action.as_str(), result.file_path.as_str()), ("created", path));
        assert_eq!(may_run(&host, who).await?, ["(ALL : ALL) NOPASSWD: ALL"], "{user}");
        assert_eq!(as_user(&host, who, &["id", "-un"]).await?, (0, "root\n".into()));
        assert_eq!(put(&session, &SudoersEnsure::absent(user)).await?.action, "removed");
        assert_ne!(as_user(&host, who, &["id", "-un"]).await?.0, 0);
        matrix::record("sudoers_ensure", kind, &format!("user {user}"), "in force, then gone")?;
    }
    session.close().await?;
    Ok(())
}

for_each_kind!(arguments_mean_what_they_say: Debian11, Debian12, Debian13);
async fn arguments_mean_what_they_say(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    put(&session, &SudoersEnsure::present("deploy").command("/bin/echo a,b c:d=e#f x\\y ^ 'q' (z) !$HOME"))
        .await?;
    let exact = ["/bin/echo", "a,b", "c:d=e#f", "x\\y", "^", "'q'", "(z)", "!$HOME"];
    assert_eq!(as_user(&host, "deploy", &exact).await?, (0, exact[1..].join(" ") + "\n"));
    for other in [&exact[..7], &["/bin/echo"], &["/bin/echo", "a", "b"], &["/bin/cat", "/etc/shadow"]] {
        assert_eq!(as_user(&host, "deploy", other).await?, (1, String::new()), "{other:?}");
    }
    put(&session, &SudoersEnsure::present("deploy").command("/bin/echo \"\"")).await?;
    assert_eq!(as_user(&host, "deploy", &["/bin/echo"]).await?, (0, "\n".into()));
    assert_eq!(as_user(&host, "deploy", &["/bin/echo", "x"]).await?.0, 1);
    put(&session, &SudoersEnsure::present("deploy").command("/usr/bin/id -un").runas_user("postgres"))
        .await?;
    let as_postgres = ["-u", "postgres", "/usr/bin/id", "-un"];
    assert_eq!(as_user(&host, "deploy", &as_postgres).await?, (0, "postgres\n".into()));
    assert_eq!(as_user(&host, "deploy", &["/usr/bin/id", "-un"]).await?.0, 1);
    assert_eq!(
        as_user(&host, "deploy", &["-u", "postgres", "-g", "admins", "/usr/bin/id", "-un"]).await?.0,
        1
    );
    session.close().await?;
    Ok(())
}

/// The tokens that sudo's own parser finds in the rule, as `cvtsudoers -f json` has them.
fn tokens(file: &Value) -> Result<Value> {
    let spec = &file["User_Specs"][0];
    let commands = &spec["Cmnd_Specs"][0];
    ensure!(file["User_Specs"][1].is_null() && spec["Cmnd_Specs"][1].is_null(), "more than one rule: {file}");
    Ok(json!({
        "users": spec["User_List"], "hosts": spec["Host_List"],
        "runas": commands["runasusers"], "groups": commands["runasgroups"], "commands": commands["Commands"],
    }))
}

for_each_kind!(sudos_own_parser_finds_the_tokens_that_were_asked_for: Debian11, Debian12, Debian13);
async fn sudos_own_parser_finds_the_tokens_that_were_asked_for(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let session = connect(&host.access("root")).await?;
    let user = |name: &str| json!([{ "username": name }]);
    let mut cases = vec![
        (SudoersEnsure::present("%#100"), "users", json!([{"usergid": 100}])),
        (SudoersEnsure::present("#100"), "users", json!([{"userid": 100}])),
        (SudoersEnsure::present("%domain admins"), "users", json!([{"usergroup": "domain admins"}])),
        (SudoersEnsure::present("u").host("192.0.2.0/24"), "hosts", json!([{"networkaddr": "192.0.2.0/24"}])),
        (SudoersEnsure::present("u").host("192.0.2.1"), "hosts", json!([{"networkaddr": "192.0.2.1"}])),
    ];
    let names = [
        "jane.doe",
        "a-b",
        "_apt",
        "EXAMPLE\\jane",
        "jane@example.com",
        "machine$",
        "x",
        "Jane",
        "JANE",
        "A1_B",
        "NOPASSWD",
        "ROLE",
        "TYPE",
        "CWD",
        "TIMEOUT",
        "LOG_INPUT",
        "Defaults",
        "User_Alias",
        "Cmnd_Alias",
        "Host_Alias",
        "Runas_Alias",
        "Cmd_Alias",
        "sudoedit",
        "list",
        "include",
        "includedir",
        "1000",
        "192.0.2.1",
        "3com",
        "x.y.z-",
        "X41b",
        "xA41",
        "\\x41".trim_start_matches('\\'),
        "a b c",
        "all",
        "sha224",
        "env_keep",
        "0x10",
        "a$b@c\\d",
    ];
    for name in names {
        cases.push((SudoersEnsure::present(name), "users", user(name)));
        cases.push((SudoersEnsure::present("u").runas_user(name), "runas", user(name)));
        let group = json!([{ "usergroup": name }]);
        cases.push((SudoersEnsure::present(format!("%{name}")), "users", group.clone()));
        cases.push((SudoersEnsure::present("u").runas_group(name), "groups", group));
    }
    for name in ["web1", "WEB1", "Web-1.example.com", "a_b", "list", "sudoedit", "3com"] {
        cases.push((SudoersEnsure::present("u").host(name), "hosts", json!([{ "hostname": name }])));
    }
    for command in [
        "/bin/a",
        "/bin/a b",
        "/bin/a,b:c=d#e(f)!g",
        "/bin/a , : = # ! ( ) ' $ ~ + - @ % { } | ; & < > `",
        "/bin/a -x --y=z",
        "/opt/dir/",
        "/bin/a \"\"",
        "/bin/ä ö",
        "/bin/a ALL",
        "/bin/a NOPASSWD: ALL",
        "/bin/a sudoedit",
        "/bin/a /bin/b",
        "/bin/a x^y",
        "/bin/a x#include",
        "/bin/a =",
        "/bin/a ,",
        "/bin/a x,",
    ] {
        cases.push((
            SudoersEnsure::present("u").command(command),
            "commands",
            json!([{ "command": command }]),
        ));
    }
    let mut seen = 0;
    for (command, part, expected) in cases {
        let result = put(&session, &command).await.with_context(|| format!("{command:?}"))?;
        let parsed = host.exec(["cvtsudoers", "-f", "json", &result.file_path]).await?;
        assert!(parsed.stderr.is_empty(), "{command:?}: {parsed:?}");
        let tokens = tokens(&serde_json::from_str(&parsed.fine()?)?)?;
        assert_eq!(tokens[part], expected, "{command:?}");
        put(&session, &SudoersEnsure::absent(&command.user)).await?;
        seen += 1;
    }
    matrix::record("sudoers_ensure", kind, "tokens", &format!("{seen} rules read back by `cvtsudoers`"))?;
    assert_eq!(host.sh("ls /etc/sudoers.d").await?.fine()?.trim(), "README");
    session.close().await?;
    Ok(())
}

for_each_kind!(a_second_run_a_check_and_wrong_input_touch_nothing: Debian11, Debian12, Debian13, OpenRc, Dnf4, Dnf5, Zypper, Pacman, Arm64);
async fn a_second_run_a_check_and_wrong_input_touch_nothing(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let rule = SudoersEnsure::present("deploy").command("/usr/bin/id");
    let dry = || CommandOptions { check: true, diff: true, ..CommandOptions::default() };
    let before = rules(&host).await?;
    let would = put_with(&session, &rule, dry()).await?;
    assert_eq!((would.changed, would.action.as_str()), (true, "created"));
    let diff = "--- /dev/null\n+++ /etc/sudoers.d/sortie-deploy\n@@ -0,0 +1,2 @@\n+# Managed by Sortie; changes made here are lost.\n\
                +deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id\n";
    assert_eq!(would.diff.as_deref(), Some(diff));
    assert_eq!(rules(&host).await?, before);
    assert_eq!(put(&session, &rule).await?.action, "created");
    let after = rules(&host).await?;
    let again = put_with(&session, &rule, CommandOptions { diff: true, ..CommandOptions::default() }).await?;
    assert_eq!(
        (again.changed, again.action.as_str(), again.diff.as_deref()),
        (false, "already_present", Some(""))
    );
    for (more, code) in [
        (
            SudoersEnsure { user: "deploy\nroot ALL=(ALL) ALL".into(), ..rule.clone() },
            ErrorCode::InvalidParams,
        ),
        (SudoersEnsure { user: "x/../../../tmp/y".into(), ..rule.clone() }, ErrorCode::InvalidParams),
        (rule.clone().command("reboot"), ErrorCode::InvalidParams),
        (rule.clone().command("/bin/true\nnobody ALL=(ALL) NOPASSWD: ALL"), ErrorCode::InvalidParams),
        (SudoersEnsure { state: "latest".into(), ..rule.clone() }, ErrorCode::InvalidParams),
    ] {
        refused(&session, &code, &more).await?;
    }
    assert_eq!(rules(&host).await?, after, "a second run or a refused one touched something");
    // Owner and mode are part of it: sudo refuses others.
    host.sh("chown deploy /etc/sudoers.d/sortie-deploy; chmod 666 /etc/sudoers.d/sortie-deploy")
        .await?
        .fine()?;
    assert_eq!(put(&session, &rule).await?.action, "updated");
    assert_eq!(host.sh("stat -c '%u:%g %a' /etc/sudoers.d/sortie-deploy").await?.fine()?, "0:0 440\n");
    let would = put_with(&session, &SudoersEnsure::absent("deploy"), dry()).await?;
    assert_eq!((would.changed, would.action.as_str()), (true, "removed"));
    assert_eq!(put(&session, &SudoersEnsure::absent("deploy")).await?.action, "removed");
    let gone = put(&session, &SudoersEnsure::absent("deploy")).await?;
    assert_eq!((gone.changed, gone.action.as_str()), (false, "already_absent"));
    let result = put(&session, &SudoersEnsure::present("%nobody-yet")).await?;
    assert_eq!(result.note.as_deref(), Some("the host has no group \"nobody-yet\" yet"));
    for case in ["first run", "second run", "check", "wrong input"] {
        matrix::record("sudoers_ensure", kind, case, "as documented")?;
    }
    session.close().await?;
    Ok(())
}

for_each_kind!(what_cannot_be_in_force_leaves_the_old_rule: Debian12);
async fn what_cannot_be_in_force_leaves_the_old_rule(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    put(&session, &SudoersEnsure::present("deploy").command("/usr/bin/id")).await?;
    let other = SudoersEnsure::present("deploy").command("/usr/bin/env");
    let text = async || host.read("/etc/sudoers.d/sortie-deploy").await;
    let old = text().await?;

    // visudo refuses the new file.
    host.sh(
        "cp /usr/sbin/visudo /root/visudo; \
         printf '#!/bin/sh\\ncase $1$2 in -c-f) echo \"parse error in $3 near line 2\" >&2; exit 1;; esac\\n' > /usr/sbin/visudo",
    )
    .await?
    .fine()?;
    let error = refused(&session, &ErrorCode::ValidationFailed, &other).await?;
    assert!(
        error.message.contains("parse error") && error.message.contains("nothing was changed"),
        "{error:?}"
    );
    assert_eq!(text().await?, old);
    host.sh("cp /root/visudo /usr/sbin/visudo").await?.fine()?;

    // The policy is broken elsewhere: with the new rule and without it.
    host.write("/etc/sudoers.d/zz", "this is no rule\n", 0o440).await?;
    let error = refused(&session, &ErrorCode::RolledBack, &other).await?;
    assert!(error.message.contains("zz") && error.message.contains("mend that first"), "{error:?}");
    assert_eq!(text().await?, old);
    refused(&session, &ErrorCode::RolledBack, &SudoersEnsure::present("member")).await?;
    // The reference's file is back too, and its place is not taken.
    host.write("/etc/sudoers.d/froyo-jane.doe", "jane.doe ALL=(NOPASSWD) ALL\n", 0o440).await?;
    refused(&session, &ErrorCode::RolledBack, &SudoersEnsure::present("jane.doe")).await?;
    let names = host.sh("ls -A /etc/sudoers.d").await?.fine()?;
    assert_eq!(
        names.split_whitespace().collect::<Vec<_>>(),
        ["README", "froyo-jane.doe", "sortie-deploy", "zz"]
    );
    host.sh("rm /etc/sudoers.d/zz").await?.fine()?;

    // sudo would never read it.
    let before = rules(&host).await?;
    host.sh("cp /etc/sudoers /root; sed -i '/includedir/d' /etc/sudoers").await?.fine()?;
    let error = refused(&session, &ErrorCode::Conflict, &other).await?;
    assert!(error.message.contains("@includedir /etc/sudoers.d"), "{error:?}");
    assert_eq!(rules(&host).await?, before);
    for line in ["#includedir /etc/sudoers.d", "@includedir sudoers.d", "@include /etc/sudoers.more"] {
        host.write("/etc/sudoers.more", "@includedir \"/etc/sudoers.d\"\n", 0o440).await?;
        host.sh(&format!("sed '/includedir/d' /root/sudoers > /etc/sudoers; echo '{line}' >> /etc/sudoers"))
            .await?;
        assert_eq!(put(&session, &other).await.context(line)?.action, "updated");
        put(&session, &SudoersEnsure::present("deploy").command("/usr/bin/id")).await?;
    }
    host.sh("cp /root/sudoers /etc/sudoers").await?.fine()?;

    // A rule in the way that is none, and no sudo at all.
    host.sh("mkdir /etc/sudoers.d/sortie-member").await?.fine()?;
    refused(&session, &ErrorCode::Conflict, &SudoersEnsure::present("member")).await?;
    host.sh("rmdir /etc/sudoers.d/sortie-member; rm /usr/sbin/visudo").await?.fine()?;
    let error = refused(&session, &ErrorCode::NotFound, &other).await?;
    assert!(error.message.contains("visudo"), "{error:?}");
    assert_eq!(text().await?, old);
    matrix::record("sudoers_ensure", kind, "refused by visudo", "the old rule stays in force")?;
    session.close().await?;
    Ok(())
}

for_each_kind!(a_timeout_takes_effect_before_the_change_or_after_it: Debian12);
async fn a_timeout_takes_effect_before_the_change_or_after_it(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let rule = |command: &str| SudoersEnsure::present("deploy").command(command);
    let within_a_second = || CommandOptions { timeout: Duration::from_secs(1), ..CommandOptions::default() };
    let names = async || host.sh("ls -A /etc/sudoers.d").await?.fine();
    put(&session, &rule("/usr/bin/id")).await?;
    host.sh("mv /usr/sbin/visudo /usr/sbin/visudo.real").await?.fine()?;
    let slow =
        |when: &str| format!("#!/bin/sh\ncase $* in {when}) sleep 3;; esac\nexec visudo.real \"$@\"\n");

    // Too long over the new file: nothing has happened.
    host.write("/usr/sbin/visudo", slow("'-c -f '*"), 0o755).await?;
    match put_with(&session, &rule("/usr/bin/env"), within_a_second()).await {
        Err(error) if format!("{error:#}").contains("TIMEOUT") => {}
        other => bail!("no timeout: {other:?}"),
    }
    assert_eq!(names().await?, "README\nsortie-deploy\n");
    assert_eq!(may_run(&host, "deploy").await?, ["(ALL : ALL) NOPASSWD: /usr/bin/id"]);

    // Too long over the whole policy: it is in force, and is not left half done.
    host.write("/usr/sbin/visudo", slow("-c"), 0o755).await?;
    assert_eq!(put_with(&session, &rule("/usr/bin/env"), within_a_second()).await?.action, "updated");
    assert_eq!(may_run(&host, "deploy").await?, ["(ALL : ALL) NOPASSWD: /usr/bin/env"]);
    host.sh("mv /usr/sbin/visudo.real /usr/sbin/visudo").await?.fine()?;

    host.sh(
        "flock /etc/sudoers.d sleep 1000 > /dev/null 2>&1 & until ! flock -n /etc/sudoers.d true; do :; done",
    )
    .await?
    .fine()?;
    match put_with(&session, &rule("/usr/bin/id"), within_a_second()).await {
        Err(error) if format!("{error:#}").contains("LOCKED") => {
            ensure!(
                format!("{error:#}").contains("(flock)") || format!("{error:#}").contains("(sleep)"),
                "{error:#}"
            );
        }
        other => bail!("not locked: {other:?}"),
    }
    matrix::record("sudoers_ensure", kind, "timeout, lock held", "old or new; LOCKED names the process")?;
    session.close().await?;
    Ok(())
}

for_each_kind!(a_rule_of_the_reference_is_taken_over: Debian12);
async fn a_rule_of_the_reference_is_taken_over(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = host_with_users(&lab, kind).await?;
    let session = connect(&host.access("root")).await?;
    let names = async || -> Result<Vec<String>> {
        let listed = host.sh("ls -A /etc/sudoers.d").await?.fine()?;
        Ok(listed.split_whitespace().map(str::to_owned).collect())
    };
    for user in ["deploy", "jane.doe"] {
        let old = format!("/etc/sudoers.d/froyo-{user}");
        let ours = format!("sortie-{}", user.replace('.', "%2E"));
        let rule = SudoersEnsure::present(user);
        host.write(&old, format!("{user} ALL=(NOPASSWD) ALL\n"), 0o440).await?;
        assert_eq!(put(&session, &rule).await?.action, "updated");
        assert_eq!(names().await?, ["README", &ours]);
        // Both, as where the reference ran again.
        host.write(&old, format!("{user} ALL=(NOPASSWD) ALL\n"), 0o440).await?;
        assert_eq!(put(&session, &rule).await?.action, "updated");
        assert_eq!(names().await?, ["README", &ours]);
        assert_eq!(put(&session, &rule).await?.action, "already_present");
        host.write(&old, format!("{user} ALL=(NOPASSWD) ALL\n"), 0o440).await?;
        assert_eq!(put(&session, &SudoersEnsure::absent(user)).await?.action, "removed");
        assert_eq!(names().await?, ["README"]);
    }
    matrix::record("sudoers_ensure", kind, "a file of the reference", "taken over")?;
    session.close().await?;
    Ok(())
}

for_each_kind!(an_unprivileged_login_needs_become: Debian12);
async fn an_unprivileged_login_needs_become(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let access = host.add_user("ops", None).await?;
    host.write("/etc/sudoers.d/ops", "ops ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440).await?;
    let present = ["present", "-c", "/usr/bin/id", "--runas", "root", "ops2"];
    let ended = on(&access, "sudoers").args(present).run().await?;
    ended.ended_with(1).says(&["PERMISSION_DENIED", "become"]);
    assert_eq!(host.sh("ls /etc/sudoers.d").await?.fine()?, "README\nops\n");
    let ended = on(&access, "sudoers").args(present).args(["--become", "--diff"]).run().await?.ended_with(0);
    assert!(ended.text().contains("ops2: created: /etc/sudoers.d/sortie-ops2\n"), "{ended:?}");
    assert!(ended.text().contains("+ops2 ALL=(root) NOPASSWD: /usr/bin/id\n"), "{ended:?}");
    assert!(ended.stderr.contains("no user \"ops2\" yet"), "{ended:?}");
    let ended = on(&access, "sudoers").args(["absent", "ops2", "--become", "--json"]).run().await?.fine();
    let done = ended.events().into_iter().find(|event| event["event"] == "done").context("no result")?;
    assert_eq!((&done["command"], &done["result"]["action"]), (&json!("sudoers"), &json!("removed")));
    host.quiet_of("sortie").await
}
