//! Unified diffs of text, as `diff -u` writes them. Lines in, text out; it knows no files.
//!
//! Written here because a diff crate is a third of the whole runner: one algorithm is enough.

use std::fmt::Write;

/// Unchanged lines around a change.
const CONTEXT: usize = 3;
/// Changed lines up to which the shortest diff is looked for, at four bytes for each pair of them. Beyond, the lines
/// between the common beginning and the common end are shown as replaced.
const MOST_CHANGES: usize = 1_000;

/// Longest diff that is sent, in bytes.
const LONGEST: usize = 256 * 1024;

/// A diff that is not too long to be sent: the rest of a longer one is left out, and that is said.
pub(crate) fn bounded(mut diff: String) -> String {
    if diff.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| diff.is_char_boundary(*at)).unwrap_or(0);
        diff.truncate(end);
        diff.push_str("\n(the diff goes on)\n");
    }
    diff
}

/// The unified diff between two texts under these names; empty where they are equal.
pub(crate) fn unified(from: &str, to: &str, before: &str, after: &str) -> String {
    let old: Vec<&str> = before.split_inclusive('\n').collect();
    let new: Vec<&str> = after.split_inclusive('\n').collect();
    let changes = changes(&old, &new);
    let mut text = String::new();
    if changes.is_empty() {
        return text;
    }
    let _ = write!(text, "--- {from}\n+++ {to}\n");
    let mut rest = &changes[..];
    while let Some(first) = rest.first() {
        let joined =
            rest.windows(2).take_while(|pair| pair[1].old.start - pair[0].old.end <= 2 * CONTEXT).count();
        let (hunk, later) = rest.split_at(joined + 1);
        rest = later;
        let last = &hunk[joined];
        let lead = first.old.start.min(CONTEXT);
        let trail = (old.len() - last.old.end).min(CONTEXT);
        let (old_start, new_start) = (first.old.start - lead, first.new.start - lead);
        let (old_end, new_end) = (last.old.end + trail, last.new.end + trail);
        let old_range = range(old_start, old_end - old_start);
        let _ = writeln!(text, "@@ -{old_range} +{} @@", range(new_start, new_end - new_start));
        let mut at = old_start;
        for change in hunk {
            lines(&mut text, ' ', &old[at..change.old.start]);
            lines(&mut text, '-', &old[change.old.clone()]);
            lines(&mut text, '+', &new[change.new.clone()]);
            at = change.old.end;
        }
        lines(&mut text, ' ', &old[at..old_end]);
    }
    text
}

/// Lines of the old text that stand where these lines of the new one do; one of the two may be empty.
#[derive(Debug, PartialEq)]
struct Change {
    old: std::ops::Range<usize>,
    new: std::ops::Range<usize>,
}

/// POSIX diff's `start,count`: counted from 1, and the line before where there are none.
fn range(start: usize, count: usize) -> String {
    match count {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        _ => format!("{},{count}", start + 1),
    }
}

