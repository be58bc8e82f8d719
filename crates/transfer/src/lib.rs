//! Entries of the store as files that can be carried elsewhere, and back.
//!
//! [`export`] writes artifacts, and on request the images they were made of,
//! as one tar (`format`); [`import`] takes such a file, or a bare
//! `.smolmachine` of another packer, into a store. [`export_image`] writes an
//! image as a tar that `docker load` and skopeo accept.
//!
//! An import proves that the bytes are those that were exported. It does not
//! prove that whoever exported them built them from what the receipt says.

mod copy;
mod error;
mod export;
mod foreign;
mod format;
mod image;
mod import;
mod publish;

pub use error::{Result, Stopped, TransferError};
pub use export::{Exported, export};
pub use foreign::publish_foreign;
pub use format::{MachineEntry, SCHEMA};
pub use image::{ExportedImage, export_image};
pub use import::{Expected, Imported, Status, What, import};
pub use publish::publish_received;

#[cfg(test)]
mod tests;
