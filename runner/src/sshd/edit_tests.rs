use proptest::prelude::*;

use super::super::config::tests::read;
use super::*;

fn wanted(name: &str, value: &str) -> Wanted {
    Wanted { name: name.into(), value: value.into(), keywords: vec![name.to_ascii_lowercase()] }
}

/// The texts of the files that changed.
fn planned(files: &[(&str, &str)], wants: &[Wanted], home: Home) -> Vec<(String, String)> {
    let config = read(files);
    plan(&config, wants, home)
        .into_iter()
        .map(|(file, text)| (config.files[file].path.display().to_string(), String::from_utf8(text).unwrap()))
        .collect()
}

fn changed(path: &str, text: &str) -> (String, String) {
    (path.to_owned(), text.to_owned())
}

#[test]
fn a_drop_in_of_ours_overrules_a_cloud_images_own_which_stays_as_it_is() {
    let files = [
        ("/m", "Include /d/*.conf\nPasswordAuthentication yes\n"),
        ("/d/00-sortie.conf", ""),
        ("/d/50-cloud-init.conf", "PasswordAuthentication yes\n"),
    ];
    let wants = [wanted("PasswordAuthentication", "no")];
    assert_eq!(
        planned(&files, &wants, Home::DropIn(1)),
        [changed("/d/00-sortie.conf", "PasswordAuthentication no\n")]
    );
}

#[test]
fn what_is_read_before_the_drop_in_is_changed_where_it_stands() {
    let files = [
        ("/m", "# mine\n  permitrootlogin = yes # why\nInclude /d/*.conf\nHostKey /a\nHostKey /b\n"),
        ("/d/00-sortie.conf", "MaxAuthTries 6\n"),
    ];
    let wants = [wanted("PermitRootLogin", "no"), wanted("MaxAuthTries", "3")];
    assert_eq!(
        planned(&files, &wants, Home::DropIn(1)),
        [
            changed(
                "/m",
                "# mine\n  permitrootlogin = no # why\nInclude /d/*.conf\nHostKey /a\nHostKey /b\n"
            ),
            changed("/d/00-sortie.conf", "MaxAuthTries 3\n"),
        ]
    );
}

#[test]
fn without_a_drop_in_new_lines_stand_before_the_first_match_block() {
    let files = [("/m", "#PermitRootLogin no\nUsePAM yes\nMatch User a\n  X11Forwarding no\n")];
    assert_eq!(
        planned(&files, &[wanted("PermitRootLogin", "no")], Home::Main),
        [changed(
            "/m",
            "#PermitRootLogin no\nUsePAM yes\nPermitRootLogin no\nMatch User a\n  X11Forwarding no\n"
        )]
    );
    let files = [("/m", "UsePAM yes")];
    assert_eq!(
        planned(&files, &[wanted("PermitRootLogin", "no")], Home::Main),
        [changed("/m", "UsePAM yes\nPermitRootLogin no\n")]
    );
}

#[test]
fn lines_that_add_up_become_one_where_the_first_stands() {
    let files = [
        ("/m", "Include /d/*.conf\nPort 22\nAllowUsers c\nMatch all\nAllowUsers d\n"),
        ("/d/00-sortie.conf", ""),
        ("/d/a.conf", "Port 2222\n\tAllowUsers a b\n"),
    ];
    let wants = [wanted("Port", "2200"), wanted("AllowUsers", "deploy")];
    assert_eq!(
        planned(&files, &wants, Home::DropIn(1)),
        [
            changed("/m", "Include /d/*.conf\nMatch all\nAllowUsers d\n"),
            changed("/d/a.conf", "Port 2200\n\tAllowUsers deploy\n"),
        ]
    );
}

#[test]
fn addresses_that_name_a_port_move_with_it() {
    let files = [(
        "/m",
        "Port 22\nListenAddress 10.0.0.1:22\nListenAddress 10.0.0.1:2222\nListenAddress [::1]:22\nListenAddress ::2\n",
    )];
    assert_eq!(
        planned(&files, &[wanted("Port", "2200")], Home::Main),
        [changed(
            "/m",
            "Port 2200\nListenAddress 10.0.0.1:2200\nListenAddress [::1]:2200\nListenAddress ::2\n"
        )]
    );
}

