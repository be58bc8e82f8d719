//! When to try again: exponential back-off with jitter, bounded in count and time.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::error::{RemoteError, Result};
use crate::options::Options;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause that we choose ourselves.
const LONGEST: Duration = Duration::from_secs(10);
/// How often somebody who cannot be reached at all is tried again.
const UNREACHABLE: u32 = 2;
/// Longer than anybody waits; what a registry names beyond it is no time that
/// clocks can be set to.
const NEVER: Duration = Duration::from_secs(86_400);

/// The tries of one operation.
#[derive(Debug)]
pub(crate) struct Retry {
    failures: u32,
    retries: u32,
    /// When to give up, unless there is progress.
    until: Instant,
    stuck: Duration,
    /// When to give up, progress or not.
    deadline: Option<Instant>,
}

impl Retry {
    /// Of a transfer: each piece of progress gives it new tries.
    pub(crate) fn transfer(options: &Options) -> Self {
        let (now, retries, stuck) = (Instant::now(), options.retries, options.stuck);
        let deadline = options.transfer.map(|transfer| now + transfer);
        Self { failures: 0, retries, until: now + stuck, stuck, deadline }
    }

    /// Of a look-up, which ends in time whatever happens.
    pub(crate) fn lookup(options: &Options) -> Self {
        let deadline = Instant::now() + options.lookup;
        Self { deadline: Some(deadline), ..Self::transfer(options) }
    }

    /// When the whole operation must be over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Something of it was done.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
        self.until = Instant::now() + self.stuck;
    }

    /// Waits for the next try.
    ///
    /// # Errors
    /// The error again, if there is to be no other try.
    pub(crate) fn again(&mut self, error: RemoteError) -> Result<()> {
        let worth = error.is_transient();
        self.again_if(worth, error)
    }

    /// The same, by the caller's judgement.
    ///
    /// # Errors
    /// The error again, if there is to be no other try.
    pub(crate) fn again_if(&mut self, worth: bool, error: RemoteError) -> Result<()> {
        let retries = match error {
            RemoteError::Unreachable { .. } => self.retries.min(UNREACHABLE),
            _ => self.retries,
        };
        if !worth || self.failures >= retries {
            return Err(error);
        }
        let wanted = match &error {
            RemoteError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        let pause =
            wanted.unwrap_or_else(|| jittered(FIRST * 2_u32.pow(self.failures.min(8)))).max(FIRST / 2);
        self.failures += 1;
        let end = self.deadline.map_or(self.until, |deadline| deadline.min(self.until));
        if pause >= end.saturating_duration_since(Instant::now()) {
            return Err(error);
        }
        std::thread::sleep(pause);
        Ok(())
    }

    /// Does it until it works, or is not worth another try.
    ///
    /// # Errors
    /// The last one.
    pub(crate) fn run<T>(mut self, mut once: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            match once(&mut self) {
                Ok(done) => return Ok(done),
                Err(error) => self.again(error)?,
            }
        }
    }
}

/// Half of it to all of it: many who were refused at once do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let pause = pause.min(LONGEST);
    let random = RandomState::new().build_hasher().finish() % 1024;
    pause / 2 + pause.mul_f64(random as f64 / 2048.0)
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3). A date is not read: no
/// decision hangs on clocks here.
pub(crate) fn retry_after(header: &str) -> Option<Duration> {
    header.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).min(NEVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retry_after: Option<Duration>) -> RemoteError {
        let (registry, what, said) = ("r".into(), "w".into(), String::new());
        RemoteError::Refused { registry, what, status, said, retry_after }
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        let options = Options { retries: 2, ..Options::default() };
        let tries = |status: u16| {
            let mut tries = 0;
            let failed: Result<()> = Retry::transfer(&options).run(|_| {
                tries += 1;
                Err(refused(status, Some(Duration::ZERO)))
            });
            assert_eq!(failed.unwrap_err().status(), Some(status));
            tries
        };
        assert_eq!([tries(503), tries(429), tries(404), tries(507)], [3, 3, 1, 1]);
    }

    #[test]
    fn nobody_waits_longer_than_the_bound_for_who_says_come_back_next_year() {
        let began = Instant::now();
        for long in ["31536000", "18446744073709551615"] {
            let mut retry = Retry::transfer(&Options::default());
            assert!(retry.again(refused(429, retry_after(long))).is_err(), "{long}");
        }
        let mut retry = Retry::transfer(&Options::default());
        assert!(retry.again(refused(429, Some(Duration::MAX))).is_err());
        let mut lookup = Retry::lookup(&Options { lookup: Duration::from_millis(50), ..Options::default() });
        assert!(lookup.again(refused(503, None)).is_err());
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn progress_gives_new_tries() {
        let mut retry = Retry::transfer(&Options { retries: 1, ..Options::default() });
        for _ in 0..3 {
            assert!(retry.again(refused(503, Some(Duration::ZERO))).is_ok());
            retry.progressed();
        }
    }

    #[test]
    fn pauses_differ_and_stay_within_half_and_all() {
        let pauses: Vec<_> = (0..50).map(|_| jittered(FIRST)).collect();
        assert!(pauses.iter().all(|pause| (FIRST / 2..=FIRST).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
