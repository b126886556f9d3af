//! Precedence: threads that embed batches give way while queries are embedded, so that a search does not wait for the indexer.
//!
//! The invariant: no more threads give way than queries run, and each for no longer than it has worked since it last did: however many queries
//! come, a batch keeps half of its pace.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Precedence {
    /// Queries that run now; changed under the lock, read without it by whoever has no need to wait.
    queries: AtomicUsize,
    /// Threads that give way now.
    waiting: Mutex<usize>,
    changed: Condvar,
}

/// A query that runs; it has ended when this is dropped.
pub(super) struct Query<'a>(&'a Precedence);

impl Precedence {
    pub fn query(&self) -> Query<'_> {
        let _waiting = self.lock();
        self.queries.fetch_add(1, Ordering::Relaxed);
        Query(self)
    }

    /// Waits while there are more queries than threads that wait for them, at most as long as the thread has `worked`.
    pub fn give_way(&self, worked: Duration) {
        if self.queries.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut waiting = self.lock();
        if *waiting >= self.queries.load(Ordering::Relaxed) {
            return;
        }
        *waiting += 1;
        let runs = |waiting: &mut usize| self.queries.load(Ordering::Relaxed) >= *waiting;
        let (mut waiting, _) =
            self.changed.wait_timeout_while(waiting, worked, runs).expect("no holder of this lock panics");
        *waiting -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        let waiting = self.0.lock();
        self.0.queries.fetch_sub(1, Ordering::Relaxed);
        drop(waiting);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_thread_waits_for_a_query_to_end_and_others_go_on() {
        let precedence = Precedence::default();
        precedence.give_way(LONG);
        let query = precedence.query();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| precedence.give_way(LONG));
            while *precedence.lock() == 0 {
                std::thread::yield_now();
            }
            // One query holds up one thread: this returns although the query runs on.
            precedence.give_way(LONG);
            assert!(!waits.is_finished());
            drop(query);
            waits.join().unwrap();
        });
        assert_eq!(*precedence.lock(), 0);
    }

    #[test]
    fn a_thread_waits_no_longer_than_it_has_worked() {
        let precedence = Precedence::default();
        let _query = precedence.query();
        precedence.give_way(Duration::from_micros(10));
        assert_eq!(*precedence.lock(), 0);
    }

    #[test]
    fn two_queries_hold_up_two_threads_and_each_end_frees_one() {
        let precedence = Precedence::default();
        let (first, second) = (precedence.query(), precedence.query());
        std::thread::scope(|scope| {
            let (send, freed) = std::sync::mpsc::channel();
            for _ in 0..2 {
                let (send, precedence) = (send.clone(), &precedence);
                scope.spawn(move || {
                    precedence.give_way(LONG);
                    send.send(()).unwrap();
                });
            }
            while *precedence.lock() < 2 {
                std::thread::yield_now();
            }
            drop(first);
            freed.recv().unwrap();
            assert_eq!(*precedence.lock(), 1);
            assert!(freed.try_recv().is_err());
            drop(second);
            freed.recv().unwrap();
        });
    }
}
