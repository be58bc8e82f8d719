//! `Content-Range` of downloads and `Range` of uploads.

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4); a total of `*` is `None`.
pub(crate) fn content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// How many bytes of an upload the registry has: `Range: 0-LAST`, with or
/// without `bytes=` (distribution specification, "Pushing a blob in chunks").
///
/// `0-0` is taken for none: docker-registry means that by it, and of a registry
/// that means one byte this costs a retry.
pub(crate) fn received(header: &str) -> Option<u64> {
    let header = header.trim();
    let (first, last) = header.strip_prefix("bytes=").unwrap_or(header).split_once('-')?;
    match (number(first)?, number(last)?) {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

/// Digits only: `u64::from_str` also takes a plus.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_registries_write_them() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for bad in ["", "bytes 0-10/10", "bytes 9-0/10", "items 0-9/10", "bytes */10", "bytes +1-2/3"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!([received("0-9"), received("bytes=0-9"), received("0-0")], [Some(10), Some(10), Some(0)]);
        for bad in ["", "1-9", "0-", "-1", &format!("0-{}", u64::MAX)] {
            assert_eq!(received(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(bytes[ =])?[0-9*/+-]{0,50}") {
            let _ = (content_range(&text), received(&text));
        }

        #[test]
        fn a_range_reads_back(first in 0..u64::MAX / 2, length in 1..u64::MAX / 2) {
            let (last, total) = (first + length - 1, first + length);
            prop_assert_eq!(content_range(&format!("bytes {first}-{last}/{total}")), Some((first, last, Some(total))));
        }
    }
}
