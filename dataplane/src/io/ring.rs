//! One shard's io_uring: what is asked of the kernel goes in as entries, what it did comes out as completions.
//!
//! Invariants: only the thread that made the ring touches it (`IORING_SETUP_SINGLE_ISSUER`); every enter that reaps
//! carries `IORING_ENTER_GETEVENTS`, else deferred task work never runs; memory named by a staged entry outlives
//! its completion (the callers' part) or its submission (message headers and vectors, this file's part:
//! `IORING_FEAT_SUBMIT_STABLE`).

use crate::io::token::{Op, Token};
use crate::io::vectors::Vectors;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Most pieces of one vectored send.
pub const SEND_PIECES_MAX: usize = 64;
/// Most bytes of one send that is not vectored.
pub const SEND_BYTES_MAX: usize = i32::MAX as usize;
/// Completion-queue entries for each submission-queue entry: a full submission of sends completes at once, and
/// receives come on top.
const COMPLETIONS_PER_ENTRY: u32 = 4;
/// Longest wait for somebody to answer a connect; whole seconds.
pub const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How often a submission the kernel has no memory for is tried again before the ring is given up.
const SUBMIT_TRIES_MAX: u32 = 1_000;
/// The buffer group of the shard's receive buffers.
pub const BUFFER_GROUP: u16 = 0;

const _: () = assert!(SEND_PIECES_MAX <= 1_024, "UIO_MAXIOV");

/// What the kernel says about one operation.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    /// The result, or a negated errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// What the kernel might say.
    #[cfg(test)]
    pub fn made_up(token: Token, result: i32) -> Self {
        Self { token, result, flags: 0 }
    }

    /// More completions of the same multishot operation will follow.
    #[inline]
    pub fn more(&self) -> bool {
        io_uring::cqueue::more(self.flags)
    }

    /// The provided buffer the kernel filled.
    #[inline]
    pub fn buffer(&self) -> Option<u16> {
        io_uring::cqueue::buffer_select(self.flags)
    }
}

/// How a send is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It may wait for the peer; there is a completion in any case.
    Told,
    /// It takes what the socket has room for when the kernel takes the entry, and there is a completion only if that
    /// was not all. So it is done well once as many completions were reaped as [`Ring::posted`] said after that
    /// enter, and none was its own. A request that may not wait never leaves the submitting call, so the kernel does
    /// not look at the bytes later.
    Quiet,
}

impl Manner {
    fn message_flags(self) -> i32 {
        // Whole or not at all well: a send of a part counts as failed and so has its completion.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if self == Self::Quiet { flags | libc::MSG_DONTWAIT } else { flags }
    }

    fn entry_flags(self) -> Flags {
        if self == Self::Quiet { Flags::SKIP_SUCCESS } else { Flags::empty() }
    }
}

/// See the module.
pub struct Ring {
    uring: IoUring,
    /// The descriptor or the registered index `io_uring_enter` is called with, and the flag that says which.
    enter_fd: RawFd,
    enter_flags: u32,
    /// Entries the kernel has not taken yet.
    staged: u32,
    /// Completions taken out of the queue to make room, oldest first; normally empty.
    spilled: VecDeque<Completion>,
    vectors: Vectors,
    timer: Timer,
    enters: u64,
    /// Completions given out by [`Ring::reap`].
    reaped: u64,
}

/// The ring's one timer, which is armed before parking.
struct Timer {
    armed: Option<Instant>,
    /// An entry that points to `spec` may not be with the kernel yet.
    staged: bool,
    /// Read by the kernel when it takes the entry.
    spec: Box<types::Timespec>,
}

