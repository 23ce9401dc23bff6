//! What differs between two lists of packages. Pure: from rows to rows and text.

use std::collections::BTreeMap;

use sortie_protocol::command::pkg_ensure::PackageVersions;

use super::Row;

/// Packages whose versions differ.
pub(crate) fn changes(before: &[Row], after: &[Row]) -> Vec<PackageVersions> {
    let mut versions: BTreeMap<(&str, &str), [String; 2]> = BTreeMap::new();
    for (at, rows) in [before, after].into_iter().enumerate() {
        for row in rows {
            let text = &mut versions.entry((&row.name, &row.arch)).or_default()[at];
            // Of some packages, kernels above all, several versions are installed.
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(&row.version);
        }
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let change = |((name, _), [old, new]): ((&str, &str), [String; 2])| {
        (old != new).then(|| PackageVersions {
            name: name.to_owned(),
            previous_version: some(old),
            installed_version: some(new),
        })
    };
    versions.into_iter().filter_map(change).collect()
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
                side.push_str(&format!("{} {version}\n", package.name));
            }
        }
    }
    crate::diff::bounded(crate::diff::unified("packages", "packages", &sides[0], &sides[1]))
}

/// Names for a message: the first few.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    format!("{}{more}", names[..names.len().min(8)].join(", "))
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
