//! `CanonicalizeHostname` of ssh_config(5) and the keywords around it.

use std::net::IpAddr;

use super::host_config::AddressFamily;
use super::lexer::Line;
use super::trouble::{Checked, Trouble};
use super::value;
use super::world::World;
use crate::place::Place;

/// When names are made canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    No,
    /// Not behind a proxy, which looks names up itself.
    Yes,
    Always,
}

/// What the configuration says of canonical names.
#[derive(Debug, Default)]
pub(super) struct Canonicalization {
    mode: Option<Mode>,
    domains: Option<Vec<String>>,
    max_dots: Option<u32>,
    fallback_local: Option<bool>,
    /// `CanonicalizePermittedCNAMEs`, other than `none`.
    aliases: Option<(bool, Place)>,
    at: Option<Place>,
}

impl Canonicalization {
    /// As `setting::set`.
    pub(super) fn set(&mut self, keyword: &str, line: &Line, applies: bool, at: &Place) -> Checked<bool> {
        let one = || match &line.arguments[..] {
            [value] if !value.is_empty() => Ok(value.as_str()),
            _ => Err("it takes one value"),
        };
        let mut unused = Self::default();
        let config = if applies { self } else { &mut unused };
        match keyword {
            "canonicalizehostname" => {
                let mode = match one()?.to_ascii_lowercase().as_str() {
                    "yes" | "true" => Mode::Yes,
                    "no" | "false" => Mode::No,
                    "always" => Mode::Always,
                    other => return Err(format!("it is yes, no or always, not {other:?}").into()),
                };
                if config.mode.is_none() {
                    (config.mode, config.at) = (Some(mode), Some(at.clone()));
                }
            }
            "canonicaldomains" => {
                let domains = domains(&line.arguments)?;
                config.domains.get_or_insert(domains);
            }
            "canonicalizemaxdots" => {
                let dots = value::number(one()?)?;
                config.max_dots.get_or_insert(dots);
            }
            "canonicalizefallbacklocal" => {
                let fall_back = value::yes_or_no(one()?)?;
                config.fallback_local.get_or_insert(fall_back);
            }
            "canonicalizepermittedcnames" => {
                let none = matches!(&line.arguments[..], [only] if only.eq_ignore_ascii_case("none"));
                let rule =
                    |text: &String| text == "*" || text.split_once(':').is_some_and(|(_, to)| !to.is_empty());
                if !none && (line.arguments.is_empty() || !line.arguments.iter().all(rule)) {
                    return Err("it takes rules such as *.a.example:*.b.example".into());
                }
                config.aliases.get_or_insert_with(|| (!none, at.clone()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the files are to be read again because of it.
    pub(super) fn is_on(&self) -> bool {
        self.mode.unwrap_or_default() != Mode::No
    }

    /// The canonical name of `host`, where a connection is `direct` or goes through a proxy.
    ///
    /// # Errors
    /// With the line to blame: no such name where `CanonicalizeFallbackLocal` is no, or aliases would have to be followed.
    pub(super) fn canonical(
        &self,
        host: &str,
        direct: bool,
        family: AddressFamily,
        world: &dyn World,
    ) -> Result<String, (Place, Trouble)> {
        if let Some(address) = canonical_address(host) {
            return Ok(address);
        }
        let host = host.to_lowercase();
        let mode = self.mode.unwrap_or_default();
        if mode == Mode::No || (!direct && mode != Mode::Always) {
            return Ok(host);
        }
        if let Some((true, place)) = &self.aliases {
            return Err((
                place.clone(),
                Trouble::CannotTell("CanonicalizePermittedCNAMEs: names that are aliases".into()),
            ));
        }
        let found = if let Some(whole) = host.strip_suffix('.') {
            world.resolves(&host, family).then(|| whole.to_owned())
        } else {
            let dots = u32::try_from(host.matches('.').count()).unwrap_or(u32::MAX);
            if dots > self.max_dots.unwrap_or(1) {
                return Ok(host);
            }
            let mut names = self.domains.iter().flatten().map(|domain| format!("{host}.{domain}"));
            // The dot at its end keeps the resolver from adding domains of its own.
            names.find(|name| world.resolves(&format!("{name}."), family))
        };
        match found {
            Some(name) => Ok(name),
            None if self.fallback_local.unwrap_or(true) => Ok(host),
            None => {
                let reason =
                    format!("CanonicalizeFallbackLocal: {host} has no address in any canonical domain");
                Err((self.at.clone().unwrap_or_default(), reason.into()))
            }
        }
    }
}

/// An address in the way that the system writes it; `None` for a name.
fn canonical_address(host: &str) -> Option<String> {
    let (address, scope) =
        host.split_once('%').map_or((host, None), |(address, scope)| (address, Some(scope)));
    let address = address.parse::<IpAddr>().ok()?;
    Some(scope.map_or_else(|| address.to_string(), |scope| format!("{address}%{scope}")))
}

/// Domains, without a dot at their end, in lower case; empty for `none`.
fn domains(arguments: &[String]) -> Checked<Vec<String>> {
    let none = |text: &String| text.eq_ignore_ascii_case("none");
    match arguments {
        [] => return Err("it takes at least one domain".into()),
        [only] if none(only) => return Ok(Vec::new()),
        all if all.iter().any(none) => return Err("none stands alone".into()),
        _ => {}
    }
    let domain = |text: &String| {
        let well_formed = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !text.contains("..")
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if well_formed {
            Ok(text.to_ascii_lowercase().trim_end_matches('.').to_owned())
        } else {
            Err(format!("{text:?} is no domain").into())
        }
    };
    arguments.iter().map(domain).collect()
}
