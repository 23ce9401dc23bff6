//! `sortie wait`: until a port, a path or a unit of the hosts is as it should be, or the time is over.

use std::time::Duration;

use sortie_client::protocol::command::wait_for::WaitFor;

use crate::ensure::{self, Where};
use crate::outcome::usage;
use crate::report::Done;
use crate::words;

#[derive(clap::Args)]
#[command(after_help = "It is given up after --timeout; then the exit status is 124.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Where,
    /// Text that must be in the file, as it stands here
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "0.25", value_parser = interval)]
    interval: u32,
    /// What to wait for
    #[arg(value_name = "KIND")]
    kind: Kind,
    /// As a user writes it.
    #[arg(value_name = "WHAT", help = "[HOST:]PORT as the host reaches it, a path, or a unit or service")]
    what: String,
    /// open or closed; present or absent; active, inactive or failed [default: the first of them]
    #[arg(value_name = "STATE")]
    state: Option<String>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Kind {
    Port,
    Path,
    Unit,
}

fn place(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match port.parse() {
        Ok(port @ 1..) => Ok((host.to_owned(), port)),
        _ => Err("write a port from 1 to 65535, or HOST:PORT, or [ADDRESS]:PORT".into()),
    }
}

fn interval(text: &str) -> Result<u32, String> {
    let time = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => words::duration(text)?,
    };
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    match milliseconds {
        10..=60_000 => Ok(milliseconds),
        _ => Err("write a time from 0.01 to 60 seconds".into()),
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<i32> {
    let Arguments { place, contains, interval, kind, what, state } = arguments;
    let wait = match kind {
        Kind::Port => {
            let (host, port) = self::place(&what).map_err(usage)?;
            WaitFor::port(port).of_host(host)
        }
        Kind::Path => WaitFor::path(what),
        Kind::Unit => WaitFor::unit(what),
    };
    let (contains, state) = (contains.unwrap_or_default(), state.unwrap_or_default());
    let wait = WaitFor { contains, state, interval_ms: interval, ..wait };
    ensure::run(&place, vec![wait], |_: &WaitFor, check, result| Done::Wait { check, result }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_have_its_host_before_it() {
        assert_eq!(place("22"), Ok((String::new(), 22)));
        assert_eq!(place("db:5432"), Ok(("db".into(), 5432)));
        assert_eq!(place("[2001:db8::1]:80"), Ok(("2001:db8::1".into(), 80)));
        assert!(place("db").is_err() && place("0").is_err() && place("x:70000").is_err());
    }

    #[test]
    fn an_interval_is_in_seconds_unless_it_says_otherwise() {
        assert_eq!(interval("0.05"), Ok(50));
        assert_eq!(interval("1m"), Ok(60_000));
        assert!(interval("0").is_err() && interval("-1").is_err() && interval("2m").is_err());
    }
}
