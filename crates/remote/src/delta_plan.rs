//! Which bytes of an artifact are copied from artifacts at hand, and which are
//! fetched. Pure.

use std::collections::HashMap;

use smolcellar_pack::{Frame, FrameIndex};

/// Bytes at hand that are fetched all the same if they lie between two runs
/// that must be: a request costs more than they do.
pub const MAX_GAP: u64 = 128 << 10;

/// The most that is fetched by one request, or copied at once, in bytes: so
/// that several connections share a large artifact.
pub const MAX_PIECE: u64 = 8 << 20;

/// The first range, where nothing else is fetched before it: it tells whether
/// the registry can do ranges, and everybody else waits for it.
const PROBE: u64 = 1 << 20;

/// Bytes to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Of which artifact at hand, by number.
    pub source: usize,
    /// From where in it.
    pub from: u64,
    /// To where.
    pub at: u64,
    /// How many.
    pub length: u64,
}

/// Bytes to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// From where; it is where they go, too.
    pub at: u64,
    /// How many.
    pub length: u64,
}

/// Every byte before those that are known already, once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is copied, in order.
    pub copies: Vec<Copy>,
    /// What is fetched, in order.
    pub ranges: Vec<Range>,
}

impl Plan {
    /// Bytes that are copied.
    pub fn copied(&self) -> u64 {
        self.copies.iter().map(|copy| copy.length).sum()
    }

    /// Bytes that are fetched.
    pub fn fetched(&self) -> u64 {
        self.ranges.iter().map(|range| range.length).sum()
    }
}

/// All of the first `size` bytes fetched.
pub fn whole(size: u64) -> Plan {
    let mut ranges = Vec::new();
    let probe = PROBE.min(size);
    cut(0, probe, |at, length| ranges.push(Range { at, length }));
    cut(probe, size, |at, length| ranges.push(Range { at, length }));
    Plan { copies: Vec::new(), ranges }
}

/// What of the first `size` bytes of an artifact with the index `wanted` is in
/// the artifacts at hand, and what is not. A frame is there if one of the same
/// contents and of the same lengths is: of artifacts that were compressed
/// alike, as the caller knows, its bytes are then the same too.
///
/// `size` is at most what the frames hold; bytes that no frame holds are fetched.
pub fn plan(size: u64, wanted: &FrameIndex, at_hand: &[&FrameIndex]) -> Plan {
    let mut known = HashMap::new();
    for (source, index) in at_hand.iter().enumerate() {
        for frame in &index.frames {
            known.entry(name(frame)).or_insert((source, frame.offset));
        }
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut seen = 0;
    for frame in &wanted.frames {
        // Of an index that does not begin at 0, or has gaps, nothing is known.
        let end = (frame.offset.saturating_add(u64::from(frame.length))).min(size);
        if frame.offset != seen || end <= seen {
            break;
        }
        extend(&mut runs, seen, end, known.get(&name(frame)).copied());
        seen = end;
    }
    if seen < size {
        extend(&mut runs, seen, size, None);
    }
    let mut plan = Plan::default();
    for run in close_gaps(runs) {
        match run.from {
            None => cut(run.start, run.end, |at, length| plan.ranges.push(Range { at, length })),
            Some((source, from)) => cut(run.start, run.end, |at, length| {
                plan.copies.push(Copy { source, from: from + (at - run.start), at, length });
            }),
        }
    }
    plan
}

/// What two frames have alike if one's bytes are the other's.
fn name(frame: &Frame) -> ([u8; 32], u32, u32) {
    (frame.digest, frame.raw_length, frame.length)
}

/// Bytes that come from one place, in the order they have there.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    from: Option<(usize, u64)>,
}

/// Adds bytes to the last run if they go on with it.
fn extend(runs: &mut Vec<Run>, start: u64, end: u64, from: Option<(usize, u64)>) {
    if let Some(last) = runs.last_mut() {
        let goes_on = match (last.from, from) {
            (None, None) => true,
            (Some((source, at)), Some((other, from))) => {
                source == other && at + (last.end - last.start) == from
            }
            _ => false,
        };
        if goes_on {
            last.end = end;
            return;
        }
    }
    runs.push(Run { start, end, from });
}

/// Makes what is at hand between two runs that are fetched, and is short, part
/// of what is fetched.
fn close_gaps(runs: Vec<Run>) -> Vec<Run> {
    let mut closed: Vec<Run> = Vec::new();
    // What is at hand since the last run that is fetched.
    let mut gap: Vec<Run> = Vec::new();
    for run in runs {
        if run.from.is_some() {
            gap.push(run);
            continue;
        }
        let short = gap.iter().map(|run| run.end - run.start).sum::<u64>() <= MAX_GAP;
        match closed.last_mut() {
            Some(last) if short && last.from.is_none() => {
                last.end = run.end;
                gap.clear();
            }
            _ => {
                closed.append(&mut gap);
                closed.push(run);
            }
        }
    }
    closed.append(&mut gap);
    closed
}

