//! The allocator of this binary: the system's, with a note of the largest single allocation that each thread has asked for.
//!
//! It is how a test sees that a length that a message only claims is not allocated. It changes nothing of what is handed out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Noting;

#[global_allocator]
static ALLOCATOR: Noting = Noting;

fn note(size: usize) {
    // A thread that is ending has no note any more, and nobody who would read it.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator as it is; noting a size allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: `at` came from the system's allocator with this layout.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Does the work and says how many bytes the largest allocation had that it made on this thread.
pub fn largest_during<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.with(|largest| largest.set(0));
    let done = work();
    (done, LARGEST.with(Cell::get))
}

#[test]
fn a_large_allocation_is_seen() {
    let (_, largest) = largest_during(|| std::hint::black_box(vec![0_u8; 3 << 20]));
    assert_eq!(largest, 3 << 20);
    assert!(largest_during(|| std::hint::black_box(vec![0_u8; 10])).1 < 1000);
}