fn lines(text: &mut String, mark: char, lines: &[&str]) {
    for line in lines {
        text.push(mark);
        text.push_str(line);
        if !line.ends_with('\n') {
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
}

/// The changes that make `new` of `old`, in order, none touching the next.
fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    if old.is_empty() && new.is_empty() {
        return Vec::new();
    }
    let Some(kept) = longest_common(old, new) else {
        return vec![Change { old: head..head + old.len(), new: head..head + new.len() }];
    };
    let mut changes = Vec::new();
    let (mut x, mut y) = (0, 0);
    for (kept_x, kept_y) in kept.into_iter().chain([(old.len(), new.len())]) {
        if x < kept_x || y < kept_y {
            changes.push(Change { old: head + x..head + kept_x, new: head + y..head + kept_y });
        }
        (x, y) = (kept_x + 1, kept_y + 1);
    }
    changes
}

/// Pairs of lines that stay, by Myers' greedy algorithm (An O(ND) Difference Algorithm, 1986, figure 2); `None` where
/// that takes more than [`MOST_CHANGES`].
fn longest_common(old: &[&str], new: &[&str]) -> Option<Vec<(usize, usize)>> {
    let most = (old.len() + new.len()).min(MOST_CHANGES);
    // The furthest x on each diagonal k = x - y at `most + 1 + k`, and what it was on -d..=d before each round d.
    let mut furthest = vec![0_u32; 2 * most + 3];
    let centre = most + 1;
    let mut rounds: Vec<Vec<u32>> = Vec::new();
    for d in 0..=most {
        rounds.push(furthest[centre - d..=centre + d].to_vec());
        for at in (centre - d..=centre + d).step_by(2) {
            let down = at == centre - d || (at != centre + d && furthest[at - 1] < furthest[at + 1]);
            let mut x = if down { furthest[at + 1] as usize } else { furthest[at - 1] as usize + 1 };
            let mut y = x + centre - at;
            while x < old.len() && y < new.len() && old[x] == new[y] {
                (x, y) = (x + 1, y + 1);
            }
            furthest[at] = x as u32;
            if x >= old.len() && y >= new.len() {
                return Some(walk_back(&rounds, old.len(), new.len()));
            }
        }
    }
    None
}

fn walk_back(rounds: &[Vec<u32>], mut x: usize, mut y: usize) -> Vec<(usize, usize)> {
    let mut kept = Vec::new();
    for (d, furthest) in rounds.iter().enumerate().rev() {
        // Diagonal k stands at d + k here.
        let at = d + x - y;
        let (from_x, from_y) = if d == 0 {
            (0, 0)
        } else {
            let down = at == 0 || (at != 2 * d && furthest[at - 1] < furthest[at + 1]);
            let from = if down { at + 1 } else { at - 1 };
            let from_x = furthest[from] as usize;
            (from_x, from_x + d - from)
        };
        // Back along the diagonal to where the one change of this round ended.
        let end_x = if d == 0 { 0 } else { from_x + usize::from(x + from_y > y + from_x) };
        while x > end_x && y > 0 {
            (x, y) = (x - 1, y - 1);
            kept.push((x, y));
        }
        (x, y) = (from_x, from_y);
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Applies a unified diff the way patch(1) does, without fuzz.
    fn patched(before: &str, diff: &str) -> String {
        let old: Vec<&str> = before.split_inclusive('\n').collect();
        let mut made: Vec<String> = Vec::new();
        let mut at = 0;
        let mut lines = diff.lines().skip(2).peekable();
        while let Some(line) = lines.next() {
            if let Some(header) = line.strip_prefix("@@ -") {
                let (start, count) =
                    header.split(' ').next().unwrap().split_once(',').unwrap_or((header, "1"));
                let start: usize = start.split(' ').next().unwrap().parse().unwrap();
                let start = if count == "0" { start } else { start - 1 };
                made.extend(old[at..start].iter().map(ToString::to_string));
                at = start;
                continue;
            }
            let (mark, text) = line.split_at(1);
            let cut = lines.peek().is_some_and(|next| next.starts_with('\\'));
            let text = if cut { lines.next().map(|_| text.to_owned()).unwrap() } else { format!("{text}\n") };
            if mark != "+" {
                assert_eq!(old[at], text, "the diff removes or keeps what is not there");
                at += 1;
            }
            if mark != "-" {
                made.push(text);
            }
        }
        made.extend(old[at..].iter().map(ToString::to_string));
        made.concat()
    }

    #[test]
    fn a_change_stands_in_three_lines_of_context() {
        let before = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let after = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n";
        let expected = "--- a\n+++ b\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n";
        assert_eq!(unified("a", "b", before, after), expected);
    }

    #[test]
    fn a_new_file_an_emptied_one_and_a_missing_newline_are_shown_as_diff_does() {
        assert_eq!(unified("/dev/null", "b", "", "x\n"), "--- /dev/null\n+++ b\n@@ -0,0 +1 @@\n+x\n");
        assert_eq!(unified("a", "b", "x\n", ""), "--- a\n+++ b\n@@ -1 +0,0 @@\n-x\n");
        let expected = "--- a\n+++ b\n@@ -1 +1 @@\n-x\n+x\n\\ No newline at end of file\n";
        assert_eq!(unified("a", "b", "x\n", "x"), expected);
        assert_eq!(unified("a", "b", "same\n", "same\n"), "");
    }

    #[test]
    fn far_changes_get_hunks_of_their_own_and_near_ones_share_one() {
        let before: String = (0..40).map(|n| format!("{n}\n")).collect();
        let far = before.replace("\n5\n", "\nx\n").replace("\n30\n", "\ny\n");
        assert_eq!(unified("a", "b", &before, &far).matches("@@ -").count(), 2);
        let near = before.replace("\n5\n", "\nx\n").replace("\n12\n", "\ny\n");
        assert_eq!(unified("a", "b", &before, &near).matches("@@ -").count(), 1);
    }

    #[test]
    fn too_many_changes_still_make_a_diff_that_applies() {
        let before: String = (0..3_000).map(|n| format!("old {n}\n")).collect();
        let after: String = (0..3_000).map(|n| format!("new {n}\n")).collect();
        assert_eq!(patched(&before, &unified("a", "b", &before, &after)), after);
    }

    fn text() -> impl Strategy<Value = String> {
        (proptest::collection::vec("[a-d]{0,1}\n", 0..40), "[a-d]{0,1}")
            .prop_map(|(lines, end)| lines.concat() + &end)
    }

    proptest! {
        #[test]
        fn a_diff_makes_the_new_text_of_the_old(before in text(), after in text()) {
            let diff = unified("a", "b", &before, &after);
            prop_assert_eq!(patched(&before, &diff), after.clone());
            prop_assert_eq!(diff.is_empty(), before == after);
        }

        #[test]
        fn no_shorter_diff_exists(before in text(), after in text()) {
            let (old, new): (Vec<_>, Vec<_>) =
                (before.split_inclusive('\n').collect(), after.split_inclusive('\n').collect());
            let changed: usize = changes(&old, &new).iter().map(|c| c.old.len() + c.new.len()).sum();
            let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
            for (x, a) in old.iter().enumerate() {
                for (y, b) in new.iter().enumerate() {
                    common[x + 1][y + 1] =
                        if a == b { common[x][y] + 1 } else { common[x][y + 1].max(common[x + 1][y]) };
                }
            }
            prop_assert_eq!(changed, old.len() + new.len() - 2 * common[old.len()][new.len()]);
        }
    }
}
