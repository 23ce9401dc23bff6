//! Listings as GNU tar, busybox and unzip print them, and what hostile archives make them print.

use proptest::prelude::*;

use super::*;

fn fine() -> Result<(), Failure> {
    Ok(())
}

/// The listing of an archive with one member a line, checked.
fn tar(long: &[&str], names: &[&str]) -> Result<Listing, Failure> {
    let mut listing = Listing::default();
    names.iter().for_each(|name| listing.name(name.as_bytes(), false));
    long.iter().for_each(|line| listing.tar_line(line.as_bytes()));
    listing.check(&fine)?;
    Ok(listing)
}

#[test]
fn what_gnu_and_busybox_list_is_understood() {
    let gnu = [
        "drwxr-xr-x root/root         0 2026-11-21 16:36 ./top/",
        "-rw-r--r-- 1000/1000         2 2026-11-21 16:36 ./top/h",
        "lrwxrwxrwx root/root         0 2026-11-21 16:36 ./top/l -> h",
        "hrw-r--r-- root/root         0 2026-11-21 16:36 ./top/a b link to ./top/h",
    ];
    let names = ["./top/", "./top/h", "./top/l", "./top/a b"];
    let listing = tar(&gnu, &names).unwrap();
    let members: Vec<_> =
        listing.members().map(|(name, directory)| (components(name).count(), directory)).collect();
    assert_eq!(members, [(1, true), (2, false), (2, false), (2, false)]);
    let busybox = gnu.map(|line| line.replace(" link to ", " -> ").replacen('h', "-", 1));
    let busybox = [gnu[0], gnu[1], gnu[2], &busybox[3]];
    assert!(tar(&busybox, &names).is_ok());
}

#[test]
fn what_would_end_up_elsewhere_is_refused() {
    for (long, name, why) in [
        ("-rw-r--r-- r/r 2 2026-11-21 16:36 /etc/x", "/etc/x", "absolute"),
        ("-rw-r--r-- r/r 2 2026-11-21 16:36 ../x", "../x", "leave the directory"),
        ("-rw-r--r-- r/r 2 2026-11-21 16:36 a/../../x", "a/../../x", "leave the directory"),
        ("-rw-r--r-- r/r 2 2026-11-21 16:36 a/..", "a/..", "leave the directory"),
        ("crw-r--r-- r/r 1,3 2026-11-21 16:36 null", "null", "no file, directory or link"),
        ("brw-r--r-- r/r 8,0 2026-11-21 16:36 sda", "sda", "no file, directory or link"),
        ("prw-r--r-- r/r 0 2026-11-21 16:36 fifo", "fifo", "no file, directory or link"),
        ("?rw-r--r-- r/r 0 2026-11-21 16:36 odd", "odd", "no file, directory or link"),
        ("", "nothing", "no file, directory or link"),
        ("lrwxrwxrwx r/r 0 2026-11-21 16:36 l -> /etc", "l", "symbolic link out"),
        ("lrwxrwxrwx r/r 0 2026-11-21 16:36 l -> ..", "l", "symbolic link out"),
        ("lrwxrwxrwx r/r 0 2026-11-21 16:36 a/l -> ../..", "a/l", "symbolic link out"),
        ("lrwxrwxrwx r/r 0 2026-11-21 16:36 a/l -> b/../../..", "a/l", "symbolic link out"),
        ("hrw-r--r-- r/r 0 2026-11-21 16:36 h link to /etc/shadow", "h", "hard link out"),
        ("-rw-r--r-- r/r 0 2026-11-21 16:36 h -> ../etc/shadow", "h", "hard link out"),
        ("-rw-r--r-- a -> b/r 0 2026-11-21 16:36 h -> /etc/shadow", "h", "no file, directory or link"),
    ] {
        let failure = tar(&[long], &[name]).err().unwrap();
        assert_eq!(failure.code, ErrorCode::ValidationFailed);
        assert!(
            failure.message.contains(why) && failure.message.contains("nothing was unpacked"),
            "{}",
            failure.message
        );
    }
    let link = "lrwxrwxrwx r/r 0 2026-11-21 16:36 a/l -> b";
    let file = "-rw-r--r-- r/r 0 2026-11-21 16:36 a/l/x";
    for (long, names) in [([link, file], ["a/l", "./a//l/x"]), ([file, link], ["a/l/x", "a/l"])] {
        assert!(tar(&long, &names).err().unwrap().message.contains("below a symbolic link"));
    }
    let hard = "hrw-r--r-- r/r 0 2026-11-21 16:36 h link to a/l/shadow";
    assert!(tar(&[link, hard], &["a/l", "h"]).err().unwrap().message.contains("below a symbolic link"));
    // A name or an owner with a line's end in it.
    assert!(tar(&["-rw-r--r-- r", "/r 0 2026-11-21 16:36 a"], &["a"]).is_err());
    assert!(tar(&[file], &["a", "b"]).is_err());
    let long = "x/".repeat(101) + "y";
    assert!(tar(&[&format!("-rw-r--r-- r/r 0 2026-11-21 16:36 {long}")], &[&long]).is_err());
    let cut = "x".repeat(4096);
    assert!(tar(&["-rw"], &[&cut]).is_err());
}

