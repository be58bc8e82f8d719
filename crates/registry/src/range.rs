//! The two range headers: what a client wants of a blob (RFC 9110, section
//! 14.2), and where a piece of an upload belongs (OCI distribution
//! specification, "Pushing a blob in chunks").

/// What part of a blob was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: there is no range, or none that has to be understood.
    Whole,
    /// These bytes, both ends included.
    Part {
        /// The offset of the first byte.
        first: u64,
        /// The offset of the last byte.
        last: u64,
    },
    /// Bytes that there are none of.
    Outside,
}

/// What a `Range` header wants of `size` bytes. Units other than bytes, lists
/// and nonsense are no ranges: RFC 9110 lets a server ignore all three.
pub(crate) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some((unit, set)) = header.and_then(|text| text.split_once('=')) else { return Wanted::Whole };
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    match (number(first), number(last)) {
        // The last so many.
        (None, Some(count)) if first.is_empty() => match (count, size) {
            (0, _) | (_, 0) => Wanted::Outside,
            _ => Wanted::Part { first: size.saturating_sub(count), last: size - 1 },
        },
        (Some(first), None) if last.is_empty() && first < size => Wanted::Part { first, last: size - 1 },
        (Some(_), None) if last.is_empty() => Wanted::Outside,
        (Some(first), Some(last)) if first <= last => match first < size {
            true => Wanted::Part { first, last: last.min(size - 1) },
            false => Wanted::Outside,
        },
        _ => Wanted::Whole,
    }
}

/// Where a piece of an upload belongs, by its `Content-Range`: `FIRST-LAST`,
/// both ends included. Docker's clients write it as RFC 9110 does, with `bytes`
/// before it and the size of the whole behind it.
pub(crate) fn piece(header: &str) -> Option<(u64, u64)> {
    let text = header.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let (range, total) = text.split_once('/').unwrap_or((text, "*"));
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let fits = total == "*" || number(total).is_some_and(|total| last < total);
    (first <= last && last < u64::MAX && fits).then_some((first, last))
}

/// Digits and nothing else: `parse` would take a plus sign too.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_read_as_rfc_9110_says() {
        let part = |first, last| Wanted::Part { first, last };
        for (header, size, expected) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=3-", 10, part(3, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-30", 10, part(0, 9)),
            ("bytes=5-500", 10, part(5, 9)),
            ("Bytes= 5-6 ", 10, part(5, 6)),
            ("bytes=10-", 10, Wanted::Outside),
            ("bytes=10-11", 10, Wanted::Outside),
            ("bytes=-0", 10, Wanted::Outside),
            ("bytes=0-", 0, Wanted::Outside),
            ("bytes=-1", 0, Wanted::Outside),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("bytes=5-4", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("bytes=+1-2", 10, Wanted::Whole),
            ("lines=1-2", 10, Wanted::Whole),
            ("bytes", 10, Wanted::Whole),
            ("bytes=99999999999999999999-", 10, Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), size), expected, "{header} of {size}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
    }

    #[test]
    fn a_piece_says_where_it_belongs_in_both_ways_of_writing_it() {
        assert_eq!(piece("0-9"), Some((0, 9)));
        assert_eq!(piece("bytes 10-19/20"), Some((10, 19)));
        assert_eq!(piece("bytes=10-19/*"), Some((10, 19)));
        for bad in ["", "-", "9", "9-8", "0-", "-1", "0-9/9", "a-b", "+0-9", "0-18446744073709551615", "0--1"]
        {
            assert_eq!(piece(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_part_always_lies_within_the_blob(header in "(bytes)?=?[-0-9, ]{0,24}", size in 0..1000u64) {
            if let Wanted::Part { first, last } = wanted(Some(&header), size) {
                prop_assert!(first <= last && last < size);
            }
        }

        #[test]
        fn no_text_makes_either_parser_panic(text in "\\PC{0,40}", size: u64) {
            let _ = (wanted(Some(&text), size), piece(&text));
        }

        #[test]
        fn a_written_range_reads_back(first in 0..500u64, more in 0..500u64) {
            let last = first + more;
            let expected = Wanted::Part { first, last };
            prop_assert_eq!(wanted(Some(&format!("bytes={first}-{last}")), 1000), expected);
            prop_assert_eq!(piece(&format!("{first}-{last}")), Some((first, last)));
        }
    }
}
