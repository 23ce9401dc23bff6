//! The trust table: what a server shows and what files say, what OpenSSH's client makes of it, and what Sortie does. Never
//! is Sortie the one who accepts more. docs/TRUST.md has the table; with SORTIE_UPDATE_DOCS=1 it is written anew.

mod trust_support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sortie_tests::{require_programs, require_root};
use trust_support::{Decision, Question, World, apart, run};

/// What is expected of OpenSSH.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ssh {
    Accepts,
    Refuses,
    /// Versions differ.
    Varies(&'static str),
}

/// One line of the table. Both accept, unless it is said otherwise.
struct Row {
    input: &'static str,
    server: &'static [&'static str],
    known: &'static str,
    files: Vec<(&'static str, &'static str)>,
    options: &'static str,
    to: (&'static str, u16),
    hashed: bool,
    ssh: Ssh,
    accepts: bool,
    /// Why Sortie does otherwise.
    why: &'static str,
}

fn row(input: &'static str, known: &'static str) -> Row {
    Row {
        input,
        server: &["host"],
        known,
        files: Vec::new(),
        options: "",
        to: ("web1", 22),
        hashed: false,
        ssh: Ssh::Accepts,
        accepts: true,
        why: "",
    }
}

impl Row {
    /// The server shows these keys and certificates instead of its one key.
    fn server(mut self, keys: &'static [&'static str]) -> Self {
        self.server = keys;
        self
    }

    fn options(mut self, lines: &'static str) -> Self {
        self.options = lines;
        self
    }

    fn to(mut self, host: &'static str, port: u16) -> Self {
        self.to = (host, port);
        self
    }

    fn file(mut self, name: &'static str, text: &'static str) -> Self {
        self.files.push((name, text));
        self
    }

    /// `ssh-keygen -H` hashes the names of known_hosts.
    fn hashed(mut self) -> Self {
        self.hashed = true;
        self
    }

    /// Both refuse.
    fn no(mut self) -> Self {
        (self.ssh, self.accepts) = (Ssh::Refuses, false);
        self
    }

    /// ssh accepts and Sortie does not.
    fn stricter(mut self, why: &'static str) -> Self {
        (self.accepts, self.why) = (false, why);
        self
    }

    fn varies(mut self, ssh: &'static str) -> Self {
        self.ssh = Ssh::Varies(ssh);
        self
    }
}

const NEW: &str = "StrictHostKeyChecking accept-new";
const OFF: &str = "StrictHostKeyChecking no";

/// Keys are made by [`make_keys`]; `{host}` is the type and the base64 of one.
fn rows() -> Vec<(&'static str, Vec<Row>)> {
    vec![
        ("Known, unknown, changed", known_rows()),
        ("Revoked", revoked_rows()),
        ("Names, ports, addresses", name_rows()),
        ("Several keys and algorithms", algorithm_rows()),
        ("Certificates", certificate_rows()),
    ]
}

