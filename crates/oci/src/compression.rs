//! Plain, gzip or zstd, told by the first bytes.

use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Tells by magic numbers: RFC 1952 section 2.3.1, RFC 8878 section 3.1.1.
    pub(crate) fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame first: seekable zstd as some packers write it.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The largest window a zstd layer may ask for: 2^27 = 128 MiB would be the
/// format's recommended ceiling of 8 MiB sixteen times over; 2^26 keeps the
/// memory of a hostile archive under 64 MiB.
const MAX_WINDOW_LOG: u32 = 26;

/// Reads `inner` decompressed, whatever it is. Concatenated gzip members and
/// zstd frames count as one stream.
pub(crate) fn decompress<'a, R: BufRead + 'a>(mut inner: R) -> io::Result<Box<dyn Read + 'a>> {
    let start = inner.fill_buf()?;
    // A BufRead may hold fewer bytes than a magic number only at the very
    // end or on a dribbling pipe; `peeked` in `archive` rules the latter out.
    Ok(match Compression::sniff(start) {
        Compression::None => Box::new(inner),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(inner)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn each_kind_reads_back() {
        let text = b"layer".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let kinds = [text.clone(), gz.finish().unwrap(), zstd::encode_all(&text[..], 1).unwrap()];
        for bytes in kinds {
            let mut out = Vec::new();
            decompress(&bytes[..]).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
        }
    }
}
