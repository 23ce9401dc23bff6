//! The kit's snapshots of hosts: that a change of any kind is seen, and that nothing is seen where nothing is changed.

use anyhow::{Context as _, Result};
use sortie_tests::for_each_kind;
use sortie_tests::host::{Kind, Lab};

for_each_kind!(a_host_that_is_only_logged_in_to_is_the_same: Debian11, Debian12, Debian13, OpenRc, Busybox, Dnf4, Dnf5, Zypper, Pacman, Arm64);
async fn a_host_that_is_only_logged_in_to_is_the_same(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let before = host.snapshot()?;
    for path in ["/etc/passwd", "/tmp", "/root/.ssh/authorized_keys", "/var/log"] {
        assert!(before.contains(path), "{path} is not among its {} paths", before.len());
    }
    let output = host.access("root").ssh().arg("cat /etc/passwd; ls -lR /etc /root /tmp").output()?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(before.difference(&host.snapshot()?), "");
    Ok(())
}

for_each_kind!(a_snapshot_tells_every_kind_of_change: Busybox);
async fn a_snapshot_tells_every_kind_of_change(kind: Kind) -> Result<()> {
    /// What is there, what is done to it, and the beginning of every line that tells of it.
    const CASES: &[(&str, &str, &[&str])] = &[
        ("echo old > f", "echo new > f", &["f: content 4 bytes "]),
        // Same size, and its time set back.
        (
            "echo old > f",
            "touch -r f r; echo new > f; touch -r r f; rm r",
            &[": modified ", "f: content 4 bytes "],
        ),
        (
            "echo old > f",
            "echo old > n; chmod 644 n; touch -r f n; mv n f",
            &[": modified ", "f: inode changed "],
        ),
        ("echo old > f", "chmod 4755 f", &["f: mode 0644 -> 4755; "]),
        ("echo old > f", "chown 1 f", &["f: owner 0 -> 1; "]),
        ("echo old > f", "chown 0:7 f", &["f: group 0 -> 7; "]),
        ("echo old > f", "touch f", &["f: modified "]),
        ("ln -s old l", "ln -sfn new l", &[": modified ", "l: content old -> new; "]),
        (
            "echo x > f",
            "ln f g",
            &[": modified ", "f: inode changed ", "g: nothing -> file 0644 0:0 2 bytes "],
        ),
        ("echo x > f", "rm f", &[": modified ", "f: file 0644 0:0 2 bytes "]),
        ("echo x > f", "rm f; mkdir f", &[": modified ", "f: type file -> directory; mode 0644 -> 0755; "]),
        ("mkdir d", "mkdir -m 1700 d/e", &["d: modified ", "d/e: nothing -> directory 1700 0:0"]),
        ("mkdir -p d/e", "chmod 2755 d/e", &["d/e: mode 0755 -> 2755"]),
        ("true", "mkfifo p", &[": modified ", "p: nothing -> fifo 0644 0:0"]),
        ("true", "mknod z c 1 5", &[": modified ", "z: nothing -> character device 0644 0:0 1:5"]),
    ];
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    let run =
        async |script: &str| host.sh(&format!("set -e; umask 022; cd /srv/kit; {script}")).await?.fine();
    for (before, done, lines) in CASES {
        host.sh("rm -rf /srv/kit && mkdir -p /srv/kit").await?.fine()?;
        run(before).await?;
        let was = host.snapshot()?;
        run(done).await?;
        let changes = was.changes(&host.snapshot()?);
        let told: Vec<String> = changes
            .iter()
            .map(|change| {
                let name = change.path.strip_prefix("/srv/kit").with_context(|| change.to_string())?;
                Ok(format!("{}: {}", name.display(), change.what))
            })
            .collect::<Result<_>>()?;
        let fits =
            told.len() == lines.len() && told.iter().zip(*lines).all(|(is, line)| is.starts_with(line));
        assert!(fits, "{done}: {told:#?}");
    }
    Ok(())
}

for_each_kind!(a_snapshot_tells_of_extended_attributes: Busybox);
async fn a_snapshot_tells_of_extended_attributes(kind: Kind) -> Result<()> {
    let lab = Lab::start().await?;
    let host = lab.host(kind).start().await?;
    host.write("/etc/kit", "x", 0o644).await?;
    let was = host.snapshot()?;
    let path = std::ffi::CString::new(host.path("/etc/kit")?.into_os_string().into_encoded_bytes())?;
    // SAFETY: path and name end with NUL, and the value is as long as is said.
    let set =
        unsafe { nix::libc::setxattr(path.as_ptr(), c"user.kit".as_ptr(), c"v\n".as_ptr().cast(), 2, 0) };
    nix::errno::Errno::result(set)?;
    let told = was.difference(&host.snapshot()?);
    assert!(told.starts_with("/etc/kit: inode changed ") && told.lines().count() == 1, "{told}");
    assert!(told.ends_with("; attribute user.kit nothing -> \"v\\n\"\n"), "{told}");
    Ok(())
}