fn known_rows() -> Vec<Row> {
    vec![
        row("known", "web1 {host}\n"),
        row("unknown", "").no(),
        row("unknown, no known_hosts at all", "").options("UserKnownHostsFile {case}/none").no(),
        row("unknown, `accept-new`: added", "").options(NEW),
        row("unknown, `accept-new`, `HashKnownHosts`: added hashed", "")
            .options("StrictHostKeyChecking accept-new\nHashKnownHosts yes"),
        row("unknown, `accept-new`, on port 2222: added with its port", "").options(NEW).to("web1", 2222),
        row("unknown, `accept-new`, `UserKnownHostsFile none`", "")
            .options("StrictHostKeyChecking accept-new\nUserKnownHostsFile none")
            .no(),
        row("unknown, `accept-new`, `UserKnownHostsFile /dev/null`", "")
            .options("StrictHostKeyChecking accept-new\nUserKnownHostsFile /dev/null"),
        row("unknown, `StrictHostKeyChecking no`: added", "").options(OFF),
        row("unknown, `NoHostAuthenticationForLocalhost yes`", "")
            .options("NoHostAuthenticationForLocalhost yes")
            .stricter("there is no way round host keys"),
        row("changed", "web1 {other}\n").no(),
        row("changed, `accept-new`", "web1 {other}\n").options(NEW).no(),
        row("changed, `StrictHostKeyChecking no`", "web1 {other}\n")
            .options(OFF)
            .stricter("it is read as `accept-new`"),
        row("in the second file of the user", "")
            .options("UserKnownHostsFile {case}/known_hosts {case}/second")
            .file("second", "web1 {host}\n"),
        row("in the file of the system", "")
            .options("GlobalKnownHostsFile {case}/global")
            .file("global", "web1 {host}\n"),
        row("right in one file, another key in the other", "web1 {other}\n")
            .options("GlobalKnownHostsFile {case}/global")
            .file("global", "web1 {host}\n"),
        row(
            "comments, tabs, CRLF and broken lines around it",
            "# web1\n\nweb1 ssh-ed25519\nweb1 ssh-ed25519 !!!\n@what web1 {other}\n \tweb1\t{host}\r\n",
        ),
        row("a line with another type than its key's", "web1 ssh-rsa {host:key}\n").no(),
        row("by a program, `KnownHostsCommand`", "")
            .options("KnownHostsCommand /bin/cat {case}/command")
            .file("command", "web1 {host}\n")
            .stricter("programs are not asked"),
    ]
}

fn revoked_rows() -> Vec<Row> {
    vec![
        row("`@revoked`, and known", "web1 {host}\n@revoked web1 {host}\n").no(),
        row("`@revoked` for every host, in the file of the system", "web1 {host}\n")
            .options("GlobalKnownHostsFile {case}/global")
            .file("global", "@revoked * {host}\n")
            .no(),
        row("`@revoked`, `accept-new`", "@revoked * {host}\n").options(NEW).no(),
        row("`@revoked`, `StrictHostKeyChecking no`", "@revoked * {host}\n")
            .options(OFF)
            .stricter("never accepted"),
        row("another key `@revoked`", "web1 {host}\n@revoked * {other}\n"),
        row("`@revoked` for another host", "web1 {host}\n@revoked db {host}\n"),
        row("`@revoked` for the host, known for its port 2222", "[web1]:2222 {host}\n@revoked web1 {host}\n")
            .to("web1", 2222)
            .stricter("a key that is no good on one port is good on none"),
        row("`RevokedHostKeys`: in a list", "web1 {host}\n")
            .options("RevokedHostKeys {case}/list")
            .file("list", "# stolen\n{host} comment\n")
            .no(),
        row("`RevokedHostKeys`: not in the list", "web1 {host}\n")
            .options("RevokedHostKeys {case}/list")
            .file("list", "{other}\n"),
        row("`RevokedHostKeys`: a line that is no key", "web1 {host}\n")
            .options("RevokedHostKeys {case}/list")
            .file("list", "what is this\n")
            .no(),
        row("`RevokedHostKeys`: no such file", "web1 {host}\n").options("RevokedHostKeys {case}/list").no(),
        row("`RevokedHostKeys`: a KRL with the key", "web1 {host}\n")
            .options("RevokedHostKeys {keys}/krl-key")
            .no(),
        row("`RevokedHostKeys`: a KRL with its SHA-256", "web1 {host}\n")
            .options("RevokedHostKeys {keys}/krl-sha256")
            .no(),
        row("`RevokedHostKeys`: a KRL about others", "web1 {host}\n")
            .options("RevokedHostKeys {keys}/krl-other"),
        row("`RevokedHostKeys`: a KRL cut short", "web1 {host}\n")
            .options("RevokedHostKeys {keys}/krl-short")
            .no(),
    ]
}

