//! A file of a listing as one short line, for storing tens of thousands.
//!
//! Fields, separated by spaces: kind and mode (`f644`, octal), size, digest
//! (hex or `-`), then, if there are any, `@` and the stat facts (modification,
//! change less modification, inode, separated by commas), and `+` and the
//! digest of the attributes. Numbers are in base 36. About 100 bytes.

use std::fmt;

use serde::{Deserialize, Serialize};
use smolcellar_store::Digest;

use super::listing::{ContextFile, FileKind, FileStat};

impl fmt::Display for ContextFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.map_or_else(|| "-".to_owned(), |digest| digest.hex());
        let (kind, size) = (char::from(self.kind.letter()), base36(self.size.into()));
        write!(f, "{kind}{:o} {size} {digest}", self.mode)?;
        if let Some(stat) = self.stat {
            let since = stat.ctime.saturating_sub(stat.mtime);
            write!(f, " @{},{},{}", base36(stat.mtime), base36(since), base36(stat.inode.into()))?;
        }
        self.attributes.map_or(Ok(()), |attributes| write!(f, " +{}", attributes.hex()))
    }
}

/// Undoes [`fmt::Display`].
fn parse(text: &str) -> Option<ContextFile> {
    let mut fields = text.split(' ');
    let what = fields.next()?;
    let kind = match what.as_bytes().first()? {
        b'f' => FileKind::File,
        b'd' => FileKind::Folder,
        b'l' => FileKind::Link,
        b'o' => FileKind::Other,
        _ => return None,
    };
    let mode = u16::from_str_radix(what.get(1..)?, 8).ok().filter(|mode| *mode <= 0o7777)?;
    let size = u64::from_str_radix(fields.next()?, 36).ok()?;
    let digest = match fields.next()? {
        "-" => None,
        hex => Some(Digest::from_hex(hex).ok()?),
    };
    let mut file = ContextFile { kind, mode, size, digest, attributes: None, stat: None };
    for field in fields {
        if let Some(hex) = field.strip_prefix('+') {
            file.attributes = Some(Digest::from_hex(hex).ok()?);
        } else {
            let mut numbers = field.strip_prefix('@')?.split(',');
            let mut number = || i128::from_str_radix(numbers.next()?, 36).ok();
            let (mtime, since, inode) = (number()?, number()?, number()?);
            let ctime = mtime.checked_add(since)?;
            file.stat = Some(FileStat { mtime, ctime, inode: u64::try_from(inode).ok()? });
        }
    }
    Some(file).filter(|file| file.to_string() == text)
}

fn base36(number: i128) -> String {
    let mut digits = Vec::new();
    let mut rest = number.unsigned_abs();
    loop {
        digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    digits.extend((number < 0).then_some('-'));
    digits.into_iter().rev().collect()
}

impl Serialize for ContextFile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContextFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| serde::de::Error::custom("not a file of a listing"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn any_file() -> impl Strategy<Value = ContextFile> {
        let kind =
            prop::sample::select(vec![FileKind::File, FileKind::Folder, FileKind::Link, FileKind::Other]);
        let digest = || prop::option::of(any::<u8>().prop_map(|byte| Digest::of(&[byte])));
        let stat = prop::option::of((any::<i64>(), any::<i64>(), any::<u64>()));
        (kind, 0..=0o7777u16, any::<u64>(), digest(), digest(), stat).prop_map(
            |(kind, mode, size, digest, attributes, stat)| {
                let stat = stat.map(|(m, c, inode)| FileStat { mtime: m.into(), ctime: c.into(), inode });
                ContextFile { kind, mode, size, digest, attributes, stat }
            },
        )
    }

    #[test]
    fn an_ordinary_file_takes_about_a_hundred_bytes() {
        let time = 1_795_258_699_123_456_789;
        let stat = FileStat { mtime: time, ctime: time + 1_000, inode: 40_000_000 };
        let digest = Some(Digest::of(b""));
        let file = ContextFile {
            kind: FileKind::File,
            mode: 0o644,
            size: 20_000,
            digest,
            attributes: None,
            stat: Some(stat),
        };
        let text = file.to_string();
        assert!(text.starts_with("f644 ffk e3b0c44298fc"), "{text}");
        assert!(text.len() <= 100, "{}: {text}", text.len());
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(file in any_file()) {
            prop_assert_eq!(parse(&file.to_string()), Some(file));
        }

        #[test]
        fn parsing_never_panics(text in "[fdlo][0-7]{1,4} [0-9a-z+-]{1,3} -( [@+,0-9a-z-]{0,30})?") {
            let _ = parse(&text);
        }
    }
}
