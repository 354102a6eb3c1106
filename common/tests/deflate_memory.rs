//! What compressors and decompressors hold of the heap, counted by the allocator: the bounds that memory is reserved by.

use common::transport::deflate::{DEFLATER_BYTES_MAX, Deflater, INFLATER_BYTES_MAX, Inflater};
use common::transport::{Framing, write_message};
use common::wire::Serializer;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// A thread that ends is not counted any more.
fn count(bytes: isize) {
    let _ = HELD_BYTES.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: everything is passed on to the system's allocator unchanged; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> isize {
    HELD_BYTES.with(Cell::get)
}

/// Messages of several kinds: repetitive, random and short ones.
fn messages() -> Vec<Vec<u8>> {
    let mut state = 7u64;
    let mut noise = move |bytes: usize| -> Vec<u8> {
        (0..bytes)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    };
    vec![b"signal box ".repeat(30_000), noise(300_000), vec![0; 1 << 20], noise(100), b"x".repeat(64)]
}

#[test]
fn a_compressor_holds_no_more_than_is_reserved_for_it() {
    let messages = messages();
    for level in 1..=9 {
        for window_bits in [9, 12, 15] {
            let before = held();
            let mut deflater = Deflater::new(level, window_bits);
            let mut sent = Vec::new();
            for message in &messages {
                let mut frame = Vec::new();
                write_message(Framing::WebSocket, Serializer::Cbor, message, &mut frame);
                let mut out = Vec::new();
                deflater.compress_frames(&frame, true, &mut out);
                sent.push(out);
            }
            let buffers: usize =
                sent.iter().map(Vec::capacity).sum::<usize>() + sent.capacity() * size_of::<Vec<u8>>();
            let deflater_bytes = held() - before - buffers as isize;
            assert!(
                (1..=DEFLATER_BYTES_MAX as isize).contains(&deflater_bytes),
                "level {level}, {window_bits} bits: {deflater_bytes} bytes"
            );
            drop((deflater, sent));
            assert_eq!(held(), before, "all is given back");
        }
    }
}

#[test]
fn a_decompressor_holds_no_more_than_is_reserved_for_it() {
    for window_bits in 9..=15 {
        let before = held();
        let mut inflater = Inflater::new(window_bits);
        let mut out = Vec::new();
        // "Hello", twice, the second time by reference to the first (RFC 7692, 7.2.3.2).
        for payload in [&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &[0xf2, 0x00, 0x11, 0x00, 0x00]] {
            inflater.inflate(payload, 5, &mut out).expect("right");
        }
        assert_eq!(out, b"HelloHello");
        let inflater_bytes = held() - before - out.capacity() as isize;
        assert!(
            (1..=INFLATER_BYTES_MAX as isize).contains(&inflater_bytes),
            "{window_bits} bits: {inflater_bytes} bytes"
        );
        drop((inflater, out));
        assert_eq!(held(), before, "all is given back");
    }
}
