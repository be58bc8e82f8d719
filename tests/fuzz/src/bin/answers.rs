//! What docker, podman and smolvm print.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = smolcellar_engine::fuzzing::image_info(text);
        let _ = smolcellar_engine::fuzzing::container_info(text);
        if let Ok(id) = smolcellar_engine::fuzzing::image_id(text) {
            assert!(text.to_ascii_lowercase().contains(&id.hex()));
        }
        let _ = text.parse::<smolcellar_smolvm::Version>();
    }
    if let Some(path) = smolcellar_smolvm::fuzzing::output(bytes) {
        assert!(path.is_absolute());
    }
});
