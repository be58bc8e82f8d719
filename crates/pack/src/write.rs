//! Packing: plan, compress on all cores, write in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use smolcellar_oci::RootFs;
use smolcellar_store::{Digest, Event, Hasher, Reporter};
use smolvm_pack::format::{AssetEntry, LayerEntry, PackFooter, PackManifest};

use crate::assets::{self, AGENT_PATH, AgentRootfs, MachineSpec, Piece};
use crate::error::{PackError, Result};
use crate::index::{Frame, FrameIndex};

/// More workers than this would take more memory than time.
const MAX_WORKERS: usize = 8;

/// Frames under way beyond one per worker: enough to keep all busy while one
/// is slow, and what bounds the memory.
const SPARE_FRAMES: usize = 4;

/// The task named in events.
const TASK: &str = "pack";

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of all of them.
    pub sha256: Digest,
    /// Frames in the assets blob.
    pub frames: usize,
    /// Bytes of the assets, uncompressed.
    pub raw_size: u64,
}

/// The version of zstd that compresses, part of every recipe: another version
/// may write other bytes for the same input.
pub fn zstd_version() -> &'static str {
    zstd::zstd_safe::version_string()
}

struct Job {
    number: usize,
    pieces: Vec<Piece>,
}

struct Done {
    number: usize,
    digest: [u8; 32],
    raw_length: u32,
    bytes: Vec<u8>,
    crc: crc32fast::Hasher,
}

/// Writes an artifact to `out`, which must be empty. Memory does not depend on
/// the image's size.
///
/// # Errors
/// [`PackError`]; `out` is then of no use.
pub fn pack(
    spec: &MachineSpec,
    rootfs: &RootFs,
    agent: &AgentRootfs,
    out: &mut File,
    reporter: &dyn Reporter,
) -> Result<Packed> {
    let total = rootfs.tar_size() + agent.size;
    reporter.report(Event::Begin { task: TASK, total: Some(total) });
    let packed = write_all(spec, rootfs, agent, out, reporter);
    reporter.report(Event::End { task: TASK });
    packed
}

fn write_all(
    spec: &MachineSpec,
    rootfs: &RootFs,
    agent: &AgentRootfs,
    out: &mut File,
    reporter: &dyn Reporter,
) -> Result<Packed> {
    let agent_file = File::open(&agent.path)
        .map_err(|source| PackError::Input { what: "the agent root filesystem", source })?;
    let mut output = Output { file: out, hasher: Hasher::new(), crc: crc32fast::Hasher::new(), size: 0 };
    let index = write_frames(spec, rootfs, agent, &agent_file, &mut output, reporter)?;
    let skippable = index.to_bytes().ok_or(PackError::Changed("the image"))?;
    output.write(&skippable)?;
    let assets_size = output.size;
    let manifest = manifest(spec, rootfs, agent).to_json()?;
    output.write(&manifest)?;
    let footer = PackFooter {
        stub_size: 0,
        assets_offset: 0,
        assets_size,
        manifest_offset: assets_size,
        manifest_size: manifest.len() as u64,
        checksum: output.crc.clone().finalize(),
    };
    output.write(&footer.to_bytes())?;
    Ok(Packed {
        size: output.size,
        sha256: output.hasher.finish(),
        frames: index.frames.len(),
        raw_size: index.raw_size(),
    })
}

/// Plans on one thread, compresses on several, writes on this one.
fn write_frames(
    spec: &MachineSpec,
    rootfs: &RootFs,
    agent: &AgentRootfs,
    agent_file: &File,
    output: &mut Output<'_>,
    reporter: &dyn Reporter,
) -> Result<FrameIndex> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let (job_sender, jobs) = sync_channel::<Job>(1);
    // Owned by the workers alone: when the last of them stops, the planner's
    // next send fails instead of waiting for ever.
    let jobs = Arc::new(Mutex::new(jobs));
    let (done_sender, done) = sync_channel::<Result<Done>>(1);
    // One permit per frame under way: taken by the planner, given back by the
    // writer, so that a slow frame cannot let finished ones pile up.
    let (permit_sender, permits) = sync_channel::<()>(workers + SPARE_FRAMES);
    for _ in 0..workers + SPARE_FRAMES {
        // Fits: the channel has room for exactly these.
        let _ = permit_sender.send(());
    }
    std::thread::scope(|scope| {
        let planner = scope.spawn(move || send_jobs(spec, rootfs, agent, &permits, &job_sender));
        // Its bytes lay on a disk since they were hashed: hashed again, beside
        // the work that uses them.
        let agent_digest = scope.spawn(|| Digest::of_file(&agent.path));
        for _ in 0..workers {
            let (jobs, done_sender) = (Arc::clone(&jobs), done_sender.clone());
            scope.spawn(move || work(&jobs, rootfs, agent_file, spec.level, &done_sender));
        }
        drop((jobs, done_sender));
        let written = write_in_order(&done, &permit_sender, output, reporter);
        // After an error the others must not wait for us: hanging up ends them.
        drop((done, permit_sender));
        planner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let found = agent_digest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let index = written?;
        match found {
            Ok(found) if found == agent.digest => Ok(index),
            Ok(_) => Err(PackError::Damaged(agent.path.clone())),
            Err(source) => Err(PackError::Input { what: "the agent root filesystem", source }),
        }
    })
}

