//! Values of ssh_config(5): flags, numbers, times, lists.

use std::time::Duration;

/// `yes`, `true`, `no` or `false`, in any case.
pub(super) fn yes_or_no(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(format!("it is yes or no, not {value:?}")),
    }
}

/// A whole number of at most 2³¹-1, as ssh takes it.
pub(super) fn number(value: &str) -> Result<u32, String> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<i32>() {
        Ok(number) if digits => Ok(number.unsigned_abs()),
        _ => Err(format!("{value:?} is not a number from 0 to 2147483647")),
    }
}

/// TIME FORMATS of sshd_config(5): `90`, `1h30m`; at most 2³¹-1 seconds. `None` for `none`.
pub(super) fn time(value: &str) -> Result<Option<Duration>, String> {
    if value == "none" {
        return Ok(None);
    }
    let wrong = || format!("{value:?} is not a time such as 90, 15m or 1h30m");
    let mut seconds: u64 = 0;
    let mut rest = value;
    let mut plain = false;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let count: u64 = rest[..end].parse().map_err(|_| wrong())?;
        let mut unit = rest[end..].chars();
        let factor = match unit.next().map(|c| c.to_ascii_lowercase()) {
            // Seconds once only: without a unit they would swallow what follows.
            None | Some('s') if plain => return Err(wrong()),
            None | Some('s') => {
                plain = true;
                1
            }
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            Some(_) => return Err(wrong()),
        };
        seconds = count.checked_mul(factor).and_then(|n| n.checked_add(seconds)).ok_or_else(wrong)?;
        rest = unit.as_str();
    }
    if value.is_empty() || seconds > i32::MAX.unsigned_abs().into() {
        return Err(wrong());
    }
    Ok(Some(Duration::from_secs(seconds)))
}

/// A number of bytes with `K`, `M` or `G` behind it or nothing.
pub(super) fn size(value: &str) -> Result<u64, String> {
    let wrong = || format!("{value:?} is not a number of bytes such as 512M");
    let (digits, shift) = match value.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&value[..value.len() - 1], 10),
        Some(b'M') => (&value[..value.len() - 1], 20),
        Some(b'G') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A list of algorithms as written, with a leading `+`, `-` or `^` where there is one.
pub(super) fn algorithms(value: &str) -> Result<&str, String> {
    let names = value.strip_prefix(['+', '-', '^']).unwrap_or(value);
    let well_formed = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
    if names.split(',').all(well_formed) {
        Ok(value)
    } else {
        Err(format!("{value:?} is not a list of algorithms with commas between"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_sshd_config() {
        for (text, seconds) in
            [("0", 0), ("90", 90), ("90s", 90), ("1h30m", 5400), ("2W1d", 1_296_000), ("1m5", 65)]
        {
            assert_eq!(time(text), Ok(Some(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(time("none"), Ok(None));
        for text in ["", "x", "m", "1x", "-1", "1.5", "5s5", "5s5s", "2147483648", "99999999999999999999"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_take_a_suffix() {
        assert_eq!((size("16"), size("1k"), size("2G")), (Ok(16), Ok(1024), Ok(2 << 30)));
        for text in ["", "K", "1T", "-1", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_of_algorithms_have_no_gaps() {
        for text in ["a", "a,b", "+a", "-a*,b", "^a"] {
            assert_eq!(algorithms(text), Ok(text));
        }
        for text in ["", "+", "a,,b", ",a", "a b"] {
            assert!(algorithms(text).is_err(), "{text}");
        }
    }
}
