//! Patience is what a thread that writes a table has with its storage: it tries again until the work is done, or is not to be waited for any more.

use std::time::Duration;

use super::Error;
use crate::thread;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Tries of one piece of work once the thread is to end.
const LAST_TRIES: usize = 3;

/// Tries until it works, or fails for good, or `is_closed` and a few more tries have not helped. `waiting` hears why it has to wait, and `None`
/// when it goes on; `what` is the work in the log, where that is said once.
pub(super) fn retry<T>(
    (table, what): (&str, &str),
    is_closed: impl Fn() -> bool,
    waiting: impl Fn(Option<&str>),
    mut work: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let (mut backoff, mut waited, mut last_tries) = (BACKOFF_MIN, false, 0);
    loop {
        let error = match work() {
            Ok(done) => {
                if waited {
                    tracing::info!(table, "{what} goes on");
                    waiting(None);
                }
                return Ok(done);
            }
            Err(e) => e,
        };
        last_tries += usize::from(is_closed());
        if !error.is_passing() || last_tries >= LAST_TRIES {
            return Err(error);
        }
        if !waited {
            tracing::warn!(table, error = %error, "{what} waits");
            waited = true;
        }
        waiting(Some(&error.to_string()));
        let begun = thread::now();
        while thread::elapsed(begun) < backoff && (last_tries > 0 || !is_closed()) {
            thread::sleep(BACKOFF_MIN);
        }
        backoff = if last_tries > 0 { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
    }
}
