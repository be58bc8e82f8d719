//! The stages that turn an image into a bootable artifact, each cached:
//! **image → tarball → registry → smolmachine**.
//!
//! [`run()`] looks for the artifact first and does the work of a stage only when
//! a later one needs it. It takes the store's locks, so any number of runs may
//! go on at once: one builds a key, the others wait for it and then hit.
//! Nothing here prints; progress goes to an [`Observer`].

mod agent;
mod before;
mod cache_key;
mod elsewhere;
mod error;
mod explain;
mod facts;
mod image;
mod machine;
mod outcome;
mod plan;
mod pointer;
mod recipe;
mod record;
mod registry;
mod repair;
mod run;
mod smolvm_packer;
mod tarball;

pub use agent::{AgentSpec, Overrides, Packer, Source};
pub use cache_key::cache_key;
pub use elsewhere::{Elsewhere, Pulled};
pub use error::{PipelineError, Result};
pub use explain::{InputChange, StageWhy, between};
pub use facts::BuildFacts;
pub use outcome::{Observer, Outcome, StageName, StageReport, StageStatus};
pub use plan::{BuildPlan, Expect, PlannedStage, plan};
pub use pointer::{AgentPointer, last_built, remember_built, seen_of, sweep_pointers};
pub use recipe::{DEFAULT_LEVEL, changed, inputs};
pub use record::{BuildRecord, Took, last_build};
pub use repair::{Repaired, repair_image, repair_machine};
pub use run::{Context, run};