fn send_jobs(
    spec: &MachineSpec,
    rootfs: &RootFs,
    agent: &AgentRootfs,
    permits: &Receiver<()>,
    jobs: &SyncSender<Job>,
) -> Result<()> {
    let mut number = 0;
    assets::plan(spec, rootfs, agent, &mut |pieces| {
        // Whoever hung up has the error to report.
        if permits.recv().is_ok() {
            let _ = jobs.send(Job { number, pieces });
        }
        number += 1;
        Ok(())
    })
}

fn work(
    jobs: &Mutex<Receiver<Job>>,
    rootfs: &RootFs,
    agent: &File,
    level: i32,
    done: &SyncSender<Result<Done>>,
) {
    let mut raw = Vec::new();
    let mut compressor = zstd::bulk::Compressor::new(level);
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = match &mut compressor {
            // A worker that panics must say so: the writer waits for its frame.
            Ok(compressor) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                compress(&job, rootfs, agent, &mut raw, compressor)
            }))
            .unwrap_or_else(|_| Err(PackError::Write(std::io::Error::other("a packing thread panicked")))),
            Err(error) => Err(PackError::Write(std::io::Error::other(error.to_string()))),
        };
        if done.send(result).is_err() {
            return;
        }
    }
}

fn compress(
    job: &Job,
    rootfs: &RootFs,
    agent: &File,
    raw: &mut Vec<u8>,
    compressor: &mut zstd::bulk::Compressor<'_>,
) -> Result<Done> {
    raw.clear();
    for piece in &job.pieces {
        let start = raw.len();
        match piece {
            Piece::Bytes(bytes) => raw.extend_from_slice(bytes),
            Piece::Zeros(count) => raw.resize(start + *count as usize, 0),
            Piece::Agent { offset, size } => {
                raw.resize(start + *size as usize, 0);
                read_at(agent, &mut raw[start..], *offset, "the agent root filesystem")?;
            }
            Piece::Layer(data) => {
                raw.resize(start + data.size as usize, 0);
                let layer = rootfs.layers().get(data.layer).ok_or(PackError::Changed("a layer"))?;
                read_at(layer, &mut raw[start..], data.offset, "a layer")?;
            }
        }
    }
    let bytes = compressor.compress(raw).map_err(PackError::Write)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    let digest = *blake3::hash(raw).as_bytes();
    // A frame has at most `cut::MAX` bytes and a header's worth.
    let raw_length = raw.len() as u32;
    Ok(Done { number: job.number, digest, raw_length, bytes, crc })
}

fn read_at(file: &File, into: &mut [u8], offset: u64, what: &'static str) -> Result<()> {
    file.read_exact_at(into, offset).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => PackError::Changed(what),
        _ => PackError::Input { what, source },
    })
}

fn write_in_order(
    done: &Receiver<Result<Done>>,
    permits: &SyncSender<()>,
    output: &mut Output<'_>,
    reporter: &dyn Reporter,
) -> Result<FrameIndex> {
    let mut index = FrameIndex::default();
    let mut early = BTreeMap::new();
    while let Ok(result) = done.recv() {
        let frame = result?;
        early.insert(frame.number, frame);
        while let Some(frame) = early.remove(&index.frames.len()) {
            index.frames.push(Frame {
                digest: frame.digest,
                offset: output.size,
                length: frame.bytes.len() as u32,
                raw_length: frame.raw_length,
            });
            output.write_with_crc(&frame.bytes, &frame.crc)?;
            reporter.report(Event::Advance { task: TASK, bytes: u64::from(frame.raw_length) });
            // The planner may have ended already.
            let _ = permits.send(());
        }
    }
    Ok(index)
}

