//! The image model: archives in, one canonical root filesystem out.
//!
//! [`ingest_stream`] takes a `docker save` tar (both layouts), an OCI image layout as
//! a tar or a folder, plain or compressed, and gives the config and the layers
//! as staged blobs whose digests were checked against it. [`flatten`] applies
//! the layers to one another and yields the entries of the canonical root
//! filesystem, the same bytes for the same image wherever it came from.
//!
//! Nothing here ever writes to a path that an archive names: the file tree
//! exists only in memory, and bytes stay in blobs until they are packed.

mod archive;
mod canonical;
mod compression;
mod config;
mod descriptor;
mod engine_paths;
mod error;
mod image_id;
mod layer;
mod layout;
mod manifest;
mod reference;
mod tar_reader;
mod tree;

pub use archive::{Image, Limits, StagedLayer, Wanted, ingest_folder, ingest_stream, peek};
pub use canonical::{CANONICAL_VERSION, CanonicalEntry, Data, RootFs};
pub use config::{ImageConfig, Platform, RunConfig};
pub use descriptor::{Descriptor, DescriptorPlatform, MAX_MANIFEST, Manifest, media};
pub use error::{OciError, Result};
pub use image_id::ImageId;
pub use layout::check_platform;
pub use manifest::image_manifest;
pub use reference::{NameError, Reference, Registry, Repository, Scheme, Selector, Tag};
pub use tar_reader::first_entry;

use std::fs::File;

/// Applies `layers`, lowest first, and gives the canonical root filesystem.
/// Reads the headers only; file contents stay where they are.
///
/// # Errors
/// [`OciError::Entry`] naming the layer and the entry at fault.
pub fn flatten(layers: Vec<File>) -> Result<RootFs> {
    let mut tree = tree::Tree::default();
    for (number, file) in layers.iter().enumerate() {
        layer::apply(&mut tree, file, number)?;
    }
    engine_paths::settle(&mut tree);
    Ok(RootFs::new(tree, layers))
}
