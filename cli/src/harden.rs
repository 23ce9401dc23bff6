//! `sortie harden`: settings of the hosts' SSH servers that are in force afterwards.

use sortie_client::protocol::command::sshd_harden::SshdHarden;
use sortie_client::protocol::message::Strings;

use crate::ensure::{self, Where};
use crate::outcome::usage;
use crate::report::Done;

#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// No passwords: PasswordAuthentication and KbdInteractiveAuthentication no
    #[arg(long)]
    disable_password_auth: bool,
    /// PermitRootLogin no
    #[arg(long)]
    disable_root_login: bool,
    /// AllowUsers, the whole list: user or user@host with * and ?; may be repeated
    #[arg(long = "allow-user", value_name = "USER,…", value_delimiter = ',')]
    allow_users: Vec<String>,
    /// Listen on this port alone
    #[arg(long = "listen-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    listen_port: Option<u16>,
    /// Any other setting of sshd_config(5), such as MaxAuthTries=3; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// A set of settings; what else is asked for comes before it
    #[arg(long, value_name = "PROFILE", value_parser = ["ssh-baseline"])]
    profile: Option<String>,
    /// Take everything back unless a new login works within so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    confirm: Option<u64>,
    /// keep: leave Match blocks that say something else
    #[arg(long = "match", value_name = "WHAT", value_parser = ["keep"])]
    matches: Option<String>,
    /// Do it even if it locks out the login that Sortie came by
    #[arg(long)]
    force: bool,
    /// Have sshd check its configuration, and wait for its banner on every port; every change does so anyway
    #[arg(long)]
    test_connection: bool,
}

const AFTER_HELP: &str = "\
Examples
  sortie harden -H web1 --become --disable-password-auth --confirm 30
  sortie harden -H web1 --set MaxAuthTries=3 --allow-user deploy --check --diff";

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write KEY=VALUE, such as MaxAuthTries=3".into()),
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let mut settings = Strings::new();
    for (key, value) in arguments.settings {
        if settings.insert(key.clone(), value).is_some() {
            return Err(usage(format!("--set {key} is there twice")));
        }
    }
    let command = SshdHarden {
        disable_password_auth: arguments.disable_password_auth,
        disable_root_login: arguments.disable_root_login,
        allow_users: arguments.allow_users,
        port: arguments.listen_port.unwrap_or_default(),
        settings,
        profile: arguments.profile.unwrap_or_default(),
        test_connection: arguments.test_connection,
        confirm: arguments.confirm,
        r#match: arguments.matches.unwrap_or_default(),
        force: arguments.force,
    };
    if command == (SshdHarden { confirm: command.confirm, force: command.force, ..SshdHarden::default() }) {
        return Err(usage("nothing is asked for; --help lists what can be"));
    }
    ensure::run_when(&arguments.place, command.confirm.is_some(), vec![command], |_, check, result| {
        Done::Harden { check, result: Box::new(result) }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_split_at_the_first_equals_sign() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(setting("MaxAuthTries=3"), pair("MaxAuthTries", "3"));
        assert_eq!(setting("ForceCommand = a=b"), pair("ForceCommand", "a=b"));
        assert!(setting("MaxAuthTries").is_err() && setting("=3").is_err());
    }
}