impl Ring {
    /// A ring of `entries` submission entries, for the calling thread only.
    ///
    /// # Errors
    /// What `io_uring_setup` says.
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = builder(entries).build(entries)?;
        let mut ring = Self {
            enter_fd: uring.as_raw_fd(),
            enter_flags: 0,
            staged: 0,
            spilled: VecDeque::new(),
            vectors: Vectors::new(),
            timer: Timer { armed: None, staged: false, spec: Box::new(types::Timespec::new()) },
            enters: 0,
            reaped: 0,
            uring,
        };
        ring.register_own_fd();
        Ok(ring)
    }

    /// The kernel's side of the ring, for what is registered once.
    pub fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    /// `io_uring_enter` calls so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Registers the ring's descriptor with its thread, which spares each enter a look-up with two atomic
    /// operations. A kernel that refuses costs only that.
    fn register_own_fd(&mut self) {
        const REGISTER_RING_FDS: u32 = 20;
        #[repr(C)]
        struct RsrcUpdate {
            offset: u32,
            reserved: u32,
            data: u64,
        }
        let fd = self.uring.as_raw_fd();
        let mut update = RsrcUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
        // SAFETY: the argument is one struct io_uring_rsrc_update that lives across the call.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, &raw mut update, 1u32)
        };
        if done == 1 {
            self.enter_fd = update.offset as RawFd;
            self.enter_flags = ENTER_REGISTERED_RING;
        }
    }

    /// Makes and registers the eventfd that is written when a completion arrives while [`Ring::watch`] is on.
    ///
    /// # Errors
    /// No descriptors, or the kernel refuses.
    pub fn register_eventfd(&mut self) -> io::Result<OwnedFd> {
        // SAFETY: eventfd takes no pointers; the descriptor it returns is owned by nobody else.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        self.uring.submitter().register_eventfd(fd.as_raw_fd())?;
        self.watch(false);
        Ok(fd)
    }

    /// Whether completions are to be signalled on the eventfd. After switching it on, enter once and look at
    /// [`Ring::has_completions`]: what came earlier is not signalled.
    pub fn watch(&mut self, on: bool) {
        let completion = self.uring.completion();
        if on {
            completion.enable_eventfd();
            // The flag must be visible before the caller looks for completions a last time.
            fence(Ordering::SeqCst);
        } else {
            completion.disable_eventfd();
        }
    }

    /// Something can be reaped without entering.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        !self.spilled.is_empty() || !self.uring.completion().is_empty()
    }

    /// Gives all staged entries to the kernel and runs deferred work; with `wait`, sleeps until there is a completion.
    ///
    /// # Errors
    /// The ring is unusable.
    pub fn enter(&mut self, wait: bool) -> io::Result<()> {
        self.enter_raw(u32::from(wait), ENTER_GETEVENTS)
    }

    /// The kernel has taken every staged entry, and what it completed at once can be reaped or was: up to this
    /// number in the count of [`Ring::reaped`]. `None`: not yet, look after the next enter.
    #[inline]
    pub fn posted(&mut self) -> Option<u64> {
        if self.staged > 0 || self.uring.submission().cq_overflow() {
            return None;
        }
        Some(self.reaped + self.spilled.len() as u64 + self.uring.completion().len() as u64)
    }

    /// Completions given out so far.
    #[inline]
    pub fn reaped(&self) -> u64 {
        self.reaped
    }

    /// Gives staged entries to the kernel until none is left.
    fn flush(&mut self) -> io::Result<()> {
        for _ in 0..SUBMIT_TRIES_MAX {
            if self.staged == 0 {
                return Ok(());
            }
            self.enter_raw(0, 0)?;
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    fn enter_raw(&mut self, want: u32, flags: u32) -> io::Result<()> {
        self.enters += 1;
        let flags = flags | self.enter_flags;
        let no_arg = std::ptr::null::<libc::c_void>();
        // SAFETY: no argument is passed; the entries staged so far were built by this file's methods, whose callers
        // promise that the memory named there is alive.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.enter_fd, self.staged, want, flags, no_arg, 0usize)
        };
        if taken >= 0 {
            self.staged -= taken as u32;
            if self.staged == 0 {
                self.vectors.clear();
                self.timer.staged = false;
            }
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            // The completion queue is full or the kernel is short of memory: make room, the next enter tries again.
            Some(libc::EBUSY | libc::EAGAIN) => {
                self.spill();
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn spill(&mut self) {
        self.spilled.extend(self.uring.completion().map(|entry| completion_of(&entry)));
    }

    /// Moves completions to `into`, oldest first, until it holds `max`.
    #[inline]
    pub fn reap(&mut self, into: &mut Vec<Completion>, max: usize) {
        let before = into.len();
        while into.len() < max
            && let Some(completion) = self.spilled.pop_front()
        {
            into.push(completion);
        }
        let room = max - into.len();
        into.extend(self.uring.completion().take(room).map(|entry| completion_of(&entry)));
        self.reaped += (into.len() - before) as u64;
    }

    /// Stages one entry.
    ///
    /// # Safety
    /// Memory the entry names must stay valid and, if the kernel writes to it, untouched until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { self.uring.submission().push(entry) }.is_err() {
            self.flush()?;
            // SAFETY: the caller's promise.
            unsafe { self.uring.submission().push(entry) }
                .expect("a flushed submission queue has room for an entry");
        }
        self.staged += 1;
        Ok(())
    }

    /// Receives into provided buffers, again and again if `multishot`.
    pub fn receive(&mut self, fd: RawFd, token: Token, multishot: bool) -> io::Result<()> {
        let fd = types::Fd(fd);
        let entry = if multishot {
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
        } else {
            opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(Flags::BUFFER_SELECT)
        };
        // SAFETY: the entry names no memory; the kernel takes buffers from the registered group.
        unsafe { self.push(&entry.user_data(token.0)) }
    }

    /// Sends `bytes` whole, in the way of `manner`.
    ///
    /// # Safety
    /// `bytes` must stay valid and unchanged until the completion, or until [`Manner::Quiet`] says it is done.
    pub unsafe fn send(&mut self, fd: RawFd, token: Token, bytes: &[u8], manner: Manner) -> io::Result<()> {
        // A longer piece goes out in parts: the completion tells how much, and the caller sends the rest.
        let len = bytes.len().min(SEND_BYTES_MAX);
        assert!(manner == Manner::Told || len == bytes.len(), "a quiet send is told nothing of a part");
        let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), len as u32)
            .flags(manner.message_flags())
            .build()
            .flags(manner.entry_flags())
            .user_data(token.0);
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry) }
    }

    /// Sends at most [`SEND_PIECES_MAX`] pieces as one stream, in the way of `manner`.
    ///
    /// # Safety
    /// As for [`Ring::send`].
    pub unsafe fn send_pieces<'a>(
        &mut self,
        fd: RawFd,
        token: Token,
        pieces: impl Iterator<Item = &'a [u8]>,
        manner: Manner,
    ) -> io::Result<()> {
        if !self.vectors.has_room() {
            self.flush()?;
        }
        let header = self.vectors.add(pieces.take(SEND_PIECES_MAX));
        let entry = opcode::SendMsg::new(types::Fd(fd), header)
            .flags(manner.message_flags() as u32)
            .build()
            .flags(manner.entry_flags())
            .user_data(token.0);
        // SAFETY: the caller's promise for the bytes. Header and vectors stay untouched until `vectors.clear`, which
        // runs when the kernel has taken every staged entry, and it keeps no pointer to them after that.
        unsafe { self.push(&entry) }
    }

    /// Accepts connections, again and again if `multishot`. The sockets are in blocking mode, else the kernel
    /// answers `EAGAIN` where it should wait.
    pub fn accept(&mut self, fd: RawFd, token: Token, multishot: bool) -> io::Result<()> {
        let fd = types::Fd(fd);
        let entry = if multishot {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        };
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry.user_data(token.0)) }
    }

    /// Connects a socket; cancelled after [`CONNECT_TIME`].
    ///
    /// # Safety
    /// `address` must point to an address of `len` bytes until the completion.
    pub unsafe fn connect(
        &mut self,
        fd: RawFd,
        token: Token,
        address: *const libc::sockaddr,
        len: libc::socklen_t,
    ) -> io::Result<()> {
        static LIMIT: types::Timespec = types::Timespec::new().sec(CONNECT_TIME.as_secs());
        let submission = self.uring.submission();
        let room = submission.capacity() - submission.len();
        drop(submission);
        if room < 2 {
            // Linked entries must be taken together.
            self.flush()?;
        }
        let connect = opcode::Connect::new(types::Fd(fd), address, len).build();
        let limit = opcode::LinkTimeout::new(&raw const LIMIT).build();
        // SAFETY: the caller's promise; the time is static.
        unsafe {
            self.push(&connect.flags(Flags::IO_LINK).user_data(token.0))?;
            self.push(&limit.user_data(Token::new(Op::Nothing, 0, 0).0))
        }
    }

    /// `shutdown(2)`.
    pub fn shutdown(&mut self, fd: RawFd, token: Token, how: i32) -> io::Result<()> {
        let entry = opcode::Shutdown::new(types::Fd(fd), how).build().user_data(token.0);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Cancels the operation that was staged with `target`.
    pub fn cancel(&mut self, target: Token, token: Token) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(target.0).build().user_data(token.0);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Cancels all operations on `fd`.
    pub fn cancel_all(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let builder = types::CancelBuilder::fd(types::Fd(fd)).all();
        let entry = opcode::AsyncCancel2::new(builder).build().user_data(token.0);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Closes `fd`; no completion unless it fails.
    pub fn close(&mut self, fd: OwnedFd) -> io::Result<()> {
        use std::os::fd::IntoRawFd;
        let entry = opcode::Close::new(types::Fd(fd.into_raw_fd()))
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(Token::new(Op::Nothing, 0, 0).0);
        // SAFETY: the entry names no memory; the descriptor was owned here and is given away.
        unsafe { self.push(&entry) }
    }

    /// A completion each time `fd` becomes readable.
    pub fn watch_readable(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let entry =
            opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build().user_data(token.0);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Posts `message` as a completion of the ring `target`; a completion with `token` comes here only on failure.
    pub fn message(&mut self, target: RawFd, message: Token, token: Token) -> io::Result<()> {
        let entry = opcode::MsgRingData::new(types::Fd(target), 0, message.0, None)
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(token.0);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }
    }

    /// Sees to it that a completion ([`Op::Timer`]) comes at `at` or earlier.
    pub fn arm_timer(&mut self, now: Instant, at: Instant) -> io::Result<()> {
        if self.timer.armed.is_some_and(|armed| armed <= at) {
            return Ok(());
        }
        if self.timer.staged {
            self.flush()?;
        }
        *self.timer.spec = types::Timespec::from(at.saturating_duration_since(now));
        let timer = Token::new(Op::Timer, 0, 0);
        let spec = &raw const *self.timer.spec;
        let entry = if self.timer.armed.is_some() {
            opcode::TimeoutUpdate::new(timer.0, spec).build().user_data(Token::new(Op::Nothing, 0, 0).0)
        } else {
            opcode::Timeout::new(spec).build().user_data(timer.0)
        };
        self.timer.armed = Some(at);
        self.timer.staged = true;
        // SAFETY: the time is read when the entry is taken; the box is not written before that (see above).
        unsafe { self.push(&entry) }
    }

    /// To be called for a completion of [`Op::Timer`].
    pub fn timer_fired(&mut self) {
        self.timer.armed = None;
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

/// The set-up every ring of the data plane has; [`crate::io::probe`] tries it first.
pub fn builder(entries: u32) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
    builder
}

#[inline]
fn completion_of(entry: &io_uring::cqueue::Entry) -> Completion {
    Completion { token: Token(entry.user_data()), result: entry.result(), flags: entry.flags() }
}

const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// The next completion of `op`; others are dropped.
    fn wait_for(ring: &mut Ring, op: Op) -> Completion {
        loop {
            ring.enter(true).expect("enter");
            let mut reaped = Vec::new();
            ring.reap(&mut reaped, 1);
            if let Some(completion) = reaped.first().filter(|completion| completion.token.op() == op) {
                return *completion;
            }
        }
    }

    #[test]
    fn pieces_leave_as_one_stream() {
        let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
        let mut ring = Ring::new(8).expect("ring");
        let pieces = [b"ab".as_slice(), b"", b"cde"];
        // SAFETY: the pieces are static.
        unsafe {
            ring.send_pieces(ours.as_raw_fd(), Token::new(Op::Send, 1, 0), pieces.into_iter(), Manner::Told)
        }
        .expect("staged");
        assert_eq!(wait_for(&mut ring, Op::Send).result, 5);
        let mut got = [0; 5];
        theirs.read_exact(&mut got).expect("bytes");
        assert_eq!(&got, b"abcde");
    }

    #[test]
    fn more_entries_than_the_queue_holds_are_flushed_in_order() {
        let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
        let mut ring = Ring::new(4).expect("ring");
        let bytes: Vec<u8> = (0..100).collect();
        for byte in bytes.chunks(1) {
            // SAFETY: `bytes` lives to the end of the test, after the completions.
            unsafe { ring.send(ours.as_raw_fd(), Token::new(Op::Send, 0, 0), byte, Manner::Told) }
                .expect("staged");
        }
        let mut reaped = Vec::new();
        while reaped.len() < bytes.len() {
            ring.enter(true).expect("enter");
            ring.reap(&mut reaped, bytes.len());
        }
        let mut got = vec![0; bytes.len()];
        theirs.read_exact(&mut got).expect("bytes");
        assert_eq!(got, bytes);
    }

    #[test]
    fn a_quiet_send_speaks_only_when_it_did_not_go_out_whole() {
        let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
        let mut ring = Ring::new(4).expect("ring");
        let send = Token::new(Op::Send, 0, 0);
        // SAFETY: the bytes are static.
        unsafe { ring.send(ours.as_raw_fd(), send, b"abc", Manner::Quiet) }.expect("staged");
        assert_eq!(ring.posted(), None, "the kernel has not seen it");
        ring.enter(false).expect("enter");
        assert_eq!(ring.posted(), Some(0));
        let mut got = [0; 3];
        theirs.read_exact(&mut got).expect("bytes");
        let bytes = vec![7; 16 << 20];
        // SAFETY: `bytes` lives to the end of the test.
        unsafe { ring.send(ours.as_raw_fd(), send, &bytes, Manner::Quiet) }.expect("staged");
        ring.enter(false).expect("enter");
        assert_eq!(ring.posted(), Some(1));
        let sent = wait_for(&mut ring, Op::Send).result;
        assert!(sent > 0 && (sent as usize) < bytes.len());
        // SAFETY: as above.
        unsafe { ring.send(ours.as_raw_fd(), send, &bytes, Manner::Quiet) }.expect("staged");
        assert_eq!(wait_for(&mut ring, Op::Send).result, -libc::EAGAIN);
        assert_eq!(ring.posted(), Some(ring.reaped()));
    }

    #[test]
    fn the_timer_fires_and_only_an_earlier_time_arms_it_again() {
        let mut ring = Ring::new(4).expect("ring");
        let now = Instant::now();
        ring.arm_timer(now, now + Duration::from_secs(3_600)).expect("armed");
        ring.arm_timer(now, now + Duration::from_secs(7_200)).expect("later changes nothing");
        assert_eq!(ring.staged, 1);
        ring.arm_timer(now, now + Duration::from_millis(1)).expect("earlier");
        assert_eq!(wait_for(&mut ring, Op::Timer).result, -libc::ETIME);
        ring.timer_fired();
        ring.arm_timer(now, now).expect("armed");
        wait_for(&mut ring, Op::Timer);
    }

    #[test]
    fn the_eventfd_is_written_only_while_watched() {
        let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
        let mut ring = Ring::new(4).expect("ring");
        let eventfd = ring.register_eventfd().expect("eventfd");
        let readable = |fd: &OwnedFd| {
            let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd that lives across the call.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        ring.watch_readable(ours.as_raw_fd(), Token::new(Op::Wake, 0, 0)).expect("staged");
        ring.enter(false).expect("enter");
        theirs.write_all(b"x").expect("written");
        assert!(!readable(&eventfd));
        wait_for(&mut ring, Op::Wake);
        ring.watch(true);
        ring.enter(false).expect("enter");
        assert!(!ring.has_completions() && !readable(&eventfd));
        theirs.write_all(b"x").expect("written");
        assert!(readable(&eventfd));
        wait_for(&mut ring, Op::Wake);
    }
}
