//! What differs between two lists of packages. Pure: from rows to rows and text.

use sortie_protocol::command::pkg_ensure::PackageVersions;

use super::Row;

/// Packages whose versions differ.
pub(crate) fn changes(before: &[Row], after: &[Row]) -> Vec<PackageVersions> {
    let mut changes: Vec<PackageVersions> = Vec::new();
    for row in missing_from(before, after).into_iter().chain(missing_from(after, before)) {
        if changes.iter().all(|change| change.name != row.name) {
            changes.push(PackageVersions {
                name: row.name.clone(),
                previous_version: versions(before, row),
                installed_version: versions(after, row),
            });
        }
    }
    changes.retain(|change| change.previous_version != change.installed_version);
    changes
}

/// The rows that the others do not have. Both are in the same order but for what differs.
fn missing_from<'r>(rows: &'r [Row], others: &[Row]) -> Vec<&'r Row> {
    let mut at = 0;
    let mut missing = Vec::new();
    for row in rows {
        let (passed, next) = others.split_at(at);
        match next.iter().position(|other| other == row) {
            Some(found) => at += found + 1,
            None if passed.contains(row) => {}
            None => missing.push(row),
        }
    }
    missing
}

/// The versions of a package: of some, kernels above all, several are installed.
fn versions(rows: &[Row], package: &Row) -> Option<String> {
    let same = rows.iter().filter(|row| row.name == package.name && row.arch == package.arch);
    let versions: Vec<&str> = same.map(|row| row.version.as_str()).collect();
    (!versions.is_empty()).then(|| versions.join(", "))
}

/// `th-hello 1.0 -> 1.1, th-lib none -> 1.0`: the first few.
pub(crate) fn in_words(changes: &[PackageVersions]) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    let words: Vec<String> = changes
        .iter()
        .map(|c| {
            [&c.name, " ", &version(&c.previous_version), " -> ", &version(&c.installed_version)].concat()
        })
        .collect();
    match words.is_empty() {
        true => "no package changed".to_owned(),
        false => list(&words.iter().map(String::as_str).collect::<Vec<_>>()),
    }
}

/// What would be installed after a plan.
pub(crate) fn applied(before: &[Row], plan: Vec<Row>) -> Vec<Row> {
    let mut rows = before.to_vec();
    for mut planned in plan {
        if let Some(old) = rows.iter().find(|row| row.is_other_version_of(&planned)) {
            planned.arch.clone_from(&old.arch);
        }
        rows.retain(|row| !row.is_other_version_of(&planned));
        if !planned.version.is_empty() {
            rows.push(planned);
        }
    }
    rows
}

/// The difference between two lists of `NAME VERSION`.
pub(crate) fn diff<'a>(packages: impl Iterator<Item = &'a PackageVersions>) -> String {
    let mut sides = [String::new(), String::new()];
    for package in packages {
        for (side, version) in sides.iter_mut().zip([&package.previous_version, &package.installed_version]) {
            if let Some(version) = version {
                *side += &[&package.name, " ", version, "\n"].concat();
            }
        }
    }
    crate::diff::bounded(crate::diff::unified("packages", "packages", &sides[0], &sides[1]))
}

/// Names for a message: the first few.
pub(crate) fn list(names: &[&str]) -> String {
    let first = names.get(..8).unwrap_or(names).join(", ");
    if names.len() > 8 { first + ", …" } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, arch: &str, version: &str) -> Row {
        Row::new(name, arch, version)
    }

    fn change(name: &str, old: Option<&str>, new: Option<&str>) -> PackageVersions {
        PackageVersions {
            name: name.to_owned(),
            previous_version: old.map(str::to_owned),
            installed_version: new.map(str::to_owned),
        }
    }

    #[test]
    fn packages_that_came_went_and_changed_are_found() {
        let before = [row("a", "x", "1"), row("b", "x", "1"), row("kernel", "x", "5"), row("same", "x", "1")];
        let after = [
            row("a", "x", "2"),
            row("c", "x", "1"),
            row("kernel", "x", "5"),
            row("kernel", "x", "6"),
            row("same", "x", "1"),
        ];
        assert_eq!(
            changes(&before, &after),
            [
                change("a", Some("1"), Some("2")),
                change("b", Some("1"), None),
                change("c", None, Some("1")),
                change("kernel", Some("5"), Some("5, 6"))
            ]
        );
    }

    #[test]
    fn a_plan_is_applied_to_what_is_there() {
        let before = [row("a", "x", "1"), row("b", "x", "1")];
        let plan = vec![row("a", "", "2"), row("b", "", ""), row("c", "", "3")];
        assert_eq!(applied(&before, plan), [row("a", "x", "2"), row("c", "", "3")]);
    }

    #[test]
    fn a_diff_has_a_line_for_each_package_and_version() {
        let changes = [change("a", Some("1"), Some("2")), change("b", None, Some("1"))];
        assert_eq!(diff(changes.iter()), "--- packages\n+++ packages\n@@ -1 +1,2 @@\n-a 1\n+a 2\n+b 1\n");
        assert_eq!(diff([change("a", Some("1"), Some("1"))].iter()), "");
    }
}
