//! `[gc]`: how the cache is kept in bounds.

use anyhow::Result;
use serde::Deserialize;
use smolcellar_store::gc::{Amount, Policy, parse_age};

use crate::exit::Usage;

/// What holds where the configuration says nothing: generous, but bounded.
const MAX_AGE: &str = "30d";
const MAX_SIZE: &str = "20%";
const KEEP_LAST: u32 = 2;

/// `[gc]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GcTable {
    auto: Option<bool>,
    max_age: Option<String>,
    max_size: Option<Size>,
    min_free: Option<Size>,
    keep_last: Option<u32>,
}

/// A number of bytes, or a text with a unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

impl GcTable {
    /// Whether the cache is collected after builds.
    pub(crate) fn auto(&self) -> bool {
        self.auto.unwrap_or(true)
    }

    /// The policy; `place` is where the table is. "off" sets no limit.
    pub(crate) fn policy(&self, place: &str) -> Result<Policy> {
        let wrong = |key: &str, problem: String| Usage(format!("{place}: gc.{key}: {problem}"));
        let amount = |key: &str, size: Option<&Size>, default: Option<&str>| match (size, default) {
            (Some(Size::Bytes(bytes)), _) => Ok(Some(Amount::Bytes(*bytes))),
            (Some(Size::Text(text)), _) if text == "off" => Ok(None),
            (Some(Size::Text(text)), _) => text.parse().map(Some).map_err(|problem| wrong(key, problem)),
            (None, default) => Ok(default.and_then(|text| text.parse().ok())),
        };
        let max_age = match self.max_age.as_deref().unwrap_or(MAX_AGE) {
            "off" => None,
            text => Some(parse_age(text).map_err(|problem| wrong("max-age", problem))?),
        };
        Ok(Policy {
            max_age,
            max_size: amount("max-size", self.max_size.as_ref(), Some(MAX_SIZE))?,
            min_free: amount("min-free", self.min_free.as_ref(), None)?,
            keep_last: self.keep_last.unwrap_or(KEEP_LAST),
            all: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<Policy> {
        toml::from_str::<GcTable>(text).unwrap().policy("x.toml")
    }

    #[test]
    fn without_a_word_the_cache_is_bounded() {
        let policy = policy("").unwrap();
        assert_eq!(policy.max_age.map(|age| age.as_secs()), Some(30 * 86_400));
        assert_eq!((policy.max_size, policy.min_free), (Some(Amount::Percent(20.0)), None));
        assert_eq!((policy.keep_last, policy.all), (2, false));
    }

    #[test]
    fn each_limit_can_be_set_and_taken_off() {
        let set = policy("max-age = \"12h\"\nmax-size = 4096\nmin-free = \"10GB\"\nkeep-last = 0").unwrap();
        assert_eq!(set.max_age.map(|age| age.as_secs()), Some(43_200));
        assert_eq!(set.max_size, Some(Amount::Bytes(4096)));
        assert_eq!((set.min_free, set.keep_last), (Some(Amount::Bytes(10_000_000_000)), 0));
        let off = policy("max-age = \"off\"\nmax-size = \"off\"").unwrap();
        assert_eq!((off.max_age, off.max_size), (None, None));
    }

    #[test]
    fn what_cannot_be_understood_is_named_with_its_place() {
        for (text, key) in [("max-age = \"soon\"", "max-age"), ("max-size = \"lots\"", "max-size")] {
            let error = policy(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("x.toml: gc.{key}: ")), "{error}");
            assert!(error.is::<Usage>());
        }
        assert!(toml::from_str::<GcTable>("max_age = \"1d\"").is_err());
    }
}
