//! What this kernel's io_uring can do, found out by trying.
//!
//! | feature | since | without it |
//! | --- | --- | --- |
//! | `SINGLE_ISSUER`, `DEFER_TASKRUN`, `COOP_TASKRUN`, extended enter argument | 6.1 | refused |
//! | provided buffer ring, completion eventfd, `SO_REUSEPORT` | 5.19 | refused |
//! | multishot accept | 5.19 | one accept at a time |
//! | multishot receive | 6.0 | one receive at a time, into the same buffers |
//! | no completion for a send that went well | 5.17 | one for each |
//! | `IORING_OP_MSG_RING` between rings of this set-up | 5.18 | a write to the other shard's pipe |
//!
//! The fallbacks are for kernels that are new enough and yet refuse (a sandbox, a vendor's back-port, a filter).

use crate::io::buffers::Buffers;
use crate::io::ring::{self, BUFFER_GROUP, Completion, Manner, Ring};
use crate::io::token::{Op, Token};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The oldest kernel the data plane runs on: the first with `IORING_SETUP_DEFER_TASKRUN`.
pub const KERNEL_MIN: &str = "6.1";

/// Features with a fallback. True: the kernel has it and it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    pub multishot_accept: bool,
    pub multishot_receive: bool,
    pub msg_ring: bool,
    /// [`crate::io::ring::Manner::Quiet`].
    pub quiet_send: bool,
}

/// Why the data plane cannot run here. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("this kernel ({kernel}) has no io_uring or hides it; Linux {KERNEL_MIN} or newer is needed")]
    Absent { kernel: String },
    #[error(
        "io_uring is forbidden here: {reason}; it must be allowed for this process, on Linux {KERNEL_MIN} or newer"
    )]
    Forbidden { reason: String },
    #[error("the kernel lacks {feature}; Linux {needed} or newer is needed, this is {kernel}")]
    Missing { feature: &'static str, needed: &'static str, kernel: String },
    #[error("could not try {feature}")]
    Trial {
        feature: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Features {
    /// Everything the kernel offers.
    pub const ALL: Self =
        Self { multishot_accept: true, multishot_receive: true, msg_ring: true, quiet_send: true };
    /// Every fallback in use.
    pub const NONE: Self =
        Self { multishot_accept: false, multishot_receive: false, msg_ring: false, quiet_send: false };

    /// Tries everything the data plane needs on small rings of its own.
    ///
    /// # Errors
    /// [`ProbeError`] when something without a fallback is missing.
    pub fn probe() -> Result<Self, ProbeError> {
        let mut ring = set_up()?;
        try_reuse_port()?;
        let eventfd = ring.register_eventfd().map_err(missing("a completion eventfd", "5.2"))?;
        let mut buffers = Buffers::new(2, 64).map_err(trial("receive buffers"))?;
        // SAFETY: `ring` is dropped below, before `buffers`.
        unsafe { buffers.register(&ring.submitter(), BUFFER_GROUP) }
            .map_err(missing("a provided buffer ring", "5.19"))?;
        let features = Self {
            multishot_accept: try_accept(&mut ring).map_err(trial("multishot accept"))?,
            multishot_receive: try_receive(&mut ring).map_err(trial("multishot receive"))?,
            msg_ring: try_message(&mut ring).map_err(trial("a message between rings"))?,
            quiet_send: try_quiet_send(&mut ring).map_err(trial("a send without completion"))?,
        };
        drop(ring);
        drop((eventfd, buffers));
        Ok(features)
    }
}

/// How long an operation may take that is known to be ready.
const TRIAL_TIME: Duration = Duration::from_millis(100);

fn set_up() -> Result<Ring, ProbeError> {
    let builder = ring::builder(4);
    match builder.build(4) {
        Ok(uring) if uring.params().is_feature_ext_arg() && uring.params().is_feature_nodrop() => {
            drop(uring);
            Ring::new(4).map_err(trial("a ring"))
        }
        Ok(_) => Err(missing("the extended enter argument", "5.11")(io::ErrorKind::Unsupported.into())),
        Err(error) => Err(refused(error)),
    }
}

/// What a failed `io_uring_setup` means.
fn refused(error: io::Error) -> ProbeError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => ProbeError::Absent { kernel: kernel() },
        Some(libc::EPERM | libc::EACCES) => {
            let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            let reason = match switch.trim() {
                "1" => {
                    "kernel.io_uring_disabled is 1 (only for kernel.io_uring_group and CAP_SYS_ADMIN)".into()
                }
                "2" => "kernel.io_uring_disabled is 2 (for nobody)".into(),
                _ => {
                    format!("io_uring_setup says {error}, which a seccomp filter of a container usually does")
                }
            };
            ProbeError::Forbidden { reason }
        }
        Some(libc::EINVAL) => {
            missing("io_uring with SINGLE_ISSUER, DEFER_TASKRUN and COOP_TASKRUN", KERNEL_MIN)(error)
        }
        _ => ProbeError::Trial { feature: "io_uring_setup", source: error },
    }
}

