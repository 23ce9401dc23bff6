//! RFC 3339 timestamps in UTC, as the envelope carries them.
//!
//! The clock itself stays outside: callers hand in seconds and nanoseconds since the Unix epoch.

use std::fmt;

/// A point in time, written as RFC 3339 in UTC with the trailing zeros of the fraction trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

impl Timestamp {
    /// `seconds` since 1970-01-01T00:00:00Z (held to the years 0000 to 9999, which RFC 3339 can write) and
    /// `nanoseconds` in 0..=999 999 999 (a larger value is held to that).
    #[must_use]
    pub fn from_unix(seconds: i64, nanoseconds: u32) -> Self {
        const YEAR_0: i64 = -62_167_219_200;
        const YEAR_9999_END: i64 = 253_402_300_799;
        Self { seconds: seconds.clamp(YEAR_0, YEAR_9999_END), nanoseconds: nanoseconds.min(999_999_999) }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.seconds.div_euclid(86_400);
        let second_of_day = self.seconds.rem_euclid(86_400);
        // Days to civil date by eras of 400 years, with years that begin in March so that leap days fall at their end.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanoseconds != 0 {
            let fraction = format!("{:09}", self.nanoseconds);
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// Whether `text` is an RFC 3339 date-time (§5.6), with any offset; leap seconds are accepted.
#[must_use]
pub fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
    };
    let is = |at: usize, set: &[u8]| bytes.get(at).is_some_and(|b| set.contains(b));
    let date_time = || -> Option<bool> {
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u32::from(leap),
            _ => return Some(false),
        };
        let separators = is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":");
        let time = number(11, 13)? < 24 && number(14, 16)? < 60 && number(17, 19)? < 61;
        Some(separators && time && day >= 1 && day <= days)
    };
    if date_time() != Some(true) {
        return false;
    }
    let mut at = 19;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        at += 1 + digits;
    }
    if is(at, b"Zz") {
        return bytes.len() == at + 1;
    }
    is(at, b"+-")
        && is(at + 3, b":")
        && bytes.len() == at + 6
        && number(at + 1, at + 3).is_some_and(|h| h < 24)
        && number(at + 4, at + 6).is_some_and(|m| m < 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 0, "2000-02-28T23:59:59Z"),
            (951_782_400, 500_000_000, "2000-02-29T00:00:00.5Z"),
            (1_763_716_503, 52_129_048, "2025-11-21T09:15:03.052129048Z"),
            (-1, 1, "1969-12-31T23:59:59.000000001Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
            (i64::MAX, 0, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, nanoseconds, text) in cases {
            assert_eq!(Timestamp::from_unix(seconds, nanoseconds).to_string(), text);
            assert!(is_rfc3339(text));
        }
    }

    #[test]
    fn what_is_not_a_date_time_is_refused() {
        for good in ["2024-01-01T00:00:00Z", "2024-02-29t23:59:60.1+01:00", "2024-01-01T00:00:00-00:30"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "now",
            "2024-01-01",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+1:00",
            "2024-01-01T00:00:00Zx",
            "2024-01-01 00:00:00Z",
            "2024-0é-01T00:00:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
