//! Trading is the shop's working day: the snapshot first, then live traffic at its rate.
//!
//! The invariant: the shop is never far ahead of the service, since the broker keeps 5 MiB a partition and drops the rest; and nothing
//! happens in it while somebody else has the floor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::changelog::Error;
use super::shop::Shop;
use crate::time::Position;

/// How far the shop may write ahead of what the service has read.
const AHEAD_MAX_BYTES: usize = 2 << 20;
/// After this many seconds of traffic the table of products gains a column.
const COLUMN_AFTER_S: f64 = 10.0;

/// Whoever holds it, nothing else happens in the shop.
pub(super) type Floor = Arc<tokio::sync::Mutex<()>>;

/// The shop's thread.
pub(super) struct Trading {
    pub shop: Arc<Mutex<Shop>>,
    pub floor: Floor,
    pub read: Box<dyn Fn() -> Position + Send + Sync>,
    pub stop: Arc<AtomicBool>,
    pub per_second: f64,
}

impl Trading {
    /// Writes the snapshot, and once it is `live` the traffic; counts in `wrote` what happened.
    pub fn run(self, live: &AtomicBool, wrote: &AtomicU64) -> Result<(), Error> {
        self.lock().flush()?;
        // Products come after their categories and brands, so that none has to wait for one.
        self.wait_for_room(0);
        let ids = self.lock().ids();
        for (n, id) in ids.iter().enumerate() {
            self.wait_for_room(AHEAD_MAX_BYTES);
            if self.stopped() {
                return Ok(());
            }
            self.lock().snapshot(*id, n + 1 == ids.len())?;
        }
        self.lock().flush()?;
        // A rate of nothing, or less, is no traffic.
        let interval = Duration::try_from_secs_f64(1.0 / self.per_second).ok();
        let (mut due, mut steps) = (Instant::now(), 0_u64);
        while !self.stopped() {
            let now = Instant::now();
            let Some(interval) = interval.filter(|_| live.load(Ordering::SeqCst) && due <= now) else {
                std::thread::sleep(Duration::from_millis(5));
                if !live.load(Ordering::SeqCst) {
                    due = now;
                }
                continue;
            };
            self.wait_for_room(AHEAD_MAX_BYTES);
            let floor = self.floor.blocking_lock();
            let mut shop = self.lock();
            if steps == (self.per_second * COLUMN_AFTER_S) as u64 {
                shop.add_column();
                say!("the table of products gains a column, eco_label: their events have another schema from now on");
            }
            if let Some(renamed) = shop.step()? {
                let (table, id, products) = (renamed.table, renamed.id, renamed.products);
                say!("the shop renamed {table} {id}, {}, to {}: {products} products", renamed.from, renamed.to);
            }
            drop((shop, floor));
            steps += 1;
            wrote.fetch_add(1, Ordering::Relaxed);
            // What was missed while the shop had to wait is not made up for, but for a moment's worth.
            due = (due + interval).max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        }
        self.lock().flush()
    }

    fn lock(&self) -> MutexGuard<'_, Shop> {
        self.shop.lock().expect("no holder of this lock panics")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn wait_for_room(&self, ahead_max_bytes: usize) {
        while !self.stopped() && self.lock().bytes_ahead(&(self.read)()) > ahead_max_bytes {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
