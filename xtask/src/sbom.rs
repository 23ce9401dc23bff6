//! What a program was made of, as CycloneDX 1.5 has it: the crates that are linked into it, by cargo's own account, with the checksums
//! of the lock file, the standard library and the C library. Without a time or a random number: the same sources, the same text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::listing::hex_digest;
use crate::process;
use crate::workspace::Workspace;

/// The end of the names of these files.
pub(crate) const SUFFIX: &str = ".cdx.json";

/// The program that is described.
pub(crate) struct Program<'a> {
    /// Its package.
    pub(crate) package: &'a str,
    /// rustc's name of the machine it is for; none is this one.
    pub(crate) target: Option<&'a str>,
    /// The finished file.
    pub(crate) file: &'a Path,
    /// What it is made of besides crates.
    pub(crate) parts: Vec<Part>,
}

/// Something that is linked into a program, or carried by it, and is no crate.
pub(crate) struct Part {
    /// In the words of CycloneDX: `library`, `application`.
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: &'static str,
    /// SHA-256 of the file it was taken from, where it is one.
    pub(crate) sha256: Option<String>,
}

/// A crate as cargo tree shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Crate {
    name: String,
    version: String,
}

/// Crates, each with its licence and what it depends on; the program's own is the first that was shown.
#[derive(Debug, Default)]
struct Tree {
    own: Option<Crate>,
    crates: BTreeMap<Crate, (String, Vec<Crate>)>,
}

/// Writes the description of `program` beside it; where it is.
pub(crate) fn write(workspace: &Workspace, program: &Program<'_>) -> Result<PathBuf> {
    let bytes = fs::read(program.file).with_context(|| format!("cannot read {}", program.file.display()))?;
    let name = program.file.file_name().context("a program without a name")?.to_string_lossy().into_owned();
    let tree = Tree::ask(workspace, program)?;
    let lock = fs::read_to_string(workspace.root.join("Cargo.lock"))?;
    let described = describe(&name, &hex_digest(&bytes), &tree, &checksums(&lock), &program.parts)?;
    let path = program.file.with_file_name(format!("{name}{SUFFIX}"));
    let mut text = serde_json::to_vec_pretty(&described)?;
    text.push(b'\n');
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl Tree {
    /// What is linked into the program: neither what builds it (procedural macros, build scripts) nor what tests it.
    fn ask(workspace: &Workspace, program: &Program<'_>) -> Result<Self> {
        let mut command = workspace.cargo();
        command.args([
            "tree",
            "--locked",
            "--edges=normal,no-proc-macro",
            "--prefix=depth",
            "--format=|{p}|{l}",
        ]);
        command.args(["--package", program.package]);
        if let Some(target) = program.target {
            command.args(["--target", target]);
        }
        Self::parse(&process::output(&mut command)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut tree = Self::default();
        // From the root to the crate at hand.
        let mut above: Vec<Crate> = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let parse = || {
                let mut fields = line.splitn(3, '|');
                let depth: usize = fields.next()?.parse().ok()?;
                let (name, rest) = fields.next()?.split_once(" v")?;
                let version = rest.split(' ').next()?;
                let license = fields.next()?.trim_end_matches(" (*)");
                Some((depth, Crate { name: name.into(), version: version.into() }, license))
            };
            let (depth, found, license) =
                parse().with_context(|| format!("cargo tree printed other than expected: {line:?}"))?;
            ensure!(depth <= above.len(), "cargo tree leaves out a level before {line:?}");
            above.truncate(depth);
            if let Some(parent) = above.last() {
                let needs = &mut tree.crates.entry(parent.clone()).or_default().1;
                if !needs.contains(&found) {
                    needs.push(found.clone());
                }
            }
            tree.own.get_or_insert_with(|| found.clone());
            tree.crates.entry(found.clone()).or_default().0 = spdx(license);
            above.push(found);
        }
        Ok(tree)
    }
}

/// An SPDX expression: old manifests have a slash for its OR.
fn spdx(license: &str) -> String {
    license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

/// SHA-256 of each crate's archive, by name and version, as the lock file has them. Ours have none.
fn checksums(lock: &str) -> BTreeMap<Crate, String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
        line.and_then(|value| value.strip_suffix('"')).map(String::from)
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            let found = Crate { name: value(block, "name")?, version: value(block, "version")? };
            Some((found, value(block, "checksum")?))
        })
        .collect()
}