#[test]
fn what_unzip_lists_is_understood_and_checked() {
    let mut listing = Listing::default();
    for line in ["        0  2026-11-21 16:36   top/", "        2  11-21-2026 16:36   top/  a b"] {
        listing.zip_line(line.as_bytes());
    }
    listing.check(&fine).unwrap();
    let members: Vec<_> = listing.members().collect();
    assert_eq!(members, [(&b"top/"[..], true), (b"top/  a b", false)]);
    for line in [
        "        2  2026-11-21 16:36   ../x",
        "        2  2026-11-21 16:36   /x",
        "        2  2026-11-21 16:36   a\\..\\..\\x",
        "        2  2026-11-21 16:36   ",
        "---------                     -------",
        "Archive:  x.zip",
        "",
    ] {
        let mut listing = Listing::default();
        listing.zip_line(line.as_bytes());
        assert!(listing.check(&fine).is_err(), "{line}");
    }
}

#[test]
fn archives_are_known_by_their_first_bytes() {
    let mut ustar = vec![0; 512];
    ustar[257..262].copy_from_slice(b"ustar");
    assert_eq!(Kind::of(&ustar), Some(Kind::Tar("", "")));
    assert_eq!(Kind::of(b"PK\x03\x04"), Some(Kind::Zip));
    assert_eq!(Kind::of(&[0x28, 0xb5, 0x2f, 0xfd, 0]), Some(Kind::Tar("--zstd", "zstd")));
    assert_eq!(Kind::of(b""), None);
    assert_eq!(Kind::of(&[0; 512]), None);
}

proptest! {
    /// Whatever links are let through, following them as the kernel does never leads out.
    #[test]
    fn no_link_that_is_let_through_leads_out(targets in proptest::collection::vec("(\\.\\./){0,3}[abc./]{0,4}", 3), depth in 0usize..2) {
        // The links a, b and c are in one directory, `depth` below the top.
        let links: Vec<Option<&String>> = targets.iter().map(|t| Some(t).filter(|t| !link_leaves(depth, t.as_bytes()))).collect();
        for start in links.iter().flatten() {
            let mut here = depth as i64;
            let mut rest: Vec<String> = start.split('/').rev().map(str::to_owned).collect();
            for _ in 0..200 {
                let Some(part) = rest.pop() else { break };
                match part.as_str() {
                    "" | "." => {}
                    ".." => here -= 1,
                    name => {
                        let link = ["a", "b", "c"].iter().position(|n| *n == name).and_then(|at| links[at]);
                        match link.filter(|_| here == depth as i64) {
                            Some(target) => rest.extend(target.split('/').rev().map(str::to_owned)),
                            None => here += 1,
                        }
                    }
                }
                prop_assert!(here >= 0, "{start} leads out by {targets:?}");
            }
        }
    }
}
