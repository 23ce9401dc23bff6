//! What is refused, what is written, and that a reader of sudoers(5) finds in it what was asked for.

use super::*;
use proptest::prelude::*;

fn rule(params: &SudoersEnsure) -> String {
    let text = text(params).unwrap();
    text.strip_prefix(HEADER).unwrap().to_owned()
}

fn present(user: &str) -> SudoersEnsure {
    SudoersEnsure::present(user)
}

#[test]
fn the_shapes_of_rules_have_exactly_these_bytes() {
    let one = || present("deploy").command("/usr/bin/id");
    for (params, expected) in [
        (present("deploy"), "deploy ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("deploy").command("ALL"), "deploy ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("deploy").password(true), "deploy ALL=(ALL:ALL) ALL\n"),
        (one(), "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id\n"),
        (
            one().command("/bin/systemctl restart nginx"),
            "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id, /bin/systemctl restart nginx\n",
        ),
        (one().command("/bin/id \"\""), "deploy ALL=(ALL:ALL) NOPASSWD: /usr/bin/id, /bin/id \"\"\n"),
        (present("deploy").command("/opt/tools/"), "deploy ALL=(ALL:ALL) NOPASSWD: /opt/tools/\n"),
        (one().runas_user("postgres"), "deploy ALL=(postgres) NOPASSWD: /usr/bin/id\n"),
        (one().runas_group("adm"), "deploy ALL=(:adm) NOPASSWD: /usr/bin/id\n"),
        (one().runas_user("#100").runas_group("ALL"), "deploy ALL=(#100:ALL) NOPASSWD: /usr/bin/id\n"),
        (one().host("web-1.example.com"), "deploy web-1.example.com=(ALL:ALL) NOPASSWD: /usr/bin/id\n"),
        (one().host("192.0.2.0/24"), "deploy 192.0.2.0/24=(ALL:ALL) NOPASSWD: /usr/bin/id\n"),
        (
            SudoersEnsure { setenv: true, noexec: true, ..one() },
            "deploy ALL=(ALL:ALL) NOPASSWD: SETENV: NOEXEC: /usr/bin/id\n",
        ),
        (present("jane.doe"), "jane.doe ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("%wheel"), "%wheel ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("%domain admins"), "%domain\\ admins ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("#1000"), "#1000 ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("%#1000"), "%#1000 ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("EXAMPLE\\jane"), "EXAMPLE\\\\jane ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("jane@example.com"), "jane\\@example.com ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        // Would be an alias, an address, a keyword.
        (present("ADMIN"), "\\ADMIN ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("192.0.2.1"), "\\192.0.2.1 ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        (present("Defaults"), "\\Defaults ALL=(ALL:ALL) NOPASSWD: ALL\n"),
    ] {
        assert_eq!(rule(&params), expected);
    }
}

#[test]
fn special_characters_of_arguments_are_escaped() {
    let command = |text: &str| rule(&present("u").command(text));
    assert_eq!(command("/bin/a b,c:d=e#f"), "u ALL=(ALL:ALL) NOPASSWD: /bin/a b\\,c\\:d\\=e\\#f\n");
    assert_eq!(command("/bin/a,b x\\y"), "u ALL=(ALL:ALL) NOPASSWD: /bin/a\\,b x\\\\\\\\y\n");
    assert_eq!(command("/bin/a   b  "), "u ALL=(ALL:ALL) NOPASSWD: /bin/a b\n");
    let patterns = SudoersEnsure { wildcards: true, ..present("u").command("/bin/a* [a-z]?") };
    assert_eq!(rule(&patterns), "u ALL=(ALL:ALL) NOPASSWD: /bin/a* [a-z]?\n");
}

#[test]
fn what_is_outside_its_grammar_is_refused_with_the_name_of_the_field() {
    let fine = || present("deploy").command("/bin/id");
    let refused = |params: &SudoersEnsure, field: &str| {
        let failure = text(params).expect_err(&format!("{params:?}"));
        assert_eq!(failure.code, sortie_protocol::ErrorCode::InvalidParams);
        assert!(failure.message.starts_with(field), "{}", failure.message);
    };
    let long = "x".repeat(81);
    for bad in [
        "",
        "%",
        "#",
        "-x",
        ".x",
        "x\ny",
        "x\0",
        "x/../y",
        "../x",
        "x y\t",
        "x,y",
        "x:y",
        "x=y",
        "x!",
        "(x)",
        "ALL",
        "%ALL",
        "+net",
        "%:nonunix",
        "#x",
        "#4294967295",
        "#-1",
        "#+1",
        "%%x",
        "x ",
        " x",
        "x\\",
        "jän",
        "\"x\"",
        "#99999999999",
        &long,
    ] {
        refused(&present(bad), "user");
        if !matches!(bad, "" | "ALL") {
            refused(&fine().runas_user(bad), "runas_user");
            refused(&fine().runas_group(bad), "runas_group");
            refused(&fine().runas_user("root").runas_group(bad), "runas_group");
        }
    }
    refused(&fine().runas_user("%wheel"), "runas_user");
    for bad in [
        "-x",
        "a b",
        "a\nb",
        "*",
        "!a",
        "a,b",
        "a..b",
        ".a",
        "a.",
        "1.2.3",
        "1.2.3.256",
        "1.2.3.4/33",
        "1.2.3.4/",
        "a/8",
        "1.2.3.4/255.0.0.0",
        "+net",
        "a.-b",
        "::1",
        "01234.1.1.1",
        &long.repeat(4),
    ] {
        refused(&fine().host(bad), "host");
    }
    for bad in [
        "",
        "id",
        "./id",
        "-u",
        "ALL, /bin/sh",
        "!/bin/sh",
        "/bin/../sh",
        "/..",
        "/bin/a\n",
        "/bin/a b\nc",
        "/bin/a\0",
        "/bin/a\tb",
        "/bin/a\u{7f}",
        "/bin/a\u{85}",
        "/bin/*",
        "/bin/a ?",
        "/bin/a [",
        "/bin/a \"b\"",
        "/bin/a \"\" b",
        "/bin/\"a\"",
        "/bin/a\\b",
        "/bin/a ^x$",
        "/bin/ x",
        "/bin/a ../x",
        "/bin/a x/..",
        " /bin/a",
        "sudoedit /x",
        "ALL",
    ] {
        refused(&fine().command(bad), "commands[1]");
    }
}

#[test]
fn names_of_files_are_read_by_sudo() {
    assert_eq!(file_name("deploy"), "sortie-deploy");
    assert_eq!(file_name("jane.doe"), "sortie-jane%2Edoe");
    assert_eq!(file_name("%wheel"), "sortie-%25wheel");
    assert_eq!(file_name("x~"), "sortie-x%7E");
}

/// Reads a rule as sudoers(5) describes it: words end where an unescaped special character stands.
fn read(rule: &str) -> (Vec<String>, Vec<String>) {
    let mut rest = rule.strip_suffix('\n').unwrap().chars().peekable();
    let mut take = |ends: &[char], strip: bool| {
        let mut word = String::new();
        while let Some(c) = rest.next_if(|c| !ends.contains(c)) {
            if c == '\\' {
                let escaped = rest.next().unwrap();
                if !strip {
                    word.push(c);
                }
                word.push(escaped);
            } else {
                word.push(c);
            }
        }
        rest.next();
        word
    };
    let mut words = vec![take(&[' '], true), take(&['='], true)];
    assert_eq!(take(&['('], true), "");
    let runas = take(&[')'], false);
    let (user, group) = runas.split_once(':').unwrap_or((&runas, ""));
    words.extend([user, group].map(|word| word.replace('\\', "")));
    assert_eq!(take(&[' '], true), "");
    let mut commands = Vec::new();
    loop {
        let command = take(&[','], true);
        if command.is_empty() {
            return (words, commands);
        }
        commands.push(command.trim_start().to_owned());
    }
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_][a-z0-9_.-]{0,12}[a-z0-9]",
        "[A-Z_0-9.]{1,8}",
        "[ -~]{0,6}",
        "\\PC{0,4}",
        "[a-zA-Z]{1,4}[@\\\\,:= \n\t!#%()\"*-]{0,2}[a-z]{0,3}",
    ]
}

