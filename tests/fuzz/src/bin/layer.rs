//! Two layers' tars. Whatever is accepted has a canonical form, in strict
//! order, of the promised size, that flattens to itself.
#![no_main]

use std::os::unix::fs::FileExt;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use smolcellar_fuzz::{file, mend};
use smolcellar_oci::{RootFs, flatten};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    mend(&mut data[..size]);
    size
});

fuzz_target!(|bytes: &[u8]| {
    let (lower, upper) = bytes.split_at(bytes.len() / 1024 * 512);
    let Ok(rootfs) = flatten(vec![file(lower), file(upper)]) else { return };
    let tar = write(&rootfs);
    assert_eq!(tar.len() as u64, rootfs.tar_size());
    let again = flatten(vec![file(&tar)]).expect("what we wrote is a layer");
    assert!(write(&again) == tar, "flattening is not stable");
});

fn write(rootfs: &RootFs) -> Vec<u8> {
    let mut out = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    for entry in rootfs.entries() {
        let key: Vec<u8> = entry.path.iter().map(|b| if *b == b'/' { 0 } else { *b }).collect();
        assert!(last.as_ref().is_none_or(|last| *last < key), "out of order");
        last = Some(key);
        out.extend_from_slice(&entry.header);
        if let Some(data) = entry.data {
            let mut bytes = vec![0; data.size as usize];
            rootfs.layers()[data.layer].read_exact_at(&mut bytes, data.offset).expect("its bytes");
            out.extend_from_slice(&bytes);
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.extend_from_slice(RootFs::END);
    out
}
