//! Garbage collection: what is in the store ([`Inventory`]), what should go and
//! why ([`plan`], a pure function), and doing it ([`Collector`]).
//!
//! Nothing that is in use is ever removed, and no clock decides that: each
//! entry is removed under its own locks, exclusively and without waiting, after
//! its leases and pins were looked for under that same hold. Times only rank.

mod collect;
mod inventory;
mod plan;
#[cfg(test)]
mod plan_tests;
mod policy;
mod pushed;
#[cfg(test)]
mod race_tests;

pub use collect::{Collected, Collector, Spared};
pub(crate) use inventory::allocated;
pub use inventory::{Disk, ImageEntry, Inventory, Loose, LooseKind, MachineEntry, Root};
pub use plan::{Entry, Kept, Limit, Plan, Reason, Removal, plan};
pub use policy::{Amount, Policy, parse_age};
pub use pushed::PushedEntry;