fn cut(start: u64, end: u64, mut each: impl FnMut(u64, u64)) {
    let mut at = start;
    while at < end {
        let length = (end - at).min(MAX_PIECE);
        each(at, length);
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An artifact's frames: each is a letter, its bytes follow from that.
    fn artifact(letters: &[u8]) -> (FrameIndex, Vec<u8>) {
        let (mut index, mut bytes) = (FrameIndex::default(), Vec::new());
        for letter in letters {
            let length = 1 + usize::from(*letter % 7) * 30_000;
            let frame = Frame {
                digest: [*letter; 32],
                offset: bytes.len() as u64,
                length: length as u32,
                raw_length: u32::from(*letter),
            };
            index.frames.push(frame);
            bytes.extend((0..length).map(|n| letter.wrapping_mul(31).wrapping_add((n % 251) as u8)));
        }
        (index, bytes)
    }

    fn letters(most: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0..40u8, 0..most)
    }

    proptest! {
        #[test]
        fn every_byte_comes_once_and_is_the_right_one(
            wanted in letters(60), at_hand in proptest::collection::vec(letters(60), 0..4), known in 0..200_000u64
        ) {
            let (index, bytes) = artifact(&wanted);
            let others: Vec<_> = at_hand.iter().map(|letters| artifact(letters)).collect();
            let indexes: Vec<_> = others.iter().map(|(index, _)| index).collect();
            let size = (bytes.len() as u64).saturating_sub(known);
            let plan = plan(size, &index, &indexes);
            let mut made = vec![None; size as usize];
            for range in &plan.ranges {
                prop_assert!(range.length > 0 && range.length <= MAX_PIECE);
                for at in range.at..range.at + range.length {
                    prop_assert!(made[at as usize].replace(bytes[at as usize]).is_none());
                }
            }
            for copy in &plan.copies {
                prop_assert!(copy.length > 0 && copy.length <= MAX_PIECE);
                for n in 0..copy.length {
                    let byte = others[copy.source].1[(copy.from + n) as usize];
                    prop_assert!(made[(copy.at + n) as usize].replace(byte).is_none());
                }
            }
            let made: Option<Vec<u8>> = made.into_iter().collect();
            prop_assert!(made.is_some_and(|made| made == bytes[..size as usize]));
            prop_assert_eq!(plan.copied() + plan.fetched(), size);
        }

        #[test]
        fn no_two_ranges_are_nearer_than_the_gap(wanted in letters(80), at_hand in letters(80)) {
            let ((index, bytes), (other, _)) = (artifact(&wanted), artifact(&at_hand));
            let plan = plan(bytes.len() as u64, &index, &[&other]);
            for pair in plan.ranges.windows(2) {
                let gap = pair[1].at - (pair[0].at + pair[0].length);
                prop_assert!(gap > MAX_GAP || (gap == 0 && pair[0].length == MAX_PIECE));
            }
        }

        #[test]
        fn a_whole_artifact_is_fetched_whole(size in 0..100u64 << 20) {
            let plan = whole(size);
            prop_assert_eq!(plan.fetched(), size);
            let ends: Vec<_> = plan.ranges.iter().map(|range| range.at + range.length).collect();
            let starts: Vec<_> = plan.ranges.iter().map(|range| range.at).collect();
            prop_assert!(starts.iter().eq([&0].into_iter().chain(&ends).take(starts.len())));
        }

        #[test]
        fn an_index_with_gaps_or_absurd_offsets_is_no_reason_to_panic(
            offsets in proptest::collection::vec((0..=u64::MAX / 4, 1..=u32::MAX), 0..20), size in 0..1u64 << 40
        ) {
            let frame = |(offset, length): &(u64, u32)| Frame { digest: [1; 32], offset: *offset, length: *length, raw_length: 0 };
            let index = FrameIndex { frames: offsets.iter().map(frame).collect() };
            let plan = plan(size, &index, &[]);
            prop_assert_eq!(plan.fetched(), size);
        }
    }

    #[test]
    fn what_is_all_there_is_not_fetched_and_one_changed_frame_is_one_range() {
        let letters: Vec<u8> = (1..30).collect();
        let (index, bytes) = artifact(&letters);
        let size = bytes.len() as u64;
        let same = plan(size, &index, &[&index]);
        assert_eq!((same.ranges.len(), same.copied()), (0, size));
        let mut changed = letters.clone();
        changed[11] = 39;
        let (other, other_bytes) = artifact(&changed);
        let plan = plan(other_bytes.len() as u64, &other, &[&index]);
        let frame = other.frames[11];
        assert_eq!(plan.ranges, [Range { at: frame.offset, length: frame.length.into() }]);
    }
}
