//! The turns of a simulated process's threads: one at a time, the next is the one whose wait is over first, and how long each waits is drawn.
//!
//! The invariant: the same seed gives the same turns. Time passes in waits alone, so that an hour of waiting takes no longer than a second of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::thread;

/// How much longer a thread waits than it asks for, at most: what a thread does may always take longer.
const SLOW: [Duration; 4] = [Duration::ZERO, Duration::ZERO, Duration::from_millis(20), Duration::from_millis(300)];

pub struct Turns {
    now: Mutex<Now>,
    begun: Instant,
}

struct Now {
    time: Duration,
    rng: StdRng,
    threads: Vec<Thread>,
    /// When whose next turn comes, the first at the top; equal times go by lot.
    waiting: BinaryHeap<Reverse<(Duration, u32, usize)>>,
    /// Threads that have not ended.
    living: usize,
    /// Whether a thread has its turn.
    is_taken: bool,
}

struct Thread {
    slow: Duration,
    turn: Arc<Turn>,
}

/// Whether it is a thread's turn.
#[derive(Default)]
struct Turn {
    is: Mutex<bool>,
    changed: Condvar,
}

impl Turn {
    fn give(&self) {
        *self.is.lock().expect("no holder of this lock panics") = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let is = self.is.lock().expect("no holder of this lock panics");
        let mut is = self.changed.wait_while(is, |is| !*is).expect("no holder of this lock panics");
        *is = false;
    }
}

impl Turns {
    pub fn new(seed: u64) -> Arc<Turns> {
        let now = Now {
            time: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            threads: Vec::new(),
            waiting: BinaryHeap::new(),
            living: 0,
            is_taken: false,
        };
        Arc::new(Turns { now: Mutex::new(now), begun: Instant::now() })
    }

    /// Threads that have not ended, this one included.
    pub fn living(&self) -> usize {
        self.now().living
    }

    /// How long it has lasted.
    pub fn time(&self) -> Duration {
        self.now().time
    }

    /// It is so much later.
    pub fn skip(&self, time: Duration) {
        self.now().time += time;
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("no holder of this lock panics")
    }
}

impl Now {
    fn wait(&mut self, thread: usize, at_most: Duration) {
        let longest = (at_most + self.threads[thread].slow).as_micros() as u64;
        let wait = Duration::from_micros(self.rng.random_range(0..=longest));
        self.waiting.push(Reverse((self.time + wait, self.rng.random(), thread)));
    }

    /// Gives the turn to who is next.
    fn go_on(&mut self) {
        let next = self.waiting.pop();
        self.is_taken = next.is_some();
        if let Some(Reverse((time, _, next))) = next {
            self.time = self.time.max(time);
            self.threads[next].turn.give();
        }
    }
}

impl thread::Turns for Turns {
    fn now(&self) -> Instant {
        self.begun + self.now().time
    }

    fn add(&self, _: &str) -> usize {
        let now = &mut *self.now();
        let slow = *SLOW.choose(&mut now.rng).expect("not empty");
        now.threads.push(Thread { slow, turn: Arc::default() });
        now.living += 1;
        let thread = now.threads.len() - 1;
        now.wait(thread, Duration::ZERO);
        if !now.is_taken {
            now.go_on();
        }
        thread
    }

    fn begin(&self, thread: usize) {
        // The service would tell of every crash. The thread is of a simulation until it ends.
        std::mem::forget(tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default()));
        let turn = self.now().threads[thread].turn.clone();
        turn.wait();
    }

    fn pause(&self, thread: usize, at_most: Duration) {
        let turn = {
            let mut now = self.now();
            now.wait(thread, at_most);
            now.go_on();
            now.threads[thread].turn.clone()
        };
        turn.wait();
    }

    fn end(&self, _: usize) {
        let mut now = self.now();
        now.living -= 1;
        now.go_on();
    }
}
