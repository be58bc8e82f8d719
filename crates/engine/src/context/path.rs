//! Paths within a context: bytes, as the file system has them.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A path relative to the context, its parts joined by `/`.
///
/// Shown and stored as text that loses nothing: a backslash is `\\`, and each
/// byte that is not UTF-8 or belongs to a control character is `\xNN`. So it
/// is also safe to print.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextPath(Vec<u8>);

impl ContextPath {
    /// From the bytes of a path.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a path of the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Undoes [`fmt::Display`]. `None`: it would print otherwise.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match (first, rest) {
                (b'\\', [b'\\', after @ ..]) => {
                    bytes.push(b'\\');
                    rest = after;
                }
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digit = |byte: &u8| char::from(*byte).to_digit(16);
                    bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                    rest = after;
                }
                (b'\\', _) => return None,
                (byte, _) => bytes.push(*byte),
            }
        }
        Some(Self(bytes)).filter(|path| path.to_string() == text)
    }
}

impl fmt::Display for ContextPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
        };
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    control if control.is_control() => hex(f, control.encode_utf8(&mut [0; 4]).as_bytes())?,
                    other => f.write_char(other)?,
                }
            }
            hex(f, chunk.invalid())?;
        }
        Ok(())
    }
}

impl Serialize for ContextPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContextPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an escaped path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_names_are_shown_without_loss_and_without_control_characters() {
        let path = ContextPath::new(&b"a\\b/\xff\xe2\x82/\x1b[1m/\xc2\x9b\xc3\xa9"[..]);
        assert_eq!(path.to_string(), r"a\\b/\xff\xe2\x82/\x1b[1m/\xc2\x9bé");
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(bytes: Vec<u8>) {
            let path = ContextPath::new(bytes);
            prop_assert_eq!(ContextPath::parse(&path.to_string()), Some(path));
        }

        #[test]
        fn parsing_accepts_only_what_it_prints(text in r"[a\\x0-9fé\n]{0,12}") {
            if let Some(path) = ContextPath::parse(&text) {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