#[test]
fn bytes_that_are_no_text_stay() {
    let mut config = read(&[("/m", "Port 1\n")]);
    config.files[0].text = Some(b"# caf\xe9\nPort 22\nBanner /\xff # x\n".to_vec());
    let text = config.files[0].text.clone().unwrap();
    let mut again = Source(text);
    let Ok(config) = Config::read(std::path::Path::new("/m"), &mut again);
    let new = plan(&config, &[wanted("Port", "23"), wanted("Banner", "none")], Home::Main);
    assert_eq!(new, [(0, b"# caf\xe9\nPort 23\nbanner none\n".to_vec())]);
}

struct Source(Vec<u8>);

impl super::super::config::Source for Source {
    type Error = std::convert::Infallible;
    fn read(&mut self, _: &std::path::Path) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(Some(self.0.clone()))
    }
    fn expand(&mut self, _: &str) -> Vec<std::path::PathBuf> {
        Vec::new()
    }
}

/// What counts outside of Match blocks: the first value, or all of a keyword that adds up.
fn effective(config: &Config, keyword: &str) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    for setting in config.global(&[keyword]) {
        values.extend(setting.said.arguments.iter().cloned());
        if !is_cumulative(keyword) {
            break;
        }
    }
    values
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("# PasswordAuthentication yes\n".to_owned()),
        Just("\n".to_owned()),
        "(HostKey|AcceptEnv|Subsystem) [a-z]{1,3}\n",
        "[ \t]{0,2}([Pp]ort|PORT)( |=)[1-9]{1,3}( # x)?\n",
        "(PasswordAuthentication|passwordauthentication)[ \t=](yes|no)\n",
        "AllowUsers [a-z]{1,3}( [a-z]{1,3})?\n",
        "Match (User|Group) [a-z]{1,3}\n",
    ]
}

proptest! {
    #[test]
    fn what_is_wanted_counts_afterwards_and_nothing_else_changes(
        before in proptest::collection::vec(line(), 0..8),
        after in proptest::collection::vec(line(), 0..8),
        ours in proptest::collection::vec(line(), 0..3),
        other in proptest::collection::vec(line(), 0..5),
        in_main in any::<bool>(),
    ) {
        // An Include inside a Match block includes for that block alone; here it stands before any.
        let before: Vec<String> = before.into_iter().filter(|line| !line.starts_with("Match")).collect();
        let main = format!("{}Include /d/*.conf\n{}", before.concat(), after.concat());
        let (ours, other) = (ours.concat(), other.concat());
        let files =
            [("/m", main.as_str()), ("/d/00-sortie.conf", ours.as_str()), ("/d/50-x.conf", other.as_str())];
        let config = read(&files);
        let wants =
            [wanted("PasswordAuthentication", "no"), wanted("Port", "2200"), wanted("AllowUsers", "deploy www")];
        let home = if in_main { Home::Main } else { Home::DropIn(1) };
        let new = plan(&config, &wants, home);
        let text = |at: usize| {
            let changed = new.iter().find(|(file, _)| *file == at).map(|(_, text)| text.clone());
            String::from_utf8(changed.unwrap_or_else(|| files[at].1.as_bytes().to_vec())).unwrap()
        };
        let (new_main, new_ours, new_other) = (text(0), text(1), text(2));
        let result =
            read(&[("/m", &new_main), ("/d/00-sortie.conf", &new_ours), ("/d/50-x.conf", &new_other)]);
        // Where new lines go to the main file, a value in a file that it includes may come first: that one is changed.
        prop_assert_eq!(effective(&result, "passwordauthentication"), ["no"]);
        prop_assert_eq!(effective(&result, "port"), ["2200"]);
        prop_assert_eq!(effective(&result, "allowusers"), ["deploy", "www"]);
        let untouched = |config: &Config| -> Vec<(Vec<String>, bool)> {
            let concerned = ["port", "passwordauthentication", "allowusers"];
            config
                .settings
                .iter()
                .filter(|s| s.block.is_some() || !concerned.contains(&&*s.said.keyword))
                .map(|s| (s.said.arguments.clone(), s.block.is_some()))
                .collect()
        };
        prop_assert_eq!(untouched(&config), untouched(&result));
        prop_assert!(plan(&result, &wants, home).is_empty(), "a second time nothing is left to do");
    }
}
