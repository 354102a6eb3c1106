//! Sockets, files, children and the task that drives the node: they move bytes and hold no rule of the protocol.

pub mod builder;
pub mod child;
pub mod cluster;
pub mod complaints;
pub mod driver;
pub mod link;
pub mod lock;
pub mod memfd;
mod notices;
pub mod packet;
pub mod peers;
pub mod proc;
mod storing;
pub mod udp;
