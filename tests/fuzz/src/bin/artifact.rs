//! A `.smolmachine` file, and a frame index by itself.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use smolcellar_fuzz::store;
use smolcellar_pack::FrameIndex;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = FrameIndex::parse(bytes) {
        assert_eq!(index.to_bytes().as_deref(), Some(bytes), "an index has one form");
    }
    let dir = store().temp_dir().expect("a folder");
    let path = dir.path().join("a.smolmachine");
    std::fs::File::create_new(&path).and_then(|mut file| file.write_all(bytes)).expect("written");
    let _ = smolcellar_pack::read(&path);
});