fn name_rows() -> Vec<Row> {
    vec![
        row("hashed name", "web1 {host}\n").hashed(),
        row("hashed name with a port", "[web1]:2222 {host}\n").to("web1", 2222).hashed(),
        row("hashed name of another host", "db {host}\n").hashed().no(),
        row("wildcard", "*.example.org {host}\n").to("web1.example.org", 22),
        row("wildcard `?`", "web? {host}\n"),
        row("wildcard of other hosts", "*.example.org {host}\n").no(),
        row("negated name", "*.example.org,!db.example.org {host}\n").to("db.example.org", 22).no(),
        row("negated name of another", "*.example.org,!db.example.org {host}\n").to("web1.example.org", 22),
        row("upper case in the file", "WEB1 {host}\n"),
        row("upper case on the command line", "web1 {host}\n").to("WEB1", 22),
        row("`[host]:port`", "[web1]:2222 {host}\n").to("web1", 2222),
        row("wildcard with a port", "[web*]:2222 {host}\n").to("web1", 2222),
        row("known for port 2222, connected to 22", "[web1]:2222 {host}\n").no(),
        row("known for port 22, connected to 2222", "web1 {host}\n").to("web1", 2222),
        row("another key for port 22, connected to 2222", "web1 {other}\n").to("web1", 2222).no(),
        row("another key for port 22, connected to 2222, `accept-new`: added", "web1 {other}\n")
            .to("web1", 2222)
            .options(NEW),
        row("another key for the port, the right one for the host", "[web1]:2222 {other}\nweb1 {host}\n")
            .to("web1", 2222)
            .no(),
        row("IPv6 address", "::1 {host}\n").to("::1", 22),
        row("IPv6 address with a port", "[::1]:2222 {host}\n").to("::1", 2222),
        row("IPv6 address, `accept-new`: added", "").to("::1", 2222).options(NEW),
        row("a name with an IPv6 address", "six {host}\n").to("six", 22),
        row("`HostKeyAlias`", "fleet {host}\n").options("HostKeyAlias fleet"),
        row("`HostKeyAlias`, whatever the port", "fleet {host}\n")
            .options("HostKeyAlias fleet")
            .to("web1", 2222),
        row("`HostKeyAlias`, known by its own name", "web1 {host}\n").options("HostKeyAlias fleet").no(),
        row("`HostKeyAlias`, `accept-new`: added under it", "")
            .options("HostKeyAlias fleet\nStrictHostKeyChecking accept-new"),
        row("`HostKeyAlias *`, `accept-new`", "")
            .options("HostKeyAlias *\nStrictHostKeyChecking accept-new")
            .stricter("the line would be about every host"),
        row("`HostName`: known by that", "web1 {host}\n").options("HostName web1").to("nickname", 22),
        row("`HostName`: known by what was typed", "nickname {host}\n")
            .options("HostName web1")
            .to("nickname", 22)
            .no(),
        row("`CheckHostIP yes`, the address is known by another key", "far {host}\n192.0.2.7 {other}\n")
            .to("far", 22)
            .options("CheckHostIP yes")
            .no(),
        row("`CheckHostIP yes`, the address is known by the same key", "far,192.0.2.7 {host}\n")
            .to("far", 22)
            .options("CheckHostIP yes"),
        row("the address is known by another key", "far {host}\n192.0.2.7 {other}\n").to("far", 22),
    ]
}

