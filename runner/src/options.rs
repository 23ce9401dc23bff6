//! The command line of the runner.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Seconds a runner lives when nobody says otherwise.
const DEFAULT_TTL: u64 = 600;

/// Longest time to live and lease, in seconds: a week.
const LONGEST: u64 = 7 * 24 * 3600;

/// Most commands at once.
const MOST_AT_ONCE: u64 = 256;

pub(crate) const HELP: &str = "\
sortie-runner: runs commands that come as JSON lines on standard input and answers on standard output.
It is started by a client (see `sortie --help`), speaks the protocol of docs/PROTOCOL.md, and deletes its own file.

  --ttl SECONDS        live at most this long (1 to 604800, default 600)
  --lease SECONDS      end when nothing was heard for this long (1 to 604800, default: no lease)
  --concurrency N      run up to N commands at once (1 to 256, default: one after the other)
  --dir DIR            remove this directory too, once it is empty
  --hop USER           a runner of USER started this one as another user: it ends with its standard input
  --anchor FILE        take only commands signed by a key of this file: a public key a line, as in authorized_keys; file
                       and directories must be root's alone; implies --keep
  --trust KEY          take only commands signed by this key (64 hexadecimal digits); may be repeated, as --anchor may
  --keep               do not delete anything
  --version            print the version
  --help               print this
";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) lease: Option<Duration>,
    /// None: one after the other, as the reference does.
    pub(crate) concurrency: Option<u32>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) keep: bool,
    /// The user whose runner started this one.
    pub(crate) hop: Option<String>,
    /// Files of keys that commands must be signed by.
    pub(crate) anchors: Vec<PathBuf>,
    /// Such keys themselves.
    pub(crate) trust: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Run(Options),
    Version,
    Help,
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Request, String> {
    let mut options = Options {
        ttl: Duration::from_secs(DEFAULT_TTL),
        lease: None,
        concurrency: None,
        directory: None,
        keep: false,
        hop: None,
        anchors: Vec::new(),
        trust: Vec::new(),
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        let (flag, inline) = match text.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(OsString::from(value))),
            _ => (text.as_str(), None),
        };
        let mut value = || inline.clone().or_else(|| arguments.next()).ok_or(format!("{flag} needs a value"));
        match flag {
            "--ttl" => options.ttl = Duration::from_secs(number(flag, &value()?, LONGEST)?),
            "--lease" => options.lease = Some(Duration::from_secs(number(flag, &value()?, LONGEST)?)),
            "--concurrency" => {
                let count = number(flag, &value()?, MOST_AT_ONCE)?;
                options.concurrency = u32::try_from(count).ok();
            }
            "--dir" => options.directory = Some(value()?.into()),
            "--hop" => options.hop = Some(value()?.to_string_lossy().into_owned()),
            "--anchor" => {
                options.anchors.push(value()?.into());
                // Whoever put it there wants it there tomorrow.
                options.keep = true;
            }
            "--trust" => options.trust.push(value()?.to_string_lossy().into_owned()),
            "--keep" if inline.is_none() => options.keep = true,
            "--version" => return Ok(Request::Version),
            "--help" | "-h" => return Ok(Request::Help),
            _ => return Err(format!("unknown argument {text:?}")),
        }
    }
    Ok(Request::Run(options))
}

fn number(flag: &str, value: &OsString, most: u64) -> Result<u64, String> {
    let text = value.to_string_lossy();
    let parsed = text.parse().ok().filter(|n| (1..=most).contains(n));
    parsed.ok_or_else(|| format!("{flag} takes a whole number from 1 to {most}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Request, String> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn without_flags_it_behaves_as_the_reference() {
        let Ok(Request::Run(options)) = parsed(&[]) else { panic!() };
        assert_eq!(options.ttl, Duration::from_secs(600));
        assert_eq!((options.lease, options.concurrency, options.keep), (None, None, false));
    }

    #[test]
    fn flags_take_their_value_either_way() {
        let Ok(Request::Run(options)) =
            parsed(&["--ttl", "5", "--lease=60", "--concurrency=32", "--dir", "/x y", "--keep"])
        else {
            panic!()
        };
        assert_eq!(options.ttl, Duration::from_secs(5));
        assert_eq!(options.lease, Some(Duration::from_secs(60)));
        assert_eq!(options.concurrency, Some(32));
        assert_eq!(options.directory, Some("/x y".into()));
        assert!(options.keep);
    }

    #[test]
    fn wrong_flags_get_a_sentence() {
        for (arguments, part) in [
            (&["--ttl"][..], "needs a value"),
            (&["--ttl", "0"], "1 to 604800"),
            (&["--ttl", "1h"], "\"1h\""),
            (&["--concurrency", "257"], "1 to 256"),
            (&["--nope"], "unknown argument \"--nope\""),
            (&["--keep=1"], "unknown argument"),
        ] {
            let error = parsed(arguments).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
