//! Threads, their waits and their clock: the system's; or a simulation's, in which one thread at a time has its turn, and time is what they wait.
//!
//! The invariant: a thread of the service waits for another one only here, and then looks again whether what it waited for has come: a wait may end
//! early. So a simulation has to know nothing of what is waited for, and who runs next is its own to say.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a simulated thread waits at most for what has no limit, before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Whoever says which thread has its turn.
pub(crate) trait Turns: Send + Sync {
    fn now(&self) -> Instant;

    /// A thread more, which waits for its first turn.
    fn add(&self, name: &str) -> usize;

    /// Waits for a thread's first turn.
    fn begin(&self, thread: usize);

    /// Ends a thread's turn, and waits for its next, which comes by itself after `at_most` or before.
    fn pause(&self, thread: usize, at_most: Duration);

    /// Ends a thread's last turn.
    fn end(&self, thread: usize);
}

thread_local! {
    /// The simulation that this thread is one of.
    static MINE: RefCell<Option<(Arc<dyn Turns>, usize)>> = const { RefCell::new(None) };
}

fn mine() -> Option<(Arc<dyn Turns>, usize)> {
    MINE.with_borrow(Clone::clone)
}

/// Makes this thread one of a simulation while `work` lasts.
pub(crate) fn simulate<T>(turns: &Arc<dyn Turns>, name: &str, work: impl FnOnce() -> T) -> T {
    let thread = turns.add(name);
    turns.begin(thread);
    let _turn = Turn::of(turns, thread, Arc::default());
    work()
}

/// A simulated thread's turns; they end also when it panics.
struct Turn(Arc<dyn Turns>, usize, Arc<AtomicBool>);

impl Turn {
    fn of(turns: &Arc<dyn Turns>, thread: usize, is_done: Arc<AtomicBool>) -> Turn {
        MINE.set(Some((turns.clone(), thread)));
        Turn(turns.clone(), thread, is_done)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        MINE.set(None);
        self.2.store(true, Ordering::SeqCst);
        self.0.end(self.1);
    }
}

pub fn now() -> Instant {
    mine().map_or_else(Instant::now, |(turns, _)| turns.now())
}

/// Since then.
pub fn elapsed(since: Instant) -> Duration {
    now().saturating_duration_since(since)
}

pub fn sleep(time: Duration) {
    match mine() {
        Some((turns, thread)) => turns.pause(thread, time),
        None => std::thread::sleep(time),
    }
}

/// Lets other threads of a simulation have their turns; elsewhere they have them anyway.
pub(crate) fn pause(at_most: Duration) {
    if let Some((turns, thread)) = mine() {
        turns.pause(thread, at_most);
    }
}

pub struct JoinHandle<T> {
    thread: std::thread::JoinHandle<T>,
    is_done: Arc<AtomicBool>,
}

/// Starts a thread: of the same simulation, if this one is simulated.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let is_done = Arc::new(AtomicBool::new(false));
    let done = is_done.clone();
    let turns = mine().map(|(turns, _)| (turns.add(name), turns));
    let work = move || match turns {
        None => {
            let made = work();
            done.store(true, Ordering::SeqCst);
            made
        }
        Some((thread, turns)) => {
            turns.begin(thread);
            let _turn = Turn::of(&turns, thread, done);
            work()
        }
    };
    Ok(JoinHandle { thread: std::thread::Builder::new().name(name.into()).spawn(work)?, is_done })
}

impl<T> JoinHandle<T> {
    /// Whether its work is done.
    pub fn is_finished(&self) -> bool {
        self.is_done.load(Ordering::SeqCst) || (mine().is_none() && self.thread.is_finished())
    }

    /// Waits for its end; fails when it has panicked.
    pub fn join(self) -> std::thread::Result<T> {
        while mine().is_some() && !self.is_finished() {
            pause(LOOK_AGAIN);
        }
        self.thread.join()
    }
}

/// [`std::sync::Condvar`], with the mutex that its waiters hold. No holder of that may panic.
#[derive(Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<'m, T>(&self, of: &'m Mutex<T>, held: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
        match mine() {
            Some(_) => self.wait_timeout(of, held, LOOK_AGAIN).0,
            None => self.0.wait(held).expect("no holder of this lock panics"),
        }
    }

    /// Says also whether the time was up.
    pub fn wait_timeout<'m, T>(
        &self,
        of: &'m Mutex<T>,
        held: MutexGuard<'m, T>,
        time: Duration,
    ) -> (MutexGuard<'m, T>, bool) {
        if mine().is_some() {
            drop(held);
            pause(time);
            return (of.lock().expect("no holder of this lock panics"), true);
        }
        let (held, timeout) = self.0.wait_timeout(held, time).expect("no holder of this lock panics");
        (held, timeout.timed_out())
    }
}

pub fn recv_timeout<T>(from: &Receiver<T>, time: Duration) -> Result<T, RecvTimeoutError> {
    if mine().is_none() {
        return from.recv_timeout(time);
    }
    pause(time);
    from.try_recv().map_err(|e| match e {
        TryRecvError::Empty => RecvTimeoutError::Timeout,
        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
    })
}

pub fn recv<T>(from: &Receiver<T>) -> Result<T, RecvError> {
    if mine().is_none() {
        return from.recv();
    }
    loop {
        match recv_timeout(from, LOOK_AGAIN) {
            Ok(received) => return Ok(received),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
        }
    }
}
