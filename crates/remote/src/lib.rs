//! Registries elsewhere: images and artifacts pushed to them and pulled from them.

pub mod artifact;
pub mod delta_plan;
