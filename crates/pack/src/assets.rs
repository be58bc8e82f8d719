//! What goes into the assets blob, as a plan of frames.
//!
//! The plan names byte ranges and reads nothing: reading and compressing are
//! the workers' part.

use std::path::PathBuf;

use smolcellar_oci::{Data, ImageId, Platform, RootFs};
use smolcellar_store::Digest;

use crate::cut;
use crate::error::{PackError, Result};

/// The tar of the runtime's agent root filesystem.
#[derive(Debug, Clone)]
pub struct AgentRootfs {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

/// What the machine is to be, beside its root filesystem.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The image.
    pub image: ImageId,
    /// What the guest is.
    pub platform: Platform,
    /// What the host is, as `os/architecture` with macOS called `darwin`.
    pub host_platform: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The rest of the arguments.
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Where it starts.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// RFC 3339; the image's, never the clock's.
    pub created: String,
    /// The version of the runtime that the agent root filesystem is of.
    pub smolvm_version: String,
    /// zstd's level.
    pub level: i32,
}

/// A run of bytes of the assets tar.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    Layer(Data),
    Agent { offset: u64, size: u64 },
    Zeros(u64),
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Layer(data) => data.size,
            Self::Agent { size, .. } | Self::Zeros(size) => *size,
        }
    }

    /// Splits off the first `at` bytes, which must be fewer than there are.
    fn split(self, at: u64) -> (Self, Self) {
        match self {
            Self::Bytes(mut bytes) => {
                let tail = bytes.split_off(at as usize);
                (Self::Bytes(bytes), Self::Bytes(tail))
            }
            Self::Layer(data) => {
                let tail = Data { offset: data.offset + at, size: data.size - at, ..data };
                (Self::Layer(Data { size: at, ..data }), Self::Layer(tail))
            }
            Self::Agent { offset, size } => {
                (Self::Agent { offset, size: at }, Self::Agent { offset: offset + at, size: size - at })
            }
            Self::Zeros(size) => (Self::Zeros(at), Self::Zeros(size - at)),
        }
    }
}

/// The name of the agent root filesystem in the assets.
pub(crate) const AGENT_PATH: &str = "agent-rootfs.tar";

/// The name of the layer in the assets. It is called after the image, whose
/// flattened root it is: its own digest is not known before it is written, and
/// no reader compares the name with the bytes.
pub(crate) fn layer_path(image: &ImageId) -> String {
    format!("layers/{}.tar", image.0.hex())
}

/// Calls `frame` with the pieces of each frame, in order.
pub(crate) fn plan(
    spec: &MachineSpec,
    rootfs: &RootFs,
    agent: &AgentRootfs,
    frame: &mut dyn FnMut(Vec<Piece>) -> Result<()>,
) -> Result<()> {
    const BLOCK: u64 = 512;
    let padding = |size: u64| size.next_multiple_of(BLOCK) - size;

    let head = header(AGENT_PATH, agent.size, tar::EntryType::Regular)?;
    let agent_pieces =
        [head, Piece::Agent { offset: 0, size: agent.size }, Piece::Zeros(padding(agent.size))];
    each_max(agent_pieces, frame)?;

    let layers = header("layers/", 0, tar::EntryType::Directory)?;
    let layer = header(&layer_path(&spec.image), rootfs.tar_size(), tar::EntryType::Regular)?;
    frame(vec![layers, layer])?;

    let mut pieces = Vec::new();
    let mut filled = 0;
    for entry in rootfs.entries() {
        let size = entry.tar_size();
        let large = size >= cut::LARGE;
        if large || cut::cuts_before(&entry.path, size, filled) {
            flush(&mut pieces, &mut filled, frame)?;
        }
        let data = entry.data.map(Piece::Layer);
        let zeros = Piece::Zeros(entry.data.map_or(0, |data| padding(data.size)));
        let of_entry = [Piece::Bytes(entry.header)].into_iter().chain(data).chain([zeros]);
        if large {
            each_max(of_entry, frame)?;
        } else {
            pieces.extend(of_entry.filter(|piece| piece.len() > 0));
            filled += size;
        }
    }
    flush(&mut pieces, &mut filled, frame)?;
    // The end of the layer's tar and of the assets' tar.
    frame(vec![Piece::Bytes(RootFs::END.to_vec()), Piece::Bytes(RootFs::END.to_vec())])
}

fn flush(
    pieces: &mut Vec<Piece>,
    filled: &mut u64,
    frame: &mut dyn FnMut(Vec<Piece>) -> Result<()>,
) -> Result<()> {
    *filled = 0;
    if pieces.is_empty() { Ok(()) } else { frame(std::mem::take(pieces)) }
}

/// Cuts a run of pieces every [`cut::MAX`] bytes.
fn each_max(
    run: impl IntoIterator<Item = Piece>,
    frame: &mut dyn FnMut(Vec<Piece>) -> Result<()>,
) -> Result<()> {
    let mut pieces = Vec::new();
    let mut filled = 0;
    for mut piece in run {
        while filled + piece.len() > cut::MAX {
            let (head, tail) = piece.split(cut::MAX - filled);
            pieces.push(head);
            flush(&mut pieces, &mut filled, frame)?;
            piece = tail;
        }
        if piece.len() > 0 {
            filled += piece.len();
            pieces.push(piece);
        }
    }
    flush(&mut pieces, &mut filled, frame)
}

/// A header of the assets tar. Sizes past ustar's octal field (8 GiB) are
/// written in base-256, as GNU tar and smolvm's own packer do.
fn header(path: &str, size: u64, kind: tar::EntryType) -> Result<Piece> {
    let mut header = tar::Header::new_gnu();
    let named = header.set_path(path);
    named.map_err(|source| PackError::Input { what: "the name of an asset", source })?;
    header.set_entry_type(kind);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(Piece::Bytes(header.as_bytes().to_vec()))
}
