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
        for text in ["", "%", "101%", "5 cows", "-1", "1e3", "1..2", "99999TiB"] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(error.contains("20%"), "{text}: {error}");
        }
    }
}
