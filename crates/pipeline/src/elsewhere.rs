//! A cache elsewhere: what runs ask for what the store does not have.

use serde::Serialize;
use smolcellar_oci::ImageId;
use smolcellar_store::{Digest, MachineKey, Store};

/// A cache that others share. Asked only after the store was, and never trusted
/// beyond what can be checked. It fails no run: what it does not have, or cannot
/// say in time, is not there, and whoever implements this says why, once.
pub trait Elsewhere: Sync {
    /// The image that a build made of what it saw
    /// ([`crate::BuildFacts::fingerprint`]) for an artifact of this recipe, as
    /// another machine noted. Two machines make two images of the same sources,
    /// so which one it is depends on which artifact there is.
    fn image_of(&self, seen: &Digest, recipe: &Digest) -> Option<ImageId>;

    /// Brings an artifact into the store, checked as an import is, under its own
    /// locks, of which the caller has none. `agent` is whom it is wanted for.
    fn fetch(&self, store: &Store, key: &MachineKey, agent: &str) -> Option<Pulled>;
}

/// What bringing an artifact here took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Where it came from, as people write it.
    pub from: String,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes that artifacts in the store had already.
    pub reused: u64,
}
