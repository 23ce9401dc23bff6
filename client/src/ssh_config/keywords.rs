//! What becomes of each keyword of ssh_config(5) that is not obeyed: passed over, or refused by name.

/// How a keyword is met that is not obeyed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It has no bearing on a session.
    PassedOver,
    /// It changes where or how a connection is made, and cannot be obeyed. With one of these values it changes nothing.
    Refused { unless: &'static [&'static str], instead: &'static str },
    /// Nobody knows it.
    Unknown,
}

/// Keywords without bearing on a session of ours: logging, multiplexing, forwarding, terminals, prompts, and checks
/// that we make more strictly anyway.
const PASSED_OVER: &[&str] = &[
    "addkeystoagent",
    "channeltimeout",
    "cipher",
    "clearallforwardings",
    "compression",
    "compressionlevel",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "dynamicforward",
    "enableescapecommandline",
    "enablesshkeysign",
    "escapechar",
    "exitonforwardfailure",
    "fallbacktorsh",
    "fingerprinthash",
    "forkafterauthentication",
    "forwardagent",
    "forwardx11",
    "forwardx11timeout",
    "forwardx11trusted",
    "gatewayports",
    "globalknownhostsfile2",
    "gssapiauthentication",
    "gssapiclientidentity",
    "gssapidelegatecredentials",
    "gssapikexalgorithms",
    "gssapikeyexchange",
    "gssapirenewalforcesrekey",
    "gssapiserveridentity",
    "gssapitrustdns",
    "hostbasedacceptedalgorithms",
    "hostbasedkeytypes",
    "ipqos",
    "keepalive",
    "localcommand",
    "localforward",
    "loglevel",
    "logverbose",
    "nohostauthenticationforlocalhost",
    "obscurekeystroketiming",
    "permitlocalcommand",
    "permitremoteopen",
    "protocol",
    "remoteforward",
    "requesttty",
    "rhostsauthentication",
    "rhostsrsaauthentication",
    "rsaauthentication",
    "securitykeyprovider",
    "sendenv",
    "setenv",
    "stdinnull",
    "streamlocalbindmask",
    "streamlocalbindunlink",
    "syslogfacility",
    "tcpkeepalive",
    "tunnel",
    "tunneldevice",
    "updatehostkeys",
    "useprivilegedport",
    "userknownhostsfile2",
    "useroaming",
    "usersh",
    "verifyhostkeydns",
    "versionaddendum",
    "visualhostkey",
    "warnweakcrypto",
    "xauthlocation",
];

const BY_SSH: &str = "reach it through the ssh program";

/// Keywords that change where or how a connection is made and are not obeyed: name, values that leave everything as it
/// is, and what to do instead.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("hostbasedauthentication", &["no", "false"], "use a key"),
    ("kbdinteractivedevices", &[], "leave it out"),
    ("knownhostscommand", &["none"], BY_SSH),
    ("pkcs11provider", &["none"], "add the token to an agent (ssh-add -s)"),
    ("proxyusefdpass", &["no", "false"], BY_SSH),
    ("refuseconnection", &[], "it forbids the connection"),
    ("remotecommand", &["none"], "it would run instead of what is asked for"),
    ("sessiontype", &["default"], "it would run something else than what is asked for"),
    ("smartcarddevice", &["none"], "add the token to an agent (ssh-add -s)"),
];

/// `keyword` in lower case.
pub(super) fn met(keyword: &str) -> Met {
    if PASSED_OVER.contains(&keyword) {
        return Met::PassedOver;
    }
    match REFUSED.iter().find(|(name, ..)| *name == keyword) {
        Some((_, unless, instead)) => Met::Refused { unless, instead },
        None => Met::Unknown,
    }
}

/// The name by which a keyword is known today; older ones stay valid (ssh's own table of names).
pub(super) fn today(keyword: &str) -> &str {
    match keyword {
        "challengeresponseauthentication" | "skeyauthentication" | "tisauthentication" => {
            "kbdinteractiveauthentication"
        }
        "dsaauthentication" => "pubkeyauthentication",
        "identityfile2" => "identityfile",
        "pubkeyacceptedkeytypes" => "pubkeyacceptedalgorithms",
        other => other,
    }
}
