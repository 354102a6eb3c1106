//! The control plane.

pub mod catalog;
pub mod node;
pub mod publish;
pub mod registry;
pub mod store;
pub mod supervise;
