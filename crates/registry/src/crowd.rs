//! Who is connected. There is room for so many; when it is taken, whoever has
//! moved nothing for longest has to go for the next one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// So many bytes are progress: a client that trickles makes none.
const STEP: u64 = 4096;

/// All connections.
#[derive(Debug)]
pub(crate) struct Crowd {
    began: Instant,
    most: usize,
    /// Who moved nothing for so long may have to go.
    patience: Duration,
    members: Mutex<(u64, HashMap<u64, Arc<Member>>)>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Member {
    id: u64,
    began: Instant,
    /// Milliseconds after `began` at which there was progress last.
    last: AtomicU64,
    /// Bytes since then.
    bytes: AtomicU64,
    /// Whether memory is kept for it that there is little of.
    large: AtomicBool,
    /// Told when it has to go.
    pub(crate) leave: Notify,
}

impl Crowd {
    pub(crate) fn new(most: usize, patience: Duration) -> Self {
        Self { began: Instant::now(), most, patience, members: Mutex::default() }
    }

    /// Takes one more in; `None` if there is no room and all are busy.
    pub(crate) fn join(&self) -> Option<Arc<Member>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, all) = &mut *members;
        if all.len() >= self.most {
            let idlest = all.values().min_by_key(|member| member.last.load(Ordering::Relaxed))?;
            if idlest.idle() < self.patience {
                return None;
            }
            let id = idlest.id;
            idlest.leave.notify_one();
            all.remove(&id);
        }
        *next += 1;
        let member = Arc::new(Member {
            id: *next,
            began: self.began,
            last: AtomicU64::new(millis(self.began)),
            bytes: AtomicU64::new(0),
            large: AtomicBool::new(false),
            leave: Notify::new(),
        });
        all.insert(*next, Arc::clone(&member));
        Some(member)
    }

    /// It has gone.
    pub(crate) fn part(&self, member: &Member) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&member.id);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).1.len()
    }
}

impl Member {
    /// Bytes went in or out.
    pub(crate) fn moved(&self, bytes: usize) {
        let bytes = bytes as u64;
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= STEP {
            self.stepped();
        }
    }

    /// The last that was read for it is in a large piece, or in a small one.
    pub(crate) fn keeps_large(&self, large: bool) {
        self.large.store(large, Ordering::Relaxed);
    }

    /// Whether a large piece is kept for it, most likely.
    pub(crate) fn has_large(&self) -> bool {
        self.large.load(Ordering::Relaxed)
    }

    /// There was progress: a request, say.
    pub(crate) fn stepped(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.last.store(millis(self.began), Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_full_the_idlest_goes_and_nobody_who_is_busy() {
        let crowd = Crowd::new(2, Duration::from_millis(50));
        let (a, b) = (crowd.join().unwrap(), crowd.join().unwrap());
        assert!(crowd.join().is_none(), "both have only just come");
        std::thread::sleep(Duration::from_millis(60));
        a.moved(10);
        b.moved(STEP as usize);
        let c = crowd.join().unwrap();
        let there = |member: &Member| crowd.members.lock().unwrap().1.contains_key(&member.id);
        assert_eq!((there(&a), there(&b), there(&c)), (false, true, true));
        crowd.part(&b);
        assert_eq!(crowd.count(), 1);
    }
}
