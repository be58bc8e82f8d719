//! Dropping the first line of a stream where it is a known, useless one.

/// Drops the first line of a stream if it begins in a certain way. Holds bytes
/// back only while they may still become that line.
pub(crate) struct DropFirstLine {
    prefix: &'static [u8],
    decided: bool,
    dropping: bool,
    held: Vec<u8>,
}

impl DropFirstLine {
    pub(crate) fn new(prefix: &'static [u8]) -> Self {
        Self { prefix, decided: false, dropping: false, held: Vec::new() }
    }

    /// What of the next bytes is to be passed on.
    pub(crate) fn pass<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.decided {
            return bytes;
        }
        self.held.extend_from_slice(bytes);
        if !self.dropping {
            let shared = self.held.len().min(self.prefix.len());
            if self.held.get(..shared) != self.prefix.get(..shared) {
                self.decided = true;
                return &self.held;
            }
            self.dropping = shared == self.prefix.len();
        }
        let end = self.held.iter().position(|byte| *byte == b'\n').filter(|_| self.dropping);
        match end {
            Some(end) => {
                self.decided = true;
                self.held.get(end + 1..).unwrap_or_default()
            }
            None => &[],
        }
    }

    /// What is still held at the end of the stream and is not that line.
    pub(crate) fn rest(&self) -> &[u8] {
        if self.decided || self.dropping { &[] } else { &self.held }
    }
}

/// The same for a stream that is there as a whole.
pub(crate) fn without_first_line<'a>(prefix: &[u8], stream: &'a [u8]) -> &'a [u8] {
    if !stream.starts_with(prefix) {
        return stream;
    }
    let end = stream.iter().position(|byte| *byte == b'\n').map_or(stream.len(), |end| end + 1);
    stream.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &[u8] = b"note: no packed assets found";

    #[test]
    fn the_stray_line_is_dropped_and_nothing_else_is() {
        let note = b"note: no packed assets found for 'smol-vmm' (looked for \xE2\x80\xA6).\nError: real\n";
        assert_eq!(without_first_line(PREFIX, note), b"Error: real\n");
        assert_eq!(without_first_line(PREFIX, b"note: other\n"), b"note: other\n");
        assert_eq!(without_first_line(PREFIX, b"note: no packed assets found, cut"), b"");
        for pieces in 1..note.len() {
            let mut filter = DropFirstLine::new(PREFIX);
            let mut out = Vec::new();
            for piece in note.chunks(pieces) {
                out.extend_from_slice(filter.pass(piece));
            }
            out.extend_from_slice(filter.rest());
            assert_eq!(out, b"Error: real\n", "in pieces of {pieces}");
        }
        let mut filter = DropFirstLine::new(PREFIX);
        assert_eq!(filter.pass(b"note: n"), b"");
        assert_eq!(filter.rest(), b"note: n");
    }
}
