//! TOKENS and environment variables of ssh_config(5), and `~`.

use std::path::PathBuf;

use sha1::{Digest as _, Sha1};

use super::trouble::{Checked, Trouble};
use super::world::World;

/// What stands for the tokens of ssh_config(5).
pub(crate) struct Tokens<'a> {
    /// `%h`: the host's name as it is connected to.
    pub(crate) host: &'a str,
    /// `%n`: the host's name as given.
    pub(crate) original: &'a str,
    /// `%k`: `HostKeyAlias`, or the host's name.
    pub(crate) alias: &'a str,
    /// `%p`.
    pub(crate) port: u16,
    /// `%r`: the user to log in as.
    pub(crate) user: Option<&'a str>,
    /// `%u`: the user of this machine.
    pub(crate) local_user: Option<&'a str>,
    /// `%d`: the home directory.
    pub(crate) home: Option<&'a std::path::Path>,
    /// `%j`: the host of `ProxyJump` that is passed last.
    pub(crate) jump: Option<&'a str>,
    /// For the others.
    pub(crate) world: &'a dyn World,
}

/// Which kinds of expansion a value takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expand {
    /// Tokens alone, for a shell command.
    Command,
    /// The tokens of `ProxyCommand`, which are fewer, for a shell command.
    Proxy,
    /// Tokens and `${NAME}`.
    TokensAndVariables,
}

impl Tokens<'_> {
    fn value(&self, token: char) -> Checked<String> {
        let missing = |what: &str| Trouble::Wrong(format!("%{token} is not known: {what}"));
        Ok(match token {
            'h' => self.host.to_owned(),
            'n' => self.original.to_owned(),
            'k' => self.alias.to_owned(),
            'p' => self.port.to_string(),
            'r' => self.user.ok_or_else(|| missing("nobody says as which user to log in"))?.to_owned(),
            'u' => self.local_user.ok_or_else(|| missing("this user has no name"))?.to_owned(),
            'i' => self.world.user_id().to_string(),
            'd' => self.home.ok_or_else(|| missing("HOME is not set"))?.display().to_string(),
            'l' => self.this_host()?,
            'L' => self.this_host()?.split('.').next().unwrap_or_default().to_owned(),
            'j' => self.jump.unwrap_or_default().to_owned(),
            'C' => {
                if self.jump.is_some() {
                    // Releases of ssh(1) differ in whether the jump host is part of it.
                    return Err(Trouble::CannotTell("%C of a host behind ProxyJump".into()));
                }
                let parts =
                    [self.this_host()?, self.host.to_owned(), self.port.to_string(), self.value('r')?];
                let digest = Sha1::digest(parts.concat());
                digest.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            _ => return Err(Trouble::CannotTell(format!("the token %{token}"))),
        })
    }

    fn this_host(&self) -> Checked<String> {
        self.world.host_name().ok_or_else(|| "the name of this machine is not known".into())
    }

    /// Replaces the tokens in `text`, and where it takes them `${…}`. What is put in is not looked at again.
    ///
    /// # Errors
    /// A token that is not known here, a lone `%`, a variable that is not set.
    pub(crate) fn expand(&self, text: &str, what: Expand) -> Checked<String> {
        let variable = |name: &str| match self.world.variable(name).map(std::ffi::OsString::into_string) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(format!("the variable {name} is not UTF-8").into()),
            None => Err(format!("the variable {name} is not set").into()),
        };
        let token = |token| {
            if what == Expand::Proxy && !"hnkpr".contains(token) {
                return Err(Trouble::CannotTell(format!("the token %{token}")));
            }
            let value = self.value(token)?;
            // The user comes from whoever names the target: a shell must not find more in it than a name. Hosts are
            // checked when they are read.
            if what != Expand::TokensAndVariables
                && token == 'r'
                && let Some(bad) = value.chars().find(|c| "'`\"$\\;&<>|(){}*?[]#~!".contains(*c))
            {
                return Err(format!("a user with {bad:?} is not put into a shell command").into());
            }
            Ok(value)
        };
        expand(text, token, (what == Expand::TokensAndVariables).then_some(&variable))
    }

    /// The path that `text` means: `~` first, so that nothing which is put in can be taken for one.
    ///
    /// # Errors
    /// Those of [`Tokens::expand`], and a home directory that is not known.
    pub(crate) fn path(&self, text: &str) -> Checked<PathBuf> {
        match self.home_and_rest(text)? {
            None => self.expand(text, Expand::TokensAndVariables).map(PathBuf::from),
            Some((home, rest)) => Ok(home.join(self.expand(rest, Expand::TokensAndVariables)?)),
        }
    }

    /// The path that `text` means, for keywords that take `~` alone.
    ///
    /// # Errors
    /// A home directory that is not known.
    pub(crate) fn home_path(&self, text: &str) -> Checked<PathBuf> {
        Ok(self.home_and_rest(text)?.map_or_else(|| text.into(), |(home, rest)| home.join(rest)))
    }

    fn home_and_rest<'t>(&self, text: &'t str) -> Checked<Option<(PathBuf, &'t str)>> {
        let Some(rest) = text.strip_prefix('~') else { return Ok(None) };
        let (user, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let home = if user.is_empty() {
            self.home
                .ok_or_else(|| format!("{text:?} needs a home directory, and HOME is not set"))?
                .to_owned()
        } else {
            self.world.home_of(user).ok_or_else(|| format!("{text:?}: no user {user} on this machine"))?
        };
        Ok(Some((home, rest.trim_start_matches('/'))))
    }
}

