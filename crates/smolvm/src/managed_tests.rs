use super::*;
use smolcellar_store::{OpenOptions, Quiet};
use std::sync::Mutex;

fn store(dir: &Path) -> Store {
    Store::open(dir, OpenOptions::default()).unwrap()
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Reporter for Heard {
    fn report(&self, event: Event<'_>) {
        if let Event::Note { text } = event {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn offline_the_error_names_the_wheel_the_place_and_the_variable() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let Some(pin) = Pin::of_host() else { return };
    let error = install(&store, &Quiet, &InstallOptions { offline: true, ..InstallOptions::default() })
        .unwrap_err()
        .to_string();
    let folder = store.bucket_dir(Bucket::Runtimes).display().to_string();
    for part in [pin.file, pin.sha256, &folder, "SMOLCELLAR_SMOLVM_DIR"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(find(&store).unwrap(), None);
}

#[test]
fn a_wheel_put_there_by_hand_is_announced_and_must_have_the_pinned_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let Some(pin) = Pin::of_host() else { return };
    let wheel = store.bucket_dir(Bucket::Runtimes).join(pin.file);
    fsio::create_dirs(wheel.parent().unwrap()).unwrap();
    fsio::write_atomic(dir.path(), &wheel, b"something else").unwrap();
    let heard = Heard::default();
    let error =
        install(&store, &heard, &InstallOptions { offline: true, ..InstallOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::WrongWheel { .. }), "{error}");
    assert!(heard.0.lock().unwrap()[0].contains(pin.file));
    assert_eq!(find(&store).unwrap(), None);
}

#[test]
fn the_logical_size_of_a_template_is_read_from_its_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.zst");
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(70_000)).unwrap();
    encoder.include_contentsize(true).unwrap();
    std::io::Write::write_all(&mut encoder, &[0; 70_000]).unwrap();
    fsio::write_atomic(dir.path(), &path, &encoder.finish().unwrap()).unwrap();
    assert_eq!(frame_size(&path), Some(70_000));
    assert_eq!(frame_size(&dir.path().join("none")), None);
}
