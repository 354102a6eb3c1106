//! What a shard wants of its driver.

use super::ConnId;
use std::net::SocketAddr;

/// What `receive` asks of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Continue,
    /// Read no more from this connection until [`Output::ResumeReads`].
    Pause,
}

/// An attempt to connect, numbered by its shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Dial(pub u64);

/// What a shard wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Call [`super::Shard::take_send`] and send it whole (`MSG_WAITALL`). Said once until `sent` is called.
    Send(ConnId),
    /// Shut down writing; reads go on and are discarded by the shard until the peer closes or `Close` follows.
    ShutdownWrite(ConnId),
    /// Close the socket; the shard has forgotten the connection. Operations under way are cancelled, a `SendBuf` still
    /// with the kernel is dropped when it comes back.
    Close(ConnId),
    /// Close the socket, as with `Close`, but keep the slot: a session waits in it. `Close` follows when it may be used again.
    Park(ConnId),
    ResumeReads(ConnId),
    /// Connect by TCP, then say [`super::Shard::connected`] or [`super::Shard::dial_failed`], after some seconds at the latest.
    Connect {
        dial: Dial,
        address: SocketAddr,
    },
}
