//! The content-addressed store under smolcellar's cache folder.
//!
//! `cache-layout.md` at the top of the repository is the contract that this
//! crate implements. The crate knows nothing of Docker, OCI or smolvm: it
//! keeps blobs by digest, machines by key, receipts that say what made them,
//! and the locks that let any number of processes share one folder. It never
//! prints; what a person should hear goes through [`Reporter`].
//!
//! Architecture invariant: every write that another process may see goes
//! through [`fsio`], every file lock through `lock`.

mod blobs;
mod bucket;
mod digest;
mod error;
mod find;
pub mod fsio;
pub mod gc;
mod lease;
mod lock;
mod machines;
mod network;
mod parallel;
mod parts;
mod pins;
mod pushed;
mod quarantine;
mod root;
mod session;
mod stage;
mod stat;
mod stats;
mod usage;
mod verify;

pub mod report;

pub use blobs::{BlobWriter, Blobs, StagedBlob};
pub use bucket::Bucket;
pub use digest::{Digest, DigestError, Hasher, HashingReader};
pub use error::{Result, StoreError};
pub use gc::Collector;
pub use lease::{Lease, LeaseRecord, NewLease, SeenLease};
pub use lock::{BuildLock, Holder, Publishing, UseLock};
pub use machines::{ListedMachine, Lookup, Machine, MachineKey, MachineList, MachineReceipt, UsedMachine};
pub use parts::{BlobParts, Watch};
pub use pushed::{PushedKey, PushedManifest, PushedTag};
pub use report::{Event, Quiet, Reporter};
pub use root::{OpenOptions, STORE_FORMAT, Store};
pub use session::TempDir;
pub use stage::{BlobRef, StageReceipt};
pub use stats::{RunStat, StageStat};
pub use usage::{BucketUsage, Usage};
pub use verify::{Action, Finding, Subject, Verification, VerifyOptions};
