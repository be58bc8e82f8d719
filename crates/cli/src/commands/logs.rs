//! `logs`: what a command in the background prints.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write, stdout};
use std::time::Duration;

use anyhow::{Context, Result};
use smolcellar_launcher::find;

use crate::args::Logs;
use crate::commands::as_usage;
use crate::exit::{self, Usage};
use crate::session::Session;

/// How often it is looked for more.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn run(session: &Session, args: &Logs) -> Result<u8> {
    let store = session.store()?;
    let launched = find(&store, &args.machine).map_err(as_usage)?;
    let mut log = match File::open(&launched.log) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = &launched.machine;
            let text = format!(
                "machine {name} was not launched with --detach: what it prints is where it was launched"
            );
            return Err(Usage(text).into());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", launched.log.display())),
    };
    if let Some(lines) = args.tail {
        let start = last_lines(&mut log, lines).context("cannot read the log")?;
        log.seek(SeekFrom::Start(start)).context("cannot read the log")?;
    }
    loop {
        // Asked first: what is written until then is read below.
        let over = match find(&store, &launched.machine) {
            Ok(now) => !now.attended,
            // Taken down meanwhile; the open file is still to be read.
            Err(_) => true,
        };
        match pass_on(&mut log) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::OK),
            Err(error) => return Err(error).context("cannot show the log"),
        }
        if !args.follow || over {
            return Ok(exit::OK);
        }
        std::thread::sleep(LOOK);
    }
}

fn pass_on(log: &mut File) -> io::Result<()> {
    let mut to = stdout().lock();
    io::copy(log, &mut to)?;
    to.flush()
}

/// Where the last `lines` of a file begin. Reads it from its end, in blocks.
fn last_lines(file: &mut (impl Read + Seek), lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut upper = end;
    let mut block = Vec::new();
    while upper > 0 {
        let lower = upper.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(lower))?;
        block.clear();
        file.by_ref().take(upper - lower).read_to_end(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = lower + index as u64;
            // The last byte of all ends a line, and begins none.
            if *byte == b'\n' && at + 1 < end {
                left -= 1;
                if left == 0 {
                    return Ok(at + 1);
                }
            }
        }
        upper = lower;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn the_last_lines_are_found_whatever_their_length() {
        let shown = |text: &str, lines| {
            let start = last_lines(&mut Cursor::new(text), lines).unwrap();
            text[start as usize..].to_owned()
        };
        assert_eq!(shown("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(shown("a\nb\nc", 2), "b\nc");
        assert_eq!(shown("a\nb\n", 9), "a\nb\n");
        assert_eq!(shown("a\nb\n", 0), "");
        assert_eq!(shown("", 3), "");
        let long = format!("first\n{}\nlast\n", "x".repeat(200_000));
        assert_eq!(shown(&long, 1), "last\n");
        assert_eq!(shown(&long, 2).len(), 200_006);
        assert_eq!(shown(&long, 3), long);
    }
}
