//! Values and pure functions that both planes and the load generator need.
//!
//! No IO, no clock, no thread, no store lives here: everything takes its input as arguments.

pub mod config;
pub mod features;
pub mod history;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod link;
pub mod metrics;
pub mod noise;
pub mod pattern;
pub mod relay;
pub mod resume;
pub mod rules;
pub mod share;
pub mod snapshot;
pub mod transport;
pub mod uri;
pub mod wire;
