//! The relay with nothing around it: one thread, one ring set up like the router's, one enter a turn.

use super::hub::Hub;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

const ENTRIES: u32 = 4_096;
const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 32 << 10;
/// Buffers offered at first; doubled each time the kernel finds none.
const OFFERED_MIN: usize = 16;
const GROUP: u16 = 0;
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// Relays on one CPU until the process ends. With `onward`, the address of another relay, each group has a connection to
/// the same group there, made when the first that sends joins here.
///
/// # Errors
/// When io_uring does not work, or the other relay does not answer.
pub fn relay(listener: TcpListener, cpu: u32, onward: Option<SocketAddr>) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &set)?;
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    let uring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_cqsize(4 * ENTRIES)
        .build(ENTRIES)?;
    let buffers = Buffers::new(&uring)?;
    let mut relay = Relay {
        uring,
        buffers,
        hub: Hub::default(),
        fds: Vec::new(),
        free: Vec::new(),
        sends: HashMap::new(),
        quiet: Vec::new(),
        onward,
    };
    relay.push(&opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build().user_data(ACCEPT))?;
    loop {
        relay.turn()?;
    }
}

struct Relay {
    uring: IoUring,
    buffers: Buffers,
    hub: Hub,
    fds: Vec<Option<OwnedFd>>,
    free: Vec<u32>,
    /// Sends under way by slot, and how much of each is out.
    sends: HashMap<u32, (Vec<u8>, usize)>,
    /// Sends staged since the last enter that have a completion only if they do not go out whole at once.
    quiet: Vec<u32>,
    onward: Option<SocketAddr>,
}

impl Relay {
    fn turn(&mut self) -> io::Result<()> {
        match self.uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut starved = Vec::new();
        let mut quiet = std::mem::take(&mut self.quiet);
        let completions: Vec<_> = self.uring.completion().collect();
        for completion in completions {
            let slot = (completion.user_data() >> 8) as u32;
            match completion.user_data() & 0xff {
                ACCEPT => self.accepted(completion.result())?,
                RECEIVE => {
                    self.received(slot, &completion, &mut starved);
                    self.extend()?;
                }
                _ => {
                    quiet.retain(|other| *other != slot);
                    self.sent(slot, completion.result())?;
                }
            }
        }
        for slot in quiet.drain(..) {
            let len = self.sends[&slot].0.len();
            self.sent(slot, len as i32)?;
        }
        while let Some(slot) = self.hub.next_to_send() {
            let bytes = self.hub.take(slot);
            self.stage_send(slot, bytes, 0, true)?;
        }
        self.buffers.refill();
        for slot in starved {
            self.arm(slot)?;
        }
        Ok(())
    }

    fn accepted(&mut self, fd: i32) -> io::Result<()> {
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: the kernel made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        self.open(fd).map(|_| ())
    }

