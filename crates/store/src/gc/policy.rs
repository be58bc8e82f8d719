//! What a person wants of the store's size.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How the store is kept in bounds. The default keeps everything that anything
/// may still use.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Policy {
    /// What was not used for longer goes.
    pub max_age: Option<Duration>,
    /// The store is to take this much of the disk at most.
    pub max_size: Option<Amount>,
    /// The disk is to have this much free at least.
    pub min_free: Option<Amount>,
    /// So many of each agent's artifacts stay, those used last.
    pub keep_last: u32,
    /// All goes that nothing holds.
    pub all: bool,
}

/// An amount of disk space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Per cent of the file system that the store is on.
    Percent(f64),
}

impl Amount {
    /// In bytes, on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    /// `20%`, `4096`, `500 MB`, `1.5GiB`: decimal and binary units.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no amount; write it as 20%, 50GB or 1.5GiB");
        let digits = text.trim().find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.trim().len());
        let (number, unit) = text.trim().split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "%" if number <= 100.0 => return Ok(Self::Percent(number)),
            "%" => return Err(format!("'{text}' is more than there is")),
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1048576.0,
            "g" | "gib" => 1073741824.0,
            "t" | "tib" => 1099511627776.0,
            _ => return Err(wrong()),
        };
        let bytes = number * factor;
        // Above this, a float no longer holds every byte, and no disk is so large.
        if !bytes.is_finite() || bytes > 9e15 {
            return Err(wrong());
        }
        Ok(Self::Bytes(bytes as u64))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// An age: `30d`, `12h`, `45m`, `90s`, `2w`.
///
/// # Errors
/// A text that says how to write it.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no age; write it as 30d, 12h or 45m");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_decimal_and_binary_units_and_per_cent() {
        let parsed = |text: &str| text.parse::<Amount>().unwrap();
        assert_eq!(parsed("20%"), Amount::Percent(20.0));
        assert_eq!(parsed("20%").of(1000), 200);
        assert_eq!(parsed("4096").of(1), 4096);
        assert_eq!(parsed("1.5GiB").of(1), 1_610_612_736);
        assert_eq!(parsed(" 50 GB ").of(1), 50_000_000_000);
        assert_eq!(parsed("10k").of(1), 10_240);
        assert!("101%".parse::<Amount>().unwrap_err().contains("more than there is"));
        for text in ["", "%", "5 cows", "-1", "1e3", "1..2", "99999TiB"] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(error.contains("20%"), "{text}: {error}");
        }
    }

    #[test]
    fn ages_have_one_unit() {
        let seconds = |text| parse_age(text).map(|age| age.as_secs());
        assert_eq!(seconds("30d"), Ok(2_592_000));
        assert_eq!(seconds(" 12 h "), Ok(43_200));
        assert_eq!(seconds("2w"), Ok(1_209_600));
        for text in ["", "d", "30", "1.5h", "1y", "-1d", "99999999999999999999w", "9999999999999999w"] {
            assert!(parse_age(text).unwrap_err().contains("30d"), "{text}");
        }
    }
}