/// `%h` and `%%` in `HostName`, which takes no other.
pub(super) fn host_name(text: &str, host: &str) -> Checked<String> {
    let token = |token| match token {
        'h' => Ok(host.to_owned()),
        _ => Err(Trouble::CannotTell(format!("the token %{token}"))),
    };
    expand(text, token, None)
}

type Variable<'a> = &'a dyn Fn(&str) -> Checked<String>;

fn expand(
    text: &str,
    token: impl Fn(char) -> Checked<String>,
    variable: Option<Variable<'_>>,
) -> Checked<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let (Some(variable), Some(named)) = (variable, rest.strip_prefix("${")) {
            let (name, after) = named
                .split_once('}')
                .ok_or_else(|| format!("the {{ of a variable in {text:?} is never closed"))?;
            if name.is_empty() {
                return Err(format!("a variable in {text:?} has no name").into());
            }
            out.push_str(&variable(name)?);
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.chars().next() {
            Some('%') => out.push('%'),
            Some(name) => out.push_str(&token(name)?),
            None => return Err(format!("{text:?} ends in a lone %").into()),
        }
        rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::ThisMachine;
    use super::*;

    fn tokens(jump: Option<&'static str>) -> Tokens<'static> {
        Tokens {
            host: "web1.lan",
            original: "web1",
            alias: "alias",
            port: 2222,
            user: Some("deploy"),
            local_user: Some("me"),
            home: Some(Path::new("/home/me")),
            jump,
            world: &ThisMachine,
        }
    }

    #[test]
    fn every_token_has_its_value() {
        let text = tokens(Some("bastion")).expand("%h %n %k %p %r %u %d %j %% %%h", Expand::Command).unwrap();
        assert_eq!(text, "web1.lan web1 alias 2222 deploy me /home/me bastion % %h");
        let this = ThisMachine.host_name().unwrap();
        let short = this.split('.').next().unwrap();
        let text = tokens(None).expand("%l %L %i", Expand::Command).unwrap();
        assert_eq!(text, format!("{this} {short} {}", ThisMachine.user_id()));
        let hash = tokens(None).expand("%C", Expand::Command).unwrap();
        assert!(hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
    }

    #[test]
    fn what_is_put_in_is_not_expanded_again() {
        let expanded = Tokens { host: "%n${HOME}~", ..tokens(None) }.expand("%h", Expand::TokensAndVariables);
        assert_eq!(expanded.unwrap(), "%n${HOME}~");
        assert_eq!(Tokens { host: "~", ..tokens(None) }.path("%h/x").unwrap(), Path::new("~/x"));
    }

    #[test]
    fn a_home_is_put_in_for_a_tilde_at_the_beginning_alone() {
        let path = |text: &str| tokens(None).path(text).unwrap();
        assert_eq!(path("~/.ssh/%r"), Path::new("/home/me/.ssh/deploy"));
        assert_eq!(path("~"), Path::new("/home/me"));
        assert_eq!(path("~//x"), Path::new("/home/me/x"));
        assert_eq!(path("/a/~/b"), Path::new("/a/~/b"));
        assert_eq!(tokens(None).path("~root/x").ok(), ThisMachine.home_of("root").map(|home| home.join("x")));
        assert!(tokens(None).path("~no-such-user/x").is_err());
        assert_eq!(tokens(None).home_path("~/%h").unwrap(), Path::new("/home/me/%h"));
    }

    #[test]
    fn a_user_that_a_shell_would_read_more_into_is_not_put_into_a_command() {
        for user in ["$(id)", "a;b", "a`b`", "a|b", "a\\", "a'b"] {
            let tokens = Tokens { user: Some(user), ..tokens(None) };
            for what in [Expand::Command, Expand::Proxy] {
                assert!(tokens.expand("nc %r", what).is_err(), "{user}");
            }
            assert!(tokens.expand("nc %h", Expand::Proxy).is_ok());
        }
        assert!(tokens(None).expand("%u", Expand::Proxy).is_err(), "ssh knows five tokens here");
    }

    #[test]
    fn what_cannot_be_expanded_is_told() {
        let fails = |text: &str| tokens(Some("b")).expand(text, Expand::TokensAndVariables).unwrap_err();
        assert!(matches!(fails("%Q"), Trouble::CannotTell(_)));
        assert!(matches!(fails("%C"), Trouble::CannotTell(_)), "releases of ssh differ");
        for wrong in ["%", "${", "${}", "${SORTIE_NO_SUCH_VARIABLE}", "a%"] {
            assert!(matches!(fails(wrong), Trouble::Wrong(_)), "{wrong}");
        }
        assert_eq!(tokens(None).expand("${X} $X", Expand::Command).unwrap(), "${X} $X");
    }
}
