// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The buffers that the card has, and the frames that are due. The time is an argument, so this is
//! tested without a clock.

use std::collections::VecDeque;
use std::time::Duration;

/// A frame on its way to a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of frames since the start before this one.
    pub sequence: u64,
    /// Number of these that were dropped.
    pub dropped: u64,
}

/// Buffers of type `B`, oldest first, and the frames so far.
#[derive(Debug)]
pub struct Frames<B> {
    period: Duration,
    buffers: VecDeque<B>,
    /// The time of the next frame; `None` before the first buffer.
    due: Option<Duration>,
    sequence: u64,
    dropped: u64,
}

impl<B> Frames<B> {
    /// Without buffers; a frame is due each `period`.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            buffers: VecDeque::new(),
            due: None,
            sequence: 0,
            dropped: 0,
        }
    }

    /// Takes a buffer. From the first one on, frames are due, the first of them at once.
    pub fn post(&mut self, buffer: B, now: Duration) {
        self.buffers.push_back(buffer);
        self.due.get_or_insert(now);
    }

    /// The next frame that is due at `now`, with its buffer. Frames without a buffer are dropped.
    pub fn take(&mut self, now: Duration) -> Option<(B, Frame)> {
        while let Some(due) = self.due.filter(|&due| due <= now) {
            self.due = Some(due + self.period);
            let frame = Frame {
                sequence: self.sequence,
                dropped: self.dropped,
            };
            self.sequence += 1;
            match self.buffers.pop_front() {
                Some(buffer) => return Some((buffer, frame)),
                None => self.dropped += 1,
            }
        }
        None
    }

    /// The time of the next frame; `None` before the first buffer.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Number of frames that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns the buffers, which the driver has taken back. The next one begins anew.
    pub fn stop(&mut self) -> VecDeque<B> {
        std::mem::replace(self, Self::new(self.period)).buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn frame(sequence: u64, dropped: u64) -> Frame {
        Frame { sequence, dropped }
    }

    #[test]
    fn buffers_are_filled_in_order_one_each_period() {
        let mut frames = Frames::new(ms(10));
        assert_eq!((frames.due(), frames.take(ms(99))), (None, None));
        for buffer in ['a', 'b', 'c'] {
            frames.post(buffer, ms(100));
        }
        assert_eq!(frames.take(ms(100)), Some(('a', frame(0, 0))));
        assert_eq!(frames.take(ms(109)), None);
        assert_eq!(frames.due(), Some(ms(110)));
        // Late, but there are buffers: nothing is lost.
        assert_eq!(frames.take(ms(125)), Some(('b', frame(1, 0))));
        assert_eq!(frames.take(ms(125)), Some(('c', frame(2, 0))));
        assert_eq!(frames.take(ms(125)), None);
    }

    #[test]
    fn frames_without_a_buffer_are_counted() {
        let mut frames = Frames::new(ms(10));
        frames.post('a', ms(0));
        assert_eq!(frames.take(ms(0)), Some(('a', frame(0, 0))));
        assert_eq!(frames.take(ms(35)), None);
        assert_eq!(frames.dropped(), 3);
        frames.post('b', ms(36));
        assert_eq!(frames.take(ms(36)), None);
        assert_eq!(frames.take(ms(40)), Some(('b', frame(4, 3))));
    }

    #[test]
    fn a_stop_returns_the_buffers_and_begins_anew() {
        let mut frames = Frames::new(ms(10));
        frames.post('a', ms(0));
        frames.post('b', ms(0));
        assert_eq!(frames.take(ms(0)), Some(('a', frame(0, 0))));
        assert_eq!(frames.stop(), ['b']);
        assert_eq!((frames.due(), frames.dropped()), (None, 0));
        frames.post('c', ms(50));
        assert_eq!(frames.take(ms(50)), Some(('c', frame(0, 0))));
    }
}
