//! The memory allocator of both processes, and of the benches that time single turns.
//!
//! Its own thread gives memory back to the kernel. The C library's does that, and sorts what was freed, inside some
//! later allocation: after 10,000 routes have changed one allocation takes over a millisecond.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
