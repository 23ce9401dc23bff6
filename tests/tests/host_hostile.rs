//! A user of the host who has no business with the login, and tries everything: directories and links made beforehand, a watch
//! on every process and on every directory that runners are put in, and a runner of the user's own where one is kept.

mod client_support;

use anyhow::{Result, ensure};
use client_support::{builder, connect, target};
use sortie_client::protocol::Secret;
use sortie_client::protocol::command::exec::Exec;
use sortie_client::protocol::command::file_write::FileWrite;
use sortie_tests::for_each_kind;
use sortie_tests::host::{Kind, Lab};

/// In input, contents and variables of commands.
const SECRET: &str = "S3cret-of-deploy";

/// Makes what might be in the way, then looks and grabs, over and over. The pattern does not match itself.
const MALLORY: &str = r#"#!/bin/sh
cd /var/tmp/loot || exit 1
for directory in /tmp /var/tmp /dev/shm; do
    mkdir -m 777 $directory/.sortie
    ln -s /etc/passwd $directory/.sortie-00000000000000000000000000000000
done
while :; do
    for found in /tmp/.sortie-?* /var/tmp/.sortie-?* /dev/shm/.sortie-?* /run/user/*/.sortie-?*; do
        case $found in *0000000000|*\*) continue;; esac
        ls "$found" && echo "listed $found" >> got
        cat "$found/r" > /dev/null && echo "read $found" >> got
        cp /bin/true "$found/r" && echo "replaced $found" >> got
        mv "$found" "$found-mine" && echo "moved $found" >> got
    done
    cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | grep -a 'S[3]cret-of-deploy' >> got
    echo look >> looks
done 2> /dev/null
"#;

async fn a_local_user_can_neither_prepare_nor_watch_nor_replace_anything(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).file("/usr/local/bin/mallory", MALLORY, 0o755).start().await?;
    host.add_user("deploy", None).await?;
    host.add_user("mallory", None).await?;
    let begin = "install -d -o mallory /var/tmp/loot; systemd-run --quiet --unit=mallory --uid=mallory /usr/local/bin/mallory
        until test -s /var/tmp/loot/looks; do sleep 0.1; done";
    host.sh(begin).await?.fine()?;
    let access = host.access("deploy");
    let mut digest = String::new();
    for n in 0..3 {
        let session = connect(&access).await?;
        digest.clone_from(&session.ready().sha256);
        let looks = "wc -l < /var/tmp/loot/looks";
        let until_seen = format!(
            "cat > /dev/null; n=$({looks}); until test $({looks}) -gt $((n + 2)); do sleep 0.1; done"
        );
        let mut exec = Exec::shell(&until_seen);
        exec.stdin = Some(Secret::new(SECRET.into()));
        exec.env.insert("PASSWORD".into(), SECRET.into());
        let done = session.run(exec).await?;
        ensure!(done.result.exit_code == 0, "{done:?}");
        let write = FileWrite { create: true, ..FileWrite::new(format!("/home/deploy/{n}")).content(SECRET) };
        session.run(write).await?;
        session.close().await?;
    }
    // A runner of the user's own where one is kept, under the right name.
    let plant = format!(
        "install -d -o deploy -m 777 /home/deploy/.cache /home/deploy/.cache/sortie; f=/home/deploy/.cache/sortie/{digest}
         printf '#!/bin/sh\\n: > /var/tmp/loot/ran\\n' > $f; chmod 755 $f; chown mallory $f"
    );
    host.sh(&plant).await?.fine()?;
    let session = builder(&access)?.cache(true).connect(&target(&access)?).await?;
    ensure!(session.ready().sha256 == digest);
    session.close().await?;
    let loot =
        host.sh("systemctl stop mallory; cd /var/tmp/loot; ls -I looks -I got; cat got").await?.fine()?;
    assert_eq!(loot, "", "this was got");
    ensure!(
        host.sh("stat -c %a /home/deploy/0; cat /etc/passwd | head -n 1")
            .await?
            .fine()?
            .contains("root:x:0:0")
    );
    Ok(())
}

for_each_kind!(a_local_user_can_neither_prepare_nor_watch_nor_replace_anything: Debian12);
