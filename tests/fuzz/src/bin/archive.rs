//! An image archive of any layout and compression. Whatever is accepted must
//! flatten to a tar that reads back, or be refused by name.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use smolcellar_fuzz::{file, mend, store};
use smolcellar_oci::{Limits, Platform, Wanted, flatten, ingest_stream, peek};
use smolcellar_store::Quiet;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    mend(&mut data[..size]);
    size
});

fuzz_target!(|bytes: &[u8]| {
    let wanted = Wanted { what: "fuzz".into(), platform: Platform::guest(), id: None };
    let dir = store().temp_dir().expect("a folder");
    let limits = Limits { json: 1 << 16, json_total: 1 << 18, parts: 1000 };
    let peeked = peek(&file(bytes), &wanted);
    let Ok(image) = ingest_stream(bytes, &dir, &wanted, limits, &Quiet) else { return };
    assert!(peeked.is_none_or(|id| id == image.id), "peek and ingest name different images");
    if image.verify().is_ok() {
        let layers = image.layers.iter().map(|layer| layer.blob.reopen().expect("its file")).collect();
        let _ = flatten(layers);
    }
});
