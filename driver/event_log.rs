// SPDX-License-Identifier: GPL-2.0

//! The log of a device's events, which user space can map.

use crate::{
    abstractions::mm::shared_memory::WordArea,
    uapi::{
        EVENT_LOG_PAGES,
        EVENT_RECORD_WORDS, //
    }, //
};
use kernel::{
    page::BorrowedPage,
    prelude::*,
    sync::atomic::{
        Full,
        Relaxed,
        Release, //
    },
    time::{
        hrtimer::HrTimerExpires, //
        Instant,
        Monotonic,
    }, //
};

/// A ring of records. Writing takes no lock; a reader that sees the count change while it reads a
/// record reads the record again.
pub(crate) struct EventLog(WordArea);

impl EventLog {
    /// An empty log. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(WordArea::new(EVENT_LOG_PAGES)?))
    }

    /// Adds a record. Any context.
    pub(crate) fn record(&self, kind: u64, values: [u64; 2]) {
        let words = self.0.words();
        let Some((count, records)) = words
            .split_at_checked(EVENT_RECORD_WORDS)
            .and_then(|(head, records)| Some((head.first()?, records)))
        else {
            return;
        };
        let Some(at) =
            (count.fetch_add(1, Full) as usize).checked_rem(records.len() / EVENT_RECORD_WORDS)
        else {
            return;
        };
        let time = Instant::<Monotonic>::now().as_nanos() as u64;
        let [first, second] = values;
        if let Some([at_time, at_kind, at_first, at_second]) =
            records.get(at * EVENT_RECORD_WORDS..(at + 1) * EVENT_RECORD_WORDS)
        {
            // The kind is cleared first and written last: a record that has a kind is complete.
            at_kind.store(0, Relaxed);
            at_time.store(time, Release);
            at_first.store(first, Release);
            at_second.store(second, Release);
            at_kind.store(kind, Release);
        }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.0.pages()
    }

    /// Page `index`, for a map.
    pub(crate) fn page(&self, index: usize) -> Option<BorrowedPage<'_>> {
        self.0.page(index)
    }
}