/// The artifact under way: hashed and counted as it is written.
struct Output<'a> {
    file: &'a mut File,
    hasher: Hasher,
    crc: crc32fast::Hasher,
    size: u64,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes);
        self.write_with_crc(bytes, &crc)
    }

    /// CRCs are combined, so that the one who has the bytes in cache computes them.
    fn write_with_crc(&mut self, bytes: &[u8], crc: &crc32fast::Hasher) -> Result<()> {
        self.file.write_all(bytes).map_err(PackError::Write)?;
        self.hasher.update(bytes);
        self.crc.combine(crc);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

fn manifest(spec: &MachineSpec, rootfs: &RootFs, agent: &AgentRootfs) -> PackManifest {
    let id = spec.image.to_string();
    let image = format!("smolcellar@{id}");
    let mut manifest =
        PackManifest::new(image, id.clone(), spec.platform.to_string(), spec.host_platform.clone());
    manifest.entrypoint.clone_from(&spec.entrypoint);
    manifest.cmd.clone_from(&spec.cmd);
    manifest.env.clone_from(&spec.env);
    manifest.workdir.clone_from(&spec.workdir);
    manifest.user.clone_from(&spec.user);
    manifest.cpus = spec.cpus;
    manifest.mem = spec.memory_mib;
    manifest.image_size = rootfs.content_size();
    manifest.created.clone_from(&spec.created);
    manifest.smolvm_version.clone_from(&spec.smolvm_version);
    manifest.assets.agent_rootfs = AssetEntry { path: AGENT_PATH.to_owned(), size: agent.size };
    let path = assets::layer_path(&spec.image);
    manifest.assets.layers = vec![LayerEntry { digest: id, path, size: rootfs.tar_size() }];
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smolcellar_oci::{ImageId, Platform};
    use smolcellar_store::Quiet;
    use std::io::Read;

    fn spec() -> MachineSpec {
        MachineSpec {
            image: ImageId::of_config(b"{}"),
            platform: Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() },
            host_platform: "linux/amd64".into(),
            entrypoint: vec!["/agent".into()],
            cmd: vec![],
            env: vec!["A=b".into()],
            workdir: Some("/work".into()),
            user: Some("1000:1000".into()),
            cpus: 2,
            memory_mib: 512,
            created: "2026-01-01T00:00:00Z".into(),
            smolvm_version: "1.32.2".into(),
            level: 3,
        }
    }

    fn layer(files: &[(String, Vec<u8>)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, &data[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Bytes that zstd cannot shrink, so that sizes survive.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    struct Made {
        dir: tempfile::TempDir,
        packed: Packed,
    }

    impl Made {
        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("m.smolmachine")
        }
    }

    fn make(files: &[(String, Vec<u8>)], agent: &[u8]) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = smolcellar_oci::flatten(vec![layer(files)]).unwrap();
        let agent_path = dir.path().join("agent.tar");
        let mut file = File::options().create_new(true).write(true).open(&agent_path).unwrap();
        file.write_all(agent).unwrap();
        let agent = AgentRootfs { path: agent_path, size: agent.len() as u64, digest: Digest::of(agent) };
        let path = dir.path().join("m.smolmachine");
        let mut out = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        let packed = pack(&spec(), &rootfs, &agent, &mut out, &Quiet).unwrap();
        Made { dir, packed }
    }

    #[test]
    fn frames_fit_their_index_and_a_changed_byte_is_in_one_that_does_not() {
        use std::os::unix::fs::FileExt;
        let files: Vec<_> = (0..5).map(|n| (format!("f{n}"), noise(n, 900_000))).collect();
        let made = make(&files, &noise(9, 3 << 20));
        let path = made.path();
        crate::check_structure(&path).unwrap();
        let index = crate::read(&path).unwrap().index.unwrap();
        assert_eq!(crate::check_frames(&path, &Quiet).unwrap(), Some(made.packed.raw_size));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for (which, frame) in index.frames.iter().enumerate() {
            for (at, by_structure) in [(0, true), (u64::from(frame.length) / 2, false)] {
                let mut byte = [0];
                file.read_exact_at(&mut byte, frame.offset + at).unwrap();
                file.write_all_at(&[byte[0] ^ 4], frame.offset + at).unwrap();
                assert_eq!(crate::check_structure(&path).is_err(), by_structure, "frame {which} at {at}");
                let problem = crate::check_frames(&path, &Quiet).unwrap_err().to_string();
                assert!(problem.contains(&format!("frame at {} ", frame.offset)), "{problem}");
                file.write_all_at(&byte, frame.offset + at).unwrap();
            }
        }
        crate::check_frames(&path, &Quiet).unwrap();
    }

    /// Reads the artifact with smolvm's own reader and with `tar`, and checks
    /// everything that it claims.
    fn referee(made: &Made, files: &[(String, Vec<u8>)], agent: &[u8]) {
        let path = made.path();
        let footer = smolvm_pack::read_footer_from_sidecar(&path).unwrap();
        assert!(smolvm_pack::verify_sidecar_checksum(&path, &footer).unwrap());
        let manifest = smolvm_pack::read_manifest_from_sidecar(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((made.packed.size, made.packed.sha256), (bytes.len() as u64, Digest::of(&bytes)));
        let artifact = crate::read(&path).unwrap();
        let index = artifact.index.unwrap();
        let mut raw = Vec::new();
        for frame in &index.frames {
            let from = frame.offset as usize;
            let one = zstd::decode_all(&bytes[from..from + frame.length as usize]).unwrap();
            assert_eq!(
                (one.len(), *blake3::hash(&one).as_bytes()),
                (frame.raw_length as usize, frame.digest)
            );
            assert!(one.len() as u64 <= crate::cut::MAX);
            raw.extend(one);
        }
        let whole = zstd::decode_all(&bytes[..footer.assets_size as usize]).unwrap();
        assert!(raw == whole, "the frames add up to the blob");
        let mut assets = tar::Archive::new(&whole[..]);
        let mut names = Vec::new();
        for entry in assets.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            if name == "agent-rootfs.tar" {
                assert!(data == agent);
            } else if name.ends_with(".tar") {
                assert_eq!(name, manifest.assets.layers[0].path);
                assert_eq!(data.len() as u64, manifest.assets.layers[0].size);
                let mut streamed = Vec::new();
                crate::with_layer(&path, |from| from.read_to_end(&mut streamed)).unwrap().unwrap();
                assert!(streamed == data);
                let mut inner = tar::Archive::new(&data[..]);
                let mut left: BTreeMap<_, _> = files.iter().cloned().collect();
                for entry in inner.entries().unwrap() {
                    let mut entry = entry.unwrap();
                    let name = entry.path().unwrap().display().to_string();
                    let mut data = Vec::new();
                    entry.read_to_end(&mut data).unwrap();
                    if let Some(expected) = left.remove(&name) {
                        assert!(data == expected, "{name}");
                    }
                }
                assert!(left.is_empty(), "{:?}", left.keys());
            }
            names.push(name);
        }
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(manifest.user.as_deref(), Some("1000:1000"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn smolvms_reader_and_tar_read_what_was_packed(
            files in proptest::collection::btree_map("[a-z]{1,12}(/[a-z]{1,30}){1,5}", (any::<u64>(), 0..3_000_000usize), 0..12),
            agent in 0..5_000_000usize,
        ) {
            // A path below a file of another is not an image.
            let names: Vec<_> = files.keys().cloned().collect();
            let ok = |name: &String| !names.iter().any(|other| name.starts_with(&format!("{other}/")));
            let files: Vec<_> = files.into_iter().filter(|(name, _)| ok(name)).map(|(name, (seed, size))| (name, noise(seed, size))).collect();
            let agent = noise(1, agent);
            let made = make(&files, &agent);
            referee(&made, &files, &agent);
            let again = make(&files, &agent);
            prop_assert_eq!(made.packed, again.packed);
        }
    }

    #[test]
    fn one_small_change_leaves_almost_all_frames_as_they_were() {
        let mut files: Vec<_> = (0..3000)
            .map(|n| {
                (format!("usr/lib/part-{:02}/file-{n:04}", n % 37), noise(n, 4000 + (n as usize * 37) % 9000))
            })
            .collect();
        files.push(("usr/big".into(), noise(99_999, 9 << 20)));
        let before = crate::read(&make(&files, b"agent").path()).unwrap().index.unwrap();
        files.push(("usr/lib/part-05/a-new-file".into(), noise(77_777, 5000)));
        let after = crate::read(&make(&files, b"agent").path()).unwrap().index.unwrap();
        let known: std::collections::HashSet<_> = before.frames.iter().map(|frame| frame.digest).collect();
        let new: Vec<_> = after.frames.iter().filter(|frame| !known.contains(&frame.digest)).collect();
        // The header of the layer, and the frames around the new file until the cuts meet again.
        assert!(before.frames.len() > 25, "{}", before.frames.len());
        assert!(new.len() <= 5, "{} of {} frames are new", new.len(), after.frames.len());
    }

    #[test]
    fn a_full_disk_ends_the_pack_with_an_error_and_hangs_nothing() {
        let files = [("big".to_owned(), noise(1, 40 << 20))];
        let rootfs = smolcellar_oci::flatten(vec![layer(&files)]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let agent_path = dir.path().join("agent.tar");
        File::options().create_new(true).write(true).open(&agent_path).unwrap();
        let agent = AgentRootfs { path: agent_path, size: 0, digest: Digest::of(b"") };
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = pack(&spec(), &rootfs, &agent, &mut full, &Quiet).unwrap_err();
        assert!(matches!(error, PackError::Write(_)), "{error}");
    }
}
