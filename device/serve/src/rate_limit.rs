// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A rate limit for log messages.
//!
//! The guest causes most messages. It can cause any number of them, and must not fill the
//! host's log. The limit is a layer of the log, so it applies to all code, libraries included.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Greatest number of messages of one call site in a burst.
const BURST: u32 = 30;

/// Time after which one more message is allowed.
const INTERVAL: Duration = Duration::from_secs(2);

/// A token bucket for each message, that is for each call site: it allows a burst, and then
/// one message each interval. The levels debug and trace are not limited.
#[derive(Debug, Default)]
pub struct RateLimit {
    buckets: Mutex<HashMap<Identifier, Bucket>>,
    suppressed: Arc<AtomicU64>,
}

impl RateLimit {
    /// Number of messages that were suppressed so far.
    pub fn suppressed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.suppressed)
    }
}

impl<S: Subscriber> Filter<S> for RateLimit {
    fn enabled(&self, _meta: &Metadata<'_>, _cx: &Context<'_, S>) -> bool {
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _cx: &Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let pass = self
            .buckets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(event.metadata().callsite())
            .or_default()
            .take(Instant::now());
        if !pass {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        pass
    }
}

/// A token bucket; each message takes a token.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    refilled: Option<Instant>,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            tokens: BURST,
            refilled: None,
        }
    }
}

impl Bucket {
    /// Takes a token if there is one at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let since = self.refilled.get_or_insert(now);
        let passed = now.saturating_duration_since(*since);
        let new = u32::try_from(passed.as_nanos() / INTERVAL.as_nanos()).unwrap_or(BURST);
        if new > 0 {
            *since = now;
            self.tokens = self.tokens.saturating_add(new).min(BURST);
        }
        let pass = self.tokens > 0;
        self.tokens -= u32::from(pass);
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut Bucket, now: Instant) -> usize {
        (0..100).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_burst_then_one_each_interval() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        assert_eq!(taken(&mut bucket, start), BURST as usize);
        assert_eq!(taken(&mut bucket, start + INTERVAL / 2), 0);
        assert_eq!(taken(&mut bucket, start + INTERVAL), 1);
        assert_eq!(taken(&mut bucket, start + 3 * INTERVAL), 2);
    }

    #[test]
    fn idle_time_fills_the_bucket_to_its_limit() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        taken(&mut bucket, start);
        assert_eq!(taken(&mut bucket, start + 1000 * INTERVAL), BURST as usize);
    }
}