    fn open(&mut self, fd: OwnedFd) -> io::Result<u32> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.fds.push(None);
            self.fds.len() as u32 - 1
        });
        self.fds[slot as usize] = Some(fd);
        self.hub.open(slot);
        self.arm(slot)?;
        Ok(slot)
    }

    /// Connects a group that somebody began to send in to the same group of the next relay.
    fn extend(&mut self) -> io::Result<()> {
        let (Some(onward), Some((here, there))) = (self.onward, self.hub.take_begun()) else { return Ok(()) };
        let mut stream = TcpStream::connect(onward)?;
        stream.set_nodelay(true)?;
        stream.write_all(&there)?;
        let slot = self.open(stream.into())?;
        self.hub.receive(slot, &here);
        Ok(())
    }

    fn fd(&self, slot: u32) -> RawFd {
        self.fds[slot as usize].as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn arm(&mut self, slot: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(self.fd(slot)), GROUP).build();
        self.push(&entry.user_data(RECEIVE | u64::from(slot) << 8))
    }

    fn received(&mut self, slot: u32, completion: &cqueue::Entry, starved: &mut Vec<u32>) {
        let flags = completion.flags();
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let bytes = self.buffers.filled(buffer, completion.result().max(0) as usize);
            self.hub.receive(slot, bytes);
            self.buffers.give_back(buffer);
        }
        if cqueue::more(flags) {
            return;
        }
        if completion.result() > 0 {
            starved.push(slot);
        } else if completion.result() == -libc::ENOBUFS {
            self.buffers.goal = (2 * self.buffers.goal).min(usize::from(BUFFERS));
            starved.push(slot);
        } else {
            self.hub.close(slot);
            self.fds[slot as usize] = None;
            // A send under way keeps the slot until it has failed.
            if !self.sends.contains_key(&slot) {
                self.free.push(slot);
            }
        }
    }

    fn sent(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let (bytes, done) = self.sends.remove(&slot).expect("one send a connection");
        if self.fds[slot as usize].is_none() {
            self.free.push(slot);
            return Ok(());
        }
        let done = done + result.max(0) as usize;
        if (result > 0 || result == -libc::EAGAIN) && done < bytes.len() {
            return self.stage_send(slot, bytes, done, false);
        }
        self.hub.sent(slot, bytes);
        Ok(())
    }

    fn stage_send(&mut self, slot: u32, bytes: Vec<u8>, done: usize, quiet: bool) -> io::Result<()> {
        let rest = &bytes[done..];
        let send = opcode::Send::new(Fd(self.fd(slot)), rest.as_ptr(), rest.len() as u32);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if quiet {
            self.quiet.push(slot);
            send.flags(flags | libc::MSG_DONTWAIT).build().flags(squeue::Flags::SKIP_SUCCESS)
        } else {
            send.flags(flags).build()
        }
        .user_data(SEND | u64::from(slot) << 8);
        // The bytes stay where they are while `sends` holds the vector.
        self.sends.insert(slot, (bytes, done));
        self.push(&entry)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: what an entry names is held in `sends` or `buffers` until its completion.
        if unsafe { self.uring.submission().push(entry) }.is_err() {
            self.uring.submit()?;
            // SAFETY: as above.
            unsafe { self.uring.submission().push(entry) }.expect("the queue was just emptied");
        }
        Ok(())
    }
}

/// Receive buffers, offered as the router's are: few, and those in use last first.
struct Buffers {
    /// Page-aligned.
    entries: Box<[Page]>,
    memory: Vec<u8>,
    free: Vec<u16>,
    offered: usize,
    goal: usize,
    tail: u16,
}

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; 4096]);

impl Buffers {
    fn new(uring: &IoUring) -> io::Result<Self> {
        let pages = (usize::from(BUFFERS) * size_of::<BufRingEntry>()).div_ceil(size_of::<Page>());
        let mut buffers = Self {
            entries: vec![Page([0; 4096]); pages].into(),
            memory: vec![0; usize::from(BUFFERS) * BUFFER_BYTES],
            free: (0..BUFFERS).rev().collect(),
            offered: 0,
            goal: OFFERED_MIN,
            tail: 0,
        };
        let address = buffers.entries.as_mut_ptr() as u64;
        // SAFETY: the relay holds both until the process ends.
        unsafe { uring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0) }?;
        buffers.refill();
        Ok(buffers)
    }

    fn filled(&mut self, id: u16, len: usize) -> &[u8] {
        self.offered -= 1;
        &self.memory[usize::from(id) * BUFFER_BYTES..][..len]
    }

    fn give_back(&mut self, id: u16) {
        self.free.push(id);
    }

    fn refill(&mut self) {
        let ring = self.entries.as_mut_ptr().cast::<BufRingEntry>();
        while self.offered < self.goal
            && let Some(id) = self.free.pop()
        {
            let bytes = &mut self.memory[usize::from(id) * BUFFER_BYTES..][..BUFFER_BYTES];
            // SAFETY: the index is below BUFFERS, for which there is room; the kernel reads the entry only after the
            // tail is stored.
            unsafe {
                let entry = &mut *ring.add(usize::from(self.tail & (BUFFERS - 1)));
                entry.set_addr(bytes.as_mut_ptr() as u64);
                entry.set_len(BUFFER_BYTES as u32);
                entry.set_bid(id);
            }
            self.tail = self.tail.wrapping_add(1);
            self.offered += 1;
        }
        // SAFETY: the tail is an aligned 16-bit field of the first entry.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(ring).cast_mut()) }
            .store(self.tail, Ordering::Release);
    }
}