fn algorithm_rows() -> Vec<Row> {
    vec![
        row("the second of two keys", "web1 {other}\nweb1 {host}\n"),
        row("known by ECDSA, the server has Ed25519 too", "web1 {ecdsa}\n").server(&["host", "ecdsa"]),
        row("known by RSA, the server has Ed25519 too", "web1 {rsa}\n").server(&["host", "rsa"]),
        row("known by RSA, the server has Ed25519 alone", "web1 {rsa}\n").no(),
        row("known by RSA, the server has Ed25519 alone, `accept-new`", "web1 {rsa}\n").options(NEW).no(),
        row("Ed25519 revoked, known by RSA, the server has both", "@revoked web1 {host}\nweb1 {rsa}\n")
            .server(&["host", "rsa"]),
        row("RSA on port 2222, known for port 22", "web1 {rsa}\n")
            .server(&["host", "rsa"])
            .to("web1", 2222)
            .no(),
        row("`HostKeyAlgorithms` without the type of the key", "web1 {host}\n")
            .options("HostKeyAlgorithms ecdsa-sha2-nistp256,rsa-sha2-512")
            .no(),
        row("`HostKeyAlgorithms -ssh-ed25519`", "web1 {host}\n")
            .options("HostKeyAlgorithms -ssh-ed25519")
            .no(),
        row("`HostKeyAlgorithms` with another type first", "web1 {host}\n")
            .server(&["host", "rsa"])
            .options("HostKeyAlgorithms rsa-sha2-512,ssh-ed25519")
            .no(),
        row("`HostKeyAlgorithms ^ssh-ed25519`", "web1 {host}\n").options("HostKeyAlgorithms ^ssh-ed25519"),
        row("`RequiredRSASize 3072`, a key of 2048 bits", "web1 {rsa}\n")
            .server(&["rsa"])
            .options("RequiredRSASize 3072")
            .no(),
        row("RSA by SHA-1, `HostKeyAlgorithms ssh-rsa`", "web1 {rsa}\n")
            .server(&["rsa"])
            .options("HostKeyAlgorithms ssh-rsa")
            .stricter("SHA-1 proves nothing"),
    ]
}

