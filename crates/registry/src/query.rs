//! Paths and queries as clients write them: percent-encoding (RFC 3986,
//! section 2.1) and `a=b&c=d`.

/// The pairs of a query. The first of a name counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a query; `None` if its percent-encoding is wrong. A plus sign is
    /// one: nothing that is asked for here has a space in it, and media types
    /// have pluses.
    pub(crate) fn parse(text: Option<&str>) -> Option<Self> {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        };
        pairs.map(pair).collect::<Option<_>>().map(Self)
    }

    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Undoes percent-encoding; `None` if it is wrong, or no UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|n| u8::try_from(n).ok());
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                tail
            }
            (b'%', _) => return None,
            (byte, tail) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_query_is_taken_apart_and_decoded() {
        let query = Query::parse(Some("digest=sha256%3Aab&n=5&n=6&empty&artifactType=a/b+json")).unwrap();
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!((query.get("n"), query.get("empty"), query.get("none")), (Some("5"), Some(""), None));
        assert_eq!(query.get("artifactType"), Some("a/b+json"));
        assert_eq!(Query::parse(None), Some(Query::default()));
        for bad in ["a=%", "a=%1", "a=%zz", "%ff=1"] {
            assert_eq!(Query::parse(Some(bad)), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,30}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded), Some(text));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Query::parse(Some(&text));
        }
    }
}
