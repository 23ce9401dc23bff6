//! What the managers' tables share, and the grammar of requests.

use proptest::prelude::*;
use sortie_protocol::command::pkg_ensure::PkgEnsure;

use super::request::{Request, is_version};
use super::*;

#[test]
fn lines_that_count_are_read() {
    let step = |message: &str, current, total| {
        Some(Step { message: message.to_owned(), current, total, unit: "steps" })
    };
    assert_eq!(
        counted("  Installing       : th-lib-1.0-1.noarch                    1/2 "),
        step("Installing : th-lib-1.0-1.noarch", 1, 2)
    );
    assert_eq!(
        counted("[3/4] Installing th-lib-0:1.0-1.noarch  100% |  32.6 KiB/s |"),
        step("Installing th-lib-0:1.0-1.noarch", 3, 4)
    );
    assert_eq!(
        counted("(2/2) Installing: th-hello-1.0-1.noarch [..done]"),
        step("Installing: th-hello-1.0-1.noarch", 2, 2)
    );
    assert_eq!(counted("(1/5) Installing libcurl (8.5.0-r0)"), step("Installing libcurl (8.5.0-r0)", 1, 5));
    for other in
        ["", "(", "Complete!", "Total size: 12 k", "[y/n/v/...? shows all options] (y): y", "see a/b"]
    {
        assert_eq!(counted(other), None, "{other:?}");
    }
}

fn field_of(params: PkgEnsure) -> Option<String> {
    let failure = Request::new(PkgEnsure { manager: params.manager.clone(), ..params }).err()?;
    (failure.code == ErrorCode::InvalidParams)
        .then(|| failure.message.split(':').next().unwrap_or_default().to_owned())
}

#[test]
fn each_field_has_its_own_grammar_and_the_error_names_it() {
    let good = || PkgEnsure::present(["curl"]);
    for (params, field) in [
        (PkgEnsure { state: "installed".into(), ..good() }, "state"),
        (PkgEnsure { state: String::new(), ..good() }, "state"),
        (PkgEnsure { name: String::new(), ..good() }, "name"),
        (PkgEnsure { names: vec!["b".into()], ..good() }, "names"),
        (good().manager("brew"), "manager"),
        (PkgEnsure::latest(["curl"]).version("1"), "version"),
        (PkgEnsure::present(["a", "b"]).version("1"), "version"),
        (PkgEnsure::present((0..1001).map(|n| format!("p{n}"))), "names"),
        (good().option("--"), "options"),
        (good().option("curl"), "options"),
        (good().option("-o\nx"), "options"),
    ] {
        assert_eq!(field_of(params.clone()).as_deref(), Some(field), "{params:?}");
    }
    for name in [
        "-y",
        "--purge",
        "a b",
        "a\nb",
        "a\0",
        "../a",
        "/etc/passwd",
        "a=1",
        "a/sid",
        "a*",
        "a?",
        "[a]",
        "@core",
        "a:",
        ":i386",
        "a:b:c",
        ".a",
        "é",
        "a,b",
        "a>1",
    ] {
        assert_eq!(field_of(PkgEnsure::present([name])).as_deref(), Some("name"), "{name:?}");
        assert_eq!(field_of(PkgEnsure::present(["ok", name])).as_deref(), Some("names"), "{name:?}");
    }
    for version in ["-1", "1 2", "1*", "1/sid", "1\n", "../1", "1=2", "~1", "1;2", "1\0", "(1)"] {
        assert_eq!(field_of(good().version(version)).as_deref(), Some("version"), "{version:?}");
    }
}

#[test]
fn what_packages_are_called_is_accepted() {
    for name in [
        "g++",
        "libc6:i386",
        "python3.11",
        "a",
        "0ad",
        "libstdc++-12-dev",
        "gtk+2.0",
        "R-core",
        "NetworkManager",
        "x_y",
    ] {
        assert_eq!(field_of(PkgEnsure::present([name]).manager("apt")), None, "{name}");
    }
    for version in [
        "1",
        "1:2.3-4+deb12u1~bpo",
        "2.36-9+deb12u14",
        "32:9.16-1.el9",
        "1.0^git1",
        "1.36.1-r5",
        "1.0_rc2-r0",
    ] {
        assert!(is_version(version), "{version}");
    }
}

#[test]
fn options_that_lead_to_another_root_are_refused() {
    for (manager, options) in [
        (&apt::APT, &["-oDir::State=/x", "-odir=/x", "-oRootDir=/x", "--option=Dir::Etc=/x", "-c/x"][..]),
        (&rpm::DNF, &["--installroot=/x", "--installr=/x", "--setopt=installroot=/x"]),
        (&zypper::ZYPPER, &["--root=/x", "-R/x", "--installroot"]),
        (&pacman::PACMAN, &["--root", "--dbpath=/x", "-r/x", "-b/x", "--sysr"]),
        (&apk::APK, &["-p/x", "--root"]),
    ] {
        for option in options {
            assert!(request::moves_root(option, manager), "{}: {option}", manager.name);
        }
        for option in [
            "--no-install-recommends",
            "-oAPT::Install-Recommends=0",
            "--nogpgcheck",
            "-q",
            "--refresh",
            "--setopt=tsflags=nodocs",
        ] {
            assert!(!request::moves_root(option, manager), "{}: {option}", manager.name);
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_as_a_name_is_one_harmless_word(name in "\\PC{0,12}|[a-z:+.\\-/ \\n\\x00*=~]{0,8}") {
        if field_of(PkgEnsure::present([name.as_str()])).is_none() {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+._-:".contains(&byte)));
            prop_assert!(name.as_bytes()[0].is_ascii_alphanumeric());
        }
    }

    #[test]
    fn whatever_is_accepted_as_a_version_is_one_harmless_word(version in "\\PC{0,12}|[0-9a-z:+.~^\\-/ \\n\\x00*=\"']{0,8}") {
        if is_version(&version) {
            prop_assert!(version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+~:^_-".contains(&byte)));
            prop_assert!(version.as_bytes()[0].is_ascii_alphanumeric());
        }
    }

    #[test]
    fn no_output_of_a_manager_stops_a_reader(text in "(\\PC|[ :|<>=\"/()\\[\\]\\n.-]|Installing:|to-|solvable |pmstatus:|-r){0,60}") {
        for manager in MANAGERS {
            (manager.read_installed)(&text);
            (manager.read_available)(&text);
            (manager.read_plan)(&text, false);
            text.lines().for_each(|line| drop((manager.progress)(line)));
        }
    }
}