fn certificate_rows() -> Vec<Row> {
    const CA: &str = "@cert-authority web1 {ca}\n";
    const EXPIRED: &[&str] = &["host", "cert-expired"];
    const GOOD: &[&str] = &["host", "cert-good"];
    vec![
        row("of a known authority", CA).server(GOOD),
        row("of an authority for a wildcard", "@cert-authority *.example.org,web* {ca}\n").server(GOOD),
        row("of an authority in the file of the system", "")
            .server(GOOD)
            .options("GlobalKnownHostsFile {case}/global")
            .file("global", "@cert-authority * {ca}\n"),
        row("of an authority under a hashed name", CA).server(GOOD).hashed(),
        row("of an authority for another host", "@cert-authority db {ca}\n").server(GOOD).no(),
        row("of an authority for all but this host", "@cert-authority *,!web1 {ca}\n").server(GOOD).no(),
        row("of an unknown authority", "@cert-authority web1 {ca2}\n").server(GOOD).no(),
        row("of an unknown authority, the key itself is known", "@cert-authority web1 {ca2}\nweb1 {host}\n")
            .server(GOOD),
        row("of an unknown authority, another key is known", "@cert-authority web1 {ca2}\nweb1 {other}\n")
            .server(GOOD)
            .no(),
        row("of an unknown authority, `accept-new`: the key is added", "@cert-authority web1 {ca2}\n")
            .server(GOOD)
            .options(NEW),
        row("of one of two authorities", "@cert-authority web1 {ca2}\n@cert-authority web1 {ca}\n")
            .server(GOOD),
        row("of a key that is known as a host's, not as an authority", "web1 {ca}\n").server(GOOD).no(),
        row("the authority's key shown as a host key", CA).server(&["ca"]).no(),
        row("a known authority, a plain unknown key", CA).no(),
        row("known for port 22, connected to 2222", CA).server(GOOD).to("web1", 2222),
        row("`[host]:port`", "@cert-authority [web1]:2222 {ca}\n").server(GOOD).to("web1", 2222),
        row("authority for port 2222, connected to 22", "@cert-authority [web1]:2222 {ca}\n")
            .server(GOOD)
            .no(),
        row("for another name", CA).server(&["host", "cert-db"]).no(),
        row("for another name, `HostKeyAlias` says that one", "@cert-authority db {ca}\n")
            .server(&["host", "cert-db"])
            .options("HostKeyAlias db"),
        row("for the name, `HostKeyAlias` says another", "@cert-authority db {ca}\n")
            .server(GOOD)
            .options("HostKeyAlias db")
            .no(),
        row("for a wildcard", "@cert-authority *.example.org {ca}\n")
            .server(&["host", "cert-wild"])
            .to("web1.example.org", 22)
            .varies("refuses up to 10.2")
            .stricter("a wildcard is no name, as it was none for long"),
        row("for a wildcard of other hosts", CA).server(&["host", "cert-wild"]).no(),
        row("for a name in upper case", CA).server(&["host", "cert-upper"]).no(),
        row("for nobody", CA)
            .server(&["host", "cert-nobody"])
            .varies("accepts up to 10.2")
            .stricter("as OpenSSH does since"),
        row("expired", CA).server(EXPIRED).no(),
        row("expired, the key itself is known", "@cert-authority web1 {ca}\nweb1 {host}\n").server(EXPIRED),
        row("expired, `accept-new`", CA)
            .server(EXPIRED)
            .options(NEW)
            .stricter("something is wrong with this host that somebody has to look at"),
        row("not valid yet", CA).server(&["host", "cert-future"]).no(),
        row("a user's", CA).server(&["host", "cert-user"]).no(),
        row("with a critical option", CA).server(&["host", "cert-critical"]).no(),
        row("signed by RSA with SHA-1", "@cert-authority web1 {ca-rsa}\n")
            .server(&["host", "cert-sha1"])
            .no(),
        row("signed by RSA with SHA-512", "@cert-authority web1 {ca-rsa}\n").server(&["host", "cert-sha512"]),
        row("`CASignatureAlgorithms` without the authority's", CA)
            .server(GOOD)
            .options("CASignatureAlgorithms rsa-sha2-512")
            .no(),
        row("`RequiredRSASize 3072`, an authority of 2048 bits", "@cert-authority web1 {ca-rsa}\n")
            .server(&["host", "cert-sha512"])
            .options("RequiredRSASize 3072")
            .stricter("the authority's key must be as long as a host's"),
        row("of an RSA key", CA).server(&["rsa", "cert-rsa"]),
        row("of an ECDSA key", CA).server(&["ecdsa", "cert-ecdsa"]),
        row("authority `@revoked`", "@cert-authority web1 {ca}\n@revoked * {ca}\n").server(GOOD).no(),
        row(
            "authority `@revoked`, the key itself is known",
            "@cert-authority web1 {ca}\nweb1 {host}\n@revoked * {ca}\n",
        )
        .server(GOOD)
        .no(),
        row("the key inside `@revoked`", "@cert-authority web1 {ca}\n@revoked * {host}\n").server(GOOD).no(),
        row(
            "the key inside `@revoked` by its certificate",
            "@cert-authority web1 {ca}\n@revoked * {cert-good}\n",
        )
        .server(GOOD)
        .no(),
        row("`RevokedHostKeys`: the authority in a list", CA)
            .server(GOOD)
            .options("RevokedHostKeys {case}/list")
            .file("list", "{ca}\n")
            .no(),
        row("`RevokedHostKeys`: the key inside in a list", CA)
            .server(GOOD)
            .options("RevokedHostKeys {case}/list")
            .file("list", "{host}\n")
            .no(),
        row("`RevokedHostKeys`: its number in a KRL", CA)
            .server(GOOD)
            .options("RevokedHostKeys {keys}/krl-serial")
            .no(),
        row("`RevokedHostKeys`: its name in a KRL", CA)
            .server(GOOD)
            .options("RevokedHostKeys {keys}/krl-id")
            .no(),
        row("`RevokedHostKeys`: its number in a KRL of another authority", CA)
            .server(GOOD)
            .options("RevokedHostKeys {keys}/krl-other-serial"),
        row("`HostKeyAlgorithms` for plain keys alone", CA)
            .server(GOOD)
            .options("HostKeyAlgorithms ssh-ed25519")
            .no(),
        row("`HostKeyAlgorithms` for certificates alone, the key itself is known", "web1 {host}\n")
            .server(GOOD)
            .options("HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com")
            .varies("accepts up to 9.7")
            .stricter("as OpenSSH does since"),
        row(
            "authority known, but the host has another plain key on file",
            "@cert-authority web1 {ca}\nweb1 {other}\n",
        )
        .server(GOOD),
    ]
}