fn describe(
    file: &str,
    sha256: &str,
    tree: &Tree,
    checksums: &BTreeMap<Crate, String>,
    parts: &[Part],
) -> Result<Value> {
    let own = tree.own.as_ref().context("cargo tree printed nothing")?;
    let reference = |it: &Crate| match checksums.contains_key(it) {
        true => format!("pkg:cargo/{}@{}", it.name, it.version),
        false => format!("{}@{}", it.name, it.version),
    };
    let hashes = |sha256: &str| json!([{"alg": "SHA-256", "content": sha256}]);
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (it, (license, needs)) in &tree.crates {
        ensure!(!license.is_empty(), "{} {} names no licence", it.name, it.version);
        let mut needs: Vec<String> = needs.iter().map(reference).collect();
        if it == own {
            needs.extend(parts.iter().map(Part::reference));
        } else {
            let mut component = json!({
                "type": "library",
                "bom-ref": reference(it),
                "name": it.name,
                "version": it.version,
                "licenses": [{"expression": license}],
            });
            // What has no checksum is in no registry.
            if let Some(checksum) = checksums.get(it) {
                component["purl"] = reference(it).into();
                component["hashes"] = hashes(checksum);
            }
            components.push(component);
        }
        dependencies.push(json!({"ref": reference(it), "dependsOn": needs}));
    }
    for part in parts {
        let mut component = json!({
            "type": part.kind,
            "bom-ref": part.reference(),
            "name": part.name,
            "version": part.version,
            "licenses": [{"expression": part.license}],
        });
        if let Some(sha256) = &part.sha256 {
            component["hashes"] = hashes(sha256);
        }
        components.push(component);
    }
    let license = tree.crates.get(own).map(|(license, _)| license);
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "application",
                "bom-ref": reference(own),
                "name": file,
                "version": own.version,
                "licenses": [{"expression": license}],
                "hashes": hashes(sha256),
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

impl Part {
    fn reference(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0|sortie-runner v0.1.0 (/somewhere/runner)|MIT OR Apache-2.0
1|memchr v2.8.3|Unlicense/MIT
1|sha2 v0.11.1|MIT OR Apache-2.0
2|cfg-if v1.0.5|MIT OR Apache-2.0
1|sortie-protocol v0.1.0 (/somewhere/protocol)|MIT OR Apache-2.0
2|memchr v2.8.3|Unlicense/MIT
2|sha2 v0.11.1|MIT OR Apache-2.0 (*)
";

    const LOCK: &str = "\
[[package]]
name = \"memchr\"
version = \"2.8.3\"
source = \"a registry\"
checksum = \"00\"

[[package]]
name = \"sortie-protocol\"
version = \"0.1.0\"
dependencies = [
 \"memchr\",
]

[[package]]
name = \"sha2\"
version = \"0.11.1\"
checksum = \"11\"

[[package]]
name = \"cfg-if\"
version = \"1.0.5\"
checksum = \"22\"
";

    fn described() -> Value {
        let part = |name: &str, sha256: Option<&str>| Part {
            kind: "library",
            name: name.into(),
            version: "1".into(),
            license: "MIT",
            sha256: sha256.map(String::from),
        };
        let parts = [part("musl", Some("33")), part("std", None)];
        describe("sortie-runner-x", "44", &Tree::parse(TREE).unwrap(), &checksums(LOCK), &parts).unwrap()
    }

    #[test]
    fn every_crate_is_there_once_with_its_licence_and_checksum() {
        let described = described();
        let components = described["components"].as_array().unwrap();
        let names: Vec<&str> = components.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["cfg-if", "memchr", "sha2", "sortie-protocol", "musl", "std"]);
        let memchr = &components[1];
        assert_eq!(memchr["purl"], "pkg:cargo/memchr@2.8.3");
        assert_eq!(memchr["licenses"][0]["expression"], "Unlicense OR MIT");
        assert_eq!(memchr["hashes"][0]["content"], "00");
        assert!(components[3].get("purl").is_none(), "ours is in no registry");
        assert_eq!(described["metadata"]["component"]["hashes"][0]["content"], "44");
    }

    #[test]
    fn what_depends_on_what_is_told_also_where_cargo_shows_it_shortened() {
        let described = described();
        let needs = |name: &str| {
            let all = described["dependencies"].as_array().unwrap();
            all.iter().find(|d| d["ref"] == name).unwrap()["dependsOn"].clone()
        };
        assert_eq!(
            needs("sortie-protocol@0.1.0"),
            json!(["pkg:cargo/memchr@2.8.3", "pkg:cargo/sha2@0.11.1"])
        );
        assert_eq!(needs("pkg:cargo/sha2@0.11.1"), json!(["pkg:cargo/cfg-if@1.0.5"]));
        let own = needs("sortie-runner@0.1.0");
        assert!(own.as_array().unwrap().contains(&json!("musl@1")), "{own}");
    }

    #[test]
    fn what_cargo_prints_otherwise_is_an_error() {
        for text in ["sortie v0.1.0", "0|sortie|MIT", "1|sortie v0.1.0|MIT", "0|a v1|MIT\n2|b v1|MIT"] {
            assert!(Tree::parse(text).is_err(), "{text}");
        }
        let nameless = Tree::parse("0|a v1|").unwrap();
        assert!(describe("a", "", &nameless, &BTreeMap::new(), &[]).is_err(), "a crate without a licence");
    }

    #[test]
    fn the_runner_is_made_of_what_the_lock_file_has_and_of_nothing_that_tests_it() {
        let workspace = Workspace::find().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sortie-runner-x86_64-unknown-linux-musl");
        fs::write(&file, "a runner").unwrap();
        let target = Some("x86_64-unknown-linux-musl");
        let program = Program { package: "sortie-runner", target, file: &file, parts: Vec::new() };
        let written = write(&workspace, &program).unwrap();
        let described: Value = serde_json::from_slice(&fs::read(written).unwrap()).unwrap();
        let components = described["components"].as_array().unwrap();
        let named = |name: &str| components.iter().find(|c| c["name"] == name);
        for name in ["sha2", "serde_json", "sortie-protocol"] {
            assert!(named(name).is_some(), "{name} is missing");
        }
        for name in ["proptest", "schemars", "serde_derive", "tokio"] {
            assert!(named(name).is_none(), "{name} is not in the runner");
        }
        let unchecked: Vec<_> = components.iter().filter(|c| c.get("hashes").is_none()).collect();
        assert!(
            unchecked.iter().all(|c| c["name"] == "sortie-protocol"),
            "without a checksum: {unchecked:?}"
        );
    }
}