fn command() -> impl Strategy<Value = String> {
    prop_oneof!["/[a-z/,:=#]{1,12}( [a-z0-9,:=#\\\\'!$(){}~@+-]{1,5}){0,3}", "/[ -~]{0,12}", "[ -~\n\0]{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_passes_is_read_back_as_the_tokens_that_were_asked_for(
        user in token(), host in token(), runas_user in token(), runas_group in token(),
        commands in proptest::collection::vec(command(), 0..4),
    ) {
        // Each by itself, so that one that is refused does not hide the others.
        for params in [
            present(&user),
            present("u").host(&host),
            present("u").runas_user(&runas_user),
            present("u").runas_user(&runas_user).runas_group(&runas_group),
            SudoersEnsure { commands: commands.clone(), no_passwd: false, ..present("u") },
        ] {
            let Ok(text) = text(&params) else { continue };
            prop_assert_eq!(text.lines().count(), 2);
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
            let (words, written) = read(text.strip_prefix(HEADER).unwrap());
            let or_all = |text: &str| if text.is_empty() { "ALL".to_owned() } else { text.to_owned() };
            prop_assert_eq!(&words[0], &params.user);
            prop_assert_eq!(&words[1], &or_all(&params.host));
            if !params.runas_user.is_empty() {
                prop_assert_eq!(&words[2], &params.runas_user.replace('\\', ""));
                prop_assert_eq!(&words[3], &params.runas_group.replace('\\', ""));
            }
            if !params.no_passwd && !params.commands.is_empty() {
                let asked: Vec<String> = params.commands.iter().map(|command| {
                    // One backslash is left for fnmatch(3); runs of spaces are one.
                    let words: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).collect();
                    words.join(" ").replace('\\', "\\\\")
                }).collect();
                prop_assert_eq!(written, asked);
            }
        }
    }

    #[test]
    fn different_users_have_different_files_that_sudo_reads(a in "\\PC{0,8}", b in "\\PC{0,8}") {
        let (x, y) = (file_name(&a), file_name(&b));
        prop_assert_eq!(a == b, x == y);
        prop_assert!(!x.contains(['.', '/', '\0']) && !x.ends_with('~'));
    }
}