fn try_reuse_port() -> Result<(), ProbeError> {
    let tried = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .or_else(|_| {
            rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        })
        .and_then(|socket| rustix::net::sockopt::set_socket_reuseport(&socket, true));
    tried.map_err(|error| missing("SO_REUSEPORT", "3.9")(error.into()))
}

fn try_accept(ring: &mut Ring) -> io::Result<bool> {
    let listener = unix_socket()?;
    // An unnamed address has the kernel choose an abstract one.
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 1)?;
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(&listener)?)?;
    let client = unix_socket()?;
    rustix::net::connect(&client, &address)?;
    ring.accept(listener.as_raw_fd(), Token::new(Op::Accept, 0, 0), true)?;
    let done = completion(ring, Op::Accept)?;
    if done.result >= 0 {
        // SAFETY: the kernel just made this descriptor for us.
        drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(done.result) });
    }
    if done.more() {
        end(ring, listener.as_raw_fd(), Op::Accept)?;
    }
    Ok(done.result >= 0 && done.more())
}

fn try_receive(ring: &mut Ring) -> io::Result<bool> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&theirs, b"x")?;
    ring.receive(ours.as_raw_fd(), Token::new(Op::Receive, 0, 0), true)?;
    let done = completion(ring, Op::Receive)?;
    if done.more() {
        end(ring, ours.as_raw_fd(), Op::Receive)?;
    }
    Ok(done.result == 1 && done.buffer().is_some() && done.more())
}

/// More than a socket takes at once.
static LONG: [u8; 4 << 20] = [0; 4 << 20];

fn try_quiet_send(ring: &mut Ring) -> io::Result<bool> {
    let (ours, _theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for (bytes, speaks) in [(&LONG[..1], false), (&LONG, true)] {
        // SAFETY: the bytes are static.
        unsafe { ring.send(ours.as_raw_fd(), Token::new(Op::Send, 0, 0), bytes, Manner::Quiet) }?;
        ring.enter(false)?;
        let mut got = Vec::new();
        ring.reap(&mut got, usize::MAX);
        if got.iter().any(|completion| completion.token.op() == Op::Send) != speaks {
            return Ok(false);
        }
    }
    Ok(true)
}

fn try_message(ring: &mut Ring) -> io::Result<bool> {
    let mut target = Ring::new(4)?;
    ring.message(target.as_raw_fd(), Token::new(Op::Mesh, 0, 0), Token::new(Op::MeshFailed, 0, 0))?;
    ring.enter(false)?;
    let arrived = completion(&mut target, Op::Mesh).is_ok();
    // A refusal is a completion of our own ring.
    ring.enter(false)?;
    ring.reap(&mut Vec::new(), usize::MAX);
    Ok(arrived)
}

/// Ends a multishot operation and waits for its last completion.
fn end(ring: &mut Ring, fd: i32, op: Op) -> io::Result<()> {
    ring.cancel_all(fd, Token::new(Op::Nothing, 0, 0))?;
    while completion(ring, op)?.more() {}
    Ok(())
}

/// The next completion of `op`; others are dropped.
fn completion(ring: &mut Ring, op: Op) -> io::Result<Completion> {
    let deadline = Instant::now() + TRIAL_TIME;
    let mut got = Vec::new();
    loop {
        let now = Instant::now();
        if !ring.has_completions() {
            if now >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            ring.arm_timer(now, deadline)?;
            ring.enter(true)?;
        }
        got.clear();
        ring.reap(&mut got, 1);
        match got.first() {
            Some(completion) if completion.token.op() == op => return Ok(*completion),
            Some(completion) if completion.token.op() == Op::Timer => ring.timer_fired(),
            _ => {}
        }
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn missing(feature: &'static str, needed: &'static str) -> impl Fn(io::Error) -> ProbeError {
    // A feature may be old; the data plane as a whole needs KERNEL_MIN anyway.
    let needed = if needed.starts_with("6.") { needed } else { KERNEL_MIN };
    move |_| ProbeError::Missing { feature, needed, kernel: kernel() }
}

fn trial(feature: &'static str) -> impl Fn(io::Error) -> ProbeError {
    move |source| ProbeError::Trial { feature, source }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_the_data_plane_needs() {
        Features::probe().expect("the tests run where the data plane runs");
    }

    #[test]
    fn a_refused_ring_says_what_to_do() {
        let text = |errno| refused(io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::EPERM).contains("forbidden"), "{}", text(libc::EPERM));
        assert!(text(libc::ENOSYS).contains(KERNEL_MIN));
        assert!(text(libc::EINVAL).contains("DEFER_TASKRUN") && text(libc::EINVAL).contains(KERNEL_MIN));
        assert!(text(libc::ENOMEM).contains("io_uring_setup"));
    }
}