/// Everything that the rows name.
fn make_keys(keys: &Path) -> Result<()> {
    let path = |name: &str| keys.join(name).display().to_string();
    for (name, kind) in [
        ("host", "ed25519"),
        ("other", "ed25519"),
        ("ecdsa", "ecdsa"),
        ("rsa", "rsa"),
        ("ca", "ed25519"),
        ("ca2", "ed25519"),
        ("ca-rsa", "rsa"),
    ] {
        let bits: &[&str] = if kind == "rsa" { &["-b", "2048"] } else { &[] };
        run("ssh-keygen", &[&["-q", "-N", "", "-C", name, "-t", kind, "-f", &path(name)], bits].concat())?;
    }
    let sign = |name: &str, key: &str, authority: &str, arguments: &[&str]| -> Result<()> {
        let signed = ["-q", "-s", &path(authority), "-I", name, "-z", "7"];
        run("ssh-keygen", &[&signed, arguments, &[&path(&format!("{key}.pub"))]].concat())?;
        Ok(fs::rename(path(&format!("{key}-cert.pub")), path(name))?)
    };
    sign("cert-good", "host", "ca", &["-h", "-n", "db2,web1"])?;
    sign("cert-db", "host", "ca", &["-h", "-n", "db"])?;
    sign("cert-wild", "host", "ca", &["-h", "-n", "*.example.org"])?;
    sign("cert-upper", "host", "ca", &["-h", "-n", "WEB1"])?;
    sign("cert-nobody", "host", "ca", &["-h"])?;
    sign("cert-expired", "host", "ca", &["-h", "-n", "web1", "-V", "20200101:20200102"])?;
    sign("cert-future", "host", "ca", &["-h", "-n", "web1", "-V", "20990101:20990102"])?;
    sign("cert-user", "host", "ca", &["-n", "web1"])?;
    sign("cert-critical", "host", "ca", &["-h", "-n", "web1", "-O", "critical:x@example.org=1"])?;
    sign("cert-sha1", "host", "ca-rsa", &["-h", "-n", "web1", "-t", "ssh-rsa"])?;
    sign("cert-sha512", "host", "ca-rsa", &["-h", "-n", "web1", "-t", "rsa-sha2-512"])?;
    sign("cert-rsa", "rsa", "ca", &["-h", "-n", "web1"])?;
    sign("cert-ecdsa", "ecdsa", "ca", &["-h", "-n", "web1"])?;

    let revoke = |name: &str, authority: Option<&str>, specification: &str| -> Result<()> {
        let file = path(&format!("{name}-specification"));
        fs::write(&file, specification)?;
        let authority = authority.map(|authority| path(&format!("{authority}.pub")));
        let by: Vec<&str> = authority.iter().flat_map(|file| ["-s", file.as_str()]).collect();
        run("ssh-keygen", &[&["-q", "-k", "-f", &path(name)], by.as_slice(), &[&file]].concat())
    };
    let public = |name: &str| fs::read_to_string(keys.join(format!("{name}.pub")));
    revoke("krl-key", None, &format!("key: {}", public("host")?))?;
    revoke("krl-sha256", None, &format!("sha256: {}", public("host")?))?;
    revoke("krl-other", None, &format!("key: {}", public("other")?))?;
    revoke("krl-serial", Some("ca"), "serial: 1-9\n")?;
    revoke("krl-id", Some("ca"), "id: cert-good\n")?;
    revoke("krl-other-serial", Some("ca2"), "serial: 1-9\n")?;
    let whole = fs::read(keys.join("krl-key"))?;
    Ok(fs::write(keys.join("krl-short"), &whole[..whole.len() - 5])?)
}

/// `{host}` is a key's type and base64, `{host:key}` its base64 alone, `{keys}` and `{case}` are directories.
fn filled(text: &str, world: &World) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').context("a brace is never closed")?;
        out += before;
        out += &match name {
            "keys" => world.keys().display().to_string(),
            "case" => world.case().display().to_string(),
            name => {
                let (name, alone) = name.strip_suffix(":key").map_or((name, false), |name| (name, true));
                let file = if name.starts_with("cert-") { name.to_owned() } else { format!("{name}.pub") };
                let public = fs::read_to_string(world.keys().join(&file)).with_context(|| file)?;
                let fields: Vec<&str> = public.split(' ').take(2).collect();
                if alone { fields[1].to_owned() } else { fields.join(" ") }
            }
        };
        rest = after;
    }
    Ok(out + rest)
}

