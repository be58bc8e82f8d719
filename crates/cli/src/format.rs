//! Numbers as people read them.

use std::time::{Duration, SystemTime};

/// Bytes with a binary unit: "14.9 MiB".
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// "1 miss", "2 misses".
pub(crate) fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Seconds with two decimals: "0.31 s".
pub(crate) fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

/// How long ago, in the largest unit: "3 h ago".
pub(crate) fn ago(time: SystemTime) -> String {
    let Ok(age) = SystemTime::now().duration_since(time) else { return "just now".into() };
    // What was never used has the first of all times.
    if age > Duration::from_secs(40 * 365 * 86400) {
        return "never".into();
    }
    match age.as_secs() {
        0..60 => "just now".into(),
        _ => format!("{} ago", self::age(age)),
    }
}

/// A span of time in the largest unit: "3 h".
pub(crate) fn age(span: Duration) -> String {
    match span.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86400),
    }
}

/// The day of a time in seconds since 1970, in UTC: "2026-11-21".
///
/// By the "days from civil" reckoning in reverse: years begin in March, so that
/// the leap day is a year's last.
pub(crate) fn day(at: u64) -> String {
    let days = at / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_change_units_where_the_number_would_reach_1024() {
        let texts = [0, 1023, 1024, 1_048_524, 1_048_576, 15_623_782].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1023.9 KiB", "1.0 MiB", "14.9 MiB"]);
    }

    #[test]
    fn a_time_in_the_future_is_just_now() {
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(1_000_000)), "just now");
        assert_eq!(ago(SystemTime::now() - Duration::from_secs(7300)), "2 h ago");
        assert_eq!(ago(SystemTime::UNIX_EPOCH), "never");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = [0, 951_782_399, 951_782_400, 1_709_164_800, 1_795_219_200, 4_107_542_399].map(day);
        assert_eq!(
            days,
            ["1970-01-01", "2000-02-28", "2000-02-29", "2024-02-29", "2026-11-21", "2100-02-28"]
        );
    }
}
