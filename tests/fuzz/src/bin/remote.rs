//! What a remote cache is told by a registry: manifests with receipts, the last
//! bytes of artifacts, and the plan that is made of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smolcellar_pack::{FrameIndex, TailRead, read_tail};
use smolcellar_remote::artifact::{self, Content};
use smolcellar_remote::delta_plan;
use smolcellar_transfer::MachineEntry;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Content::Machine(remote)) = artifact::parse(bytes)
        && let Some(receipt) = remote.receipt
    {
        assert_eq!((receipt.sha256, receipt.size), (remote.layer.digest, remote.layer.size));
        assert_eq!(MachineEntry::parse(&receipt.to_text()).as_ref(), Ok(&receipt), "a receipt has one form");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = MachineEntry::parse(text);
    }
    // As the whole of a file, and as the end of a larger one.
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    let claimed = head.iter().fold(0, |size, byte| (size << 8) | u64::from(*byte));
    for (size, tail) in [(bytes.len() as u64, bytes), (claimed, rest)] {
        match read_tail(size, tail) {
            Ok(TailRead::Needs(more)) => assert!(more > tail.len() as u64 && more <= size),
            Ok(TailRead::Whole(read)) => {
                let index = read.index.unwrap_or_default();
                let wanted = size - tail.len() as u64;
                let plan = delta_plan::plan(wanted, &index, &[&index]);
                assert_eq!(plan.copied() + plan.fetched(), wanted);
            }
            Err(_) => {}
        }
    }
    if let Ok(index) = FrameIndex::parse(bytes) {
        let plan = delta_plan::plan(index.frames_size(), &index, &[]);
        assert_eq!(plan.fetched(), index.frames_size());
    }
});