fn hashed(world: &World, text: &str) -> Result<String> {
    let file = world.keys().join("known_hosts");
    fs::write(&file, text)?;
    run("ssh-keygen", &["-q", "-H", "-f", &file.display().to_string()])?;
    Ok(fs::read_to_string(&file)?)
}

/// Asks both clients, holds them against the row, and gives the line of the table.
fn shown(world: &World, row: &Row) -> Result<String> {
    let known = filled(row.known, world)?;
    let known = if row.hashed { hashed(world, &known)? } else { known };
    let before = known.clone();
    let mut files = vec![("known_hosts".to_owned(), known)];
    for (name, text) in &row.files {
        files.push(((*name).to_owned(), filled(text, world)?));
    }
    let (host, port) = row.to;
    let options = filled(row.options, world)?;
    let answers = world.ask(&Question { host, port, server: row.server, options, files })?;

    let by_ssh = answers.ssh == Decision::Accepts;
    let by_sortie = answers.sortie == Decision::Accepts;
    let both = format!("ssh {:?}, Sortie {:?}", answers.ssh, answers.sortie);
    ensure!(by_ssh || !by_sortie, "Sortie is weaker: {both}");
    ensure!(by_sortie == row.accepts, "not what the row says: {both}");
    let said = match row.ssh {
        Ssh::Accepts => "accepts",
        Ssh::Refuses => "refuses",
        Ssh::Varies(said) => said,
    };
    ensure!(
        matches!(row.ssh, Ssh::Varies(_)) || by_ssh == (row.ssh == Ssh::Accepts),
        "not what ssh did once: {both}"
    );
    if by_ssh && by_sortie && !row.options.contains("HashKnownHosts") {
        ensure!(answers.after_sortie == answers.after_ssh, "ssh leaves another known_hosts behind");
    }
    if !by_sortie {
        ensure!(answers.after_sortie.as_ref() == Some(&before), "a refused host changed known_hosts");
    }
    let does = match &answers.sortie {
        Decision::Accepts => "accepts".to_owned(),
        Decision::Refuses(why, _) => format!("refuses ({why})"),
    };
    let why = if row.why.is_empty() { String::new() } else { format!(": {}", row.why) };
    Ok(format!("| {} | {said} | {does}{why} |\n", row.input))
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/TRUST.md")
}

const BEGIN: &str = "<!-- the trust table; tests/tests/client_trust.rs writes it -->\n";
const END: &str = "<!-- its end -->\n";

#[test]
fn sortie_is_never_weaker_than_openssh_and_the_table_says_so() -> Result<()> {
    require_root!();
    require_programs!("sshd", "ssh", "ssh-keygen", "ip");
    let table = apart(|| {
        let world = World::new()?;
        make_keys(&world.keys())?;
        let (mut table, mut wrong) = (String::new(), Vec::new());
        for (group, rows) in rows() {
            write!(table, "\n**{group}**\n\n| input | OpenSSH | Sortie |\n|---|---|---|\n")?;
            for row in rows {
                match shown(&world, &row) {
                    Ok(line) => table += &line,
                    Err(error) => wrong.push(format!("{group}: {}: {error:#}", row.input)),
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        Ok(table)
    })?;
    println!("{table}");
    let text = fs::read_to_string(document())?;
    let (before, rest) = text.split_once(BEGIN).context("no beginning of the table")?;
    let (_, after) = rest.split_once(END).context("no end of the table")?;
    let written = format!("{before}{BEGIN}{table}\n{END}{after}");
    if std::env::var_os("SORTIE_UPDATE_DOCS").is_some() {
        return Ok(fs::write(document(), written)?);
    }
    assert_eq!(written, text, "docs/TRUST.md is not current: run this test with SORTIE_UPDATE_DOCS=1");
    Ok(())
}
