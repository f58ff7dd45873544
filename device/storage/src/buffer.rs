// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that the kernel reads and writes for asynchronous operations.
//!
//! Direct I/O wants addresses, offsets and lengths in whole blocks. A buffer is made for an
//! [`Extent`] of a storage, of any offset and length, and has room for the blocks around it.
//!
//! The memory of all buffers together is limited: a guest may have thousands of requests of
//! megabytes in flight. Whoever finds no room waits in a line without blocking, and is called
//! once there is. Nobody may wait for a second buffer while having a first.
//!
//! Memory of buffers that are not used any more is kept for the next ones, as far as both together
//! are within the limit: memory that is new costs its pages, and zeros in them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::aligned::Memory;
use crate::extent::{Extent, Owner};

/// Smallest piece of memory, in bytes.
const MIN_BYTES: usize = 4096;

/// Sizes of pieces between one power of two and the next. Few sizes are used again more often,
/// and many leave less of a piece unused: here at most an eighth, beyond [`MIN_BYTES`].
const SIZES_PER_DOUBLING: usize = 8;

/// Called with the buffers that were waited for.
pub type Granted = Box<dyn FnOnce(Vec<Buffer>) + Send>;

/// Somebody who waits for buffers.
struct Waiting {
    owner: Owner,
    extents: Vec<Extent>,
    granted: Granted,
}

#[derive(Default)]
struct State {
    /// Bytes of the buffers in use.
    used: usize,
    /// Pieces to be used again, by size. None of the lists is empty.
    kept: BTreeMap<usize, Vec<Memory>>,
    /// Bytes of these.
    kept_bytes: usize,
    waiting: VecDeque<Waiting>,
    /// Somebody serves those who wait.
    serving: bool,
}

impl State {
    /// Takes a piece of this size that was kept.
    fn take_kept(&mut self, size: usize) -> Option<Memory> {
        let pieces = self.kept.get_mut(&size)?;
        let memory = pieces.pop();
        if pieces.is_empty() {
            self.kept.remove(&size);
        }
        self.kept_bytes -= memory.as_ref().map_or(0, Memory::len);
        memory
    }

    /// Takes kept pieces, the largest first, until those that remain are within the limit with
    /// the buffers in use.
    fn evict(&mut self, limit: usize) -> Vec<Memory> {
        let mut evicted = Vec::new();
        while self.used.saturating_add(self.kept_bytes) > limit
            && let Some((&size, _)) = self.kept.last_key_value()
        {
            evicted.extend(self.take_kept(size));
        }
        evicted
    }
}

struct Pool {
    granularity: u64,
    align: usize,
    limit: usize,
    state: Mutex<State>,
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done with the lock held can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory for an extent.
    fn size(&self, extent: Extent) -> usize {
        let bytes = extent.blocks(self.granularity).length as usize;
        let step = bytes.next_power_of_two() / 2 / SIZES_PER_DOUBLING;
        bytes.max(1).next_multiple_of(step.max(MIN_BYTES))
    }

    /// Takes note of buffers in use if there is room for them, whatever their size if there
    /// are no others.
    fn reserve(&self, state: &mut State, extents: &[Extent]) -> bool {
        let bytes: usize = extents.iter().map(|extent| self.size(*extent)).sum();
        let fits = state.used == 0 || state.used.saturating_add(bytes) <= self.limit;
        if fits {
            state.used += bytes;
        }
        fits
    }

    fn piece(&self, size: usize) -> Memory {
        let evicted = {
            let mut state = self.state();
            if let Some(memory) = state.take_kept(size) {
                return memory;
            }
            state.evict(self.limit)
        };
        // Not with the lock held: it may be a call of the kernel.
        drop(evicted);
        Memory::zeroed(size, self.align)
    }

    /// The buffers for which there is room.
    fn make(self: &Arc<Self>, extents: &[Extent]) -> Vec<Buffer> {
        let make = |extent: &Extent| {
            let size = self.size(*extent);
            Buffer::new(
                *extent,
                self.granularity,
                self.piece(size),
                Some((Arc::clone(self), size)),
            )
        };
        extents.iter().map(make).collect()
    }

    /// A buffer is not used any more.
    fn release(self: &Arc<Self>, size: usize, memory: Option<Memory>) {
        let evicted = {
            let mut state = self.state();
            state.used -= size;
            if let Some(memory) = memory {
                state.kept_bytes += size;
                state.kept.entry(size).or_default().push(memory);
            }
            // What is larger than the limit was had alone, and is not kept.
            state.evict(self.limit)
        };
        drop(evicted);
        self.serve();
    }

    /// Gives buffers to those who wait, the first one first. One who is called may drop
    /// others, which is no recursion: whoever is serving goes on.
    fn serve(self: &Arc<Self>) {
        /// Ends it however the call ends.
        struct Serving<'a>(&'a Pool);
        impl Drop for Serving<'_> {
            fn drop(&mut self) {
                self.0.state().serving = false;
            }
        }
        loop {
            let next = {
                let mut state = self.state();
                let Some(first) = state.waiting.pop_front() else {
                    return;
                };
                if state.serving || !self.reserve(&mut state, &first.extents) {
                    state.waiting.push_front(first);
                    return;
                }
                state.serving = true;
                first
            };
            let _serving = Serving(self);
            (next.granted)(self.make(&next.extents));
        }
    }
}

/// The buffers of a storage.
#[derive(Clone)]
pub struct Buffers(Arc<Pool>);

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        f.debug_struct("Buffers")
            .field("used", &state.used)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Buffers {
    /// For a storage with blocks of `granularity` bytes, whose memory lies at multiples of
    /// `align`; both are powers of two. All buffers together have at most `limit` bytes, but
    /// for a single one that is larger.
    pub fn new(granularity: u64, align: usize, limit: usize) -> Self {
        Self(Arc::new(Pool {
            granularity,
            align: align.max(MIN_BYTES),
            limit,
            state: Mutex::default(),
        }))
    }

    /// One buffer for each extent, if there is room for all of them and nobody waits. Their
    /// bytes are initialised, with anything.
    pub fn try_take(&self, extents: &[Extent]) -> Option<Vec<Buffer>> {
        {
            let mut state = self.0.state();
            if !state.waiting.is_empty() || !self.0.reserve(&mut state, extents) {
                return None;
            }
        }
        Some(self.0.make(extents))
    }

    /// Calls `granted` once with one buffer for each extent, now or later, on any thread. It
    /// is dropped where the owner cancels, and must not block.
    pub fn wait(&self, owner: Owner, extents: Vec<Extent>, granted: Granted) {
        self.0.state().waiting.push_back(Waiting {
            owner,
            extents,
            granted,
        });
        self.0.serve();
    }

    /// Forgets what an owner waits for.
    pub fn cancel(&self, owner: Owner) {
        let cancelled = {
            let mut state = self.0.state();
            let waiting = std::mem::take(&mut state.waiting);
            let (cancelled, others): (VecDeque<_>, VecDeque<_>) =
                waiting.into_iter().partition(|other| other.owner == owner);
            state.waiting = others;
            cancelled
        };
        // Not with the lock held: whoever is dropped may have buffers.
        drop(cancelled);
        // The first one may have been in the way.
        self.0.serve();
    }

    /// A buffer outside the limit, for those who have only one.
    pub(crate) fn unlimited(&self, extent: Extent) -> Buffer {
        Buffer::zeroed(extent, self.0.granularity, self.0.align)
    }
}

/// Memory for the bytes of an extent of a storage.
pub struct Buffer {
    /// # Invariants
    ///
    /// `None` only while the storage that the buffer was submitted to has the memory.
    memory: Option<Memory>,
    extent: Extent,
    /// How many bytes of the extent's first block come before it.
    lead: usize,
    /// Where the memory goes back to, and how much was reserved there.
    pool: Option<(Arc<Pool>, usize)>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.extent).finish()
    }
}

impl Buffer {
    fn new(
        extent: Extent,
        granularity: u64,
        memory: Memory,
        pool: Option<(Arc<Pool>, usize)>,
    ) -> Self {
        Self {
            memory: Some(memory),
            extent,
            lead: (extent.offset % granularity) as usize,
            pool,
        }
    }

    /// Zeros that come from no pool.
    pub(crate) fn zeroed(extent: Extent, granularity: u64, align: usize) -> Self {
        let bytes = extent.blocks(granularity).length.max(1) as usize;
        Self::new(extent, granularity, Memory::zeroed(bytes, align), None)
    }

    /// For which bytes of the storage it is.
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// The bytes of the extent.
    pub fn data(&self) -> &[u8] {
        // PANIC: by the invariant.
        let memory = self.memory.as_ref().expect("the memory is here");
        &memory.bytes()[self.lead..][..self.extent.length as usize]
    }

    /// The bytes of the extent.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // PANIC: by the invariant.
        let memory = self.memory.as_mut().expect("the memory is here");
        &mut memory.bytes_mut()[self.lead..][..self.extent.length as usize]
    }

    /// Copies the bytes before the extent from `block`, the first block that it touches.
    pub(crate) fn fill_head(&mut self, block: &[u8]) {
        let lead = self.lead;
        if let Some(memory) = &mut self.memory {
            memory.bytes_mut()[..lead].copy_from_slice(&block[..lead]);
        }
    }

    /// Copies the bytes after the extent from `block`, the last block that it touches.
    pub(crate) fn fill_tail(&mut self, block: &[u8]) {
        let end = self.lead + self.extent.length as usize;
        let rest = end.next_multiple_of(block.len()) - end;
        if let Some(memory) = &mut self.memory {
            memory.bytes_mut()[end..][..rest].copy_from_slice(&block[block.len() - rest..]);
        }
    }

    /// Takes the memory, for the kernel.
    pub(crate) const fn take_memory(&mut self) -> Option<Memory> {
        self.memory.take()
    }

    /// Puts the memory back.
    pub(crate) fn put_memory(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((pool, size)) = self.pool.take() {
            pool.release(size, self.memory.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const BLOCK: u64 = 512;
    const OWNER: Owner = Owner(0);

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    #[test]
    fn a_buffer_has_room_for_the_blocks_around_it() {
        let buffers = Buffers::new(BLOCK, 4096, 1 << 20);
        let extents = [
            extent(0, 1),
            extent(511, 2),
            extent(513, 4095),
            extent(1000, 100_000),
        ];
        for extent in extents {
            let mut buffer = buffers.try_take(&[extent]).unwrap().remove(0);
            buffer.data_mut().fill(1);
            buffer.fill_head(&[2; BLOCK as usize]);
            buffer.fill_tail(&[3; BLOCK as usize]);
            let memory = buffer.take_memory().unwrap();
            assert_eq!(memory.as_ptr().addr() % 4096, 0);
            let lead = (extent.offset % BLOCK) as usize;
            let end = lead + extent.length as usize;
            let bytes = &memory.bytes()[..end.next_multiple_of(BLOCK as usize)];
            assert!(bytes[..lead].iter().all(|byte| *byte == 2));
            assert!(bytes[lead..end].iter().all(|byte| *byte == 1));
            assert!(bytes[end..].iter().all(|byte| *byte == 3));
            // Its memory is lost, and its place is not.
            drop(buffer);
        }
        assert_eq!(buffers.0.state().used, 0);
    }

    /// The first who waits gets buffers first, and nobody overtakes.
    #[test]
    fn whoever_waits_is_served_in_order() {
        let buffers = Buffers::new(BLOCK, 4096, 16 << 10);
        let first = buffers
            .try_take(&[extent(0, 4096), extent(0, 4096)])
            .unwrap();
        let second = buffers.try_take(&[extent(0, 8192)]).unwrap();
        assert!(buffers.try_take(&[extent(0, 1)]).is_none());
        let (sender, granted) = channel();
        let wait = |number: u32, lengths: &[u64]| {
            let sender = sender.clone();
            let extents = lengths.iter().map(|length| extent(0, *length)).collect();
            let granted = move |buffers: Vec<Buffer>| sender.send((number, buffers)).unwrap();
            buffers.wait(OWNER, extents, Box::new(granted));
        };
        wait(0, &[8192, 4096]);
        wait(1, &[100]);
        wait(2, &[100]);
        drop(second);
        // The first one wants more than that.
        assert!(granted.try_recv().is_err());
        assert!(buffers.try_take(&[extent(0, 1)]).is_none());
        drop(first);
        let taken: Vec<_> = granted.try_iter().collect();
        let lengths = |(number, buffers): &(u32, Vec<Buffer>)| {
            let lengths = buffers.iter().map(|buffer| buffer.data().len());
            (*number, lengths.collect::<Vec<_>>())
        };
        assert!(
            taken
                .iter()
                .map(lengths)
                .eq([(0, vec![8192, 4096]), (1, vec![100])])
        );
        drop(taken);
        assert_eq!(granted.try_recv().unwrap().0, 2);
        assert_eq!(buffers.0.state().used, 0);
    }

    #[test]
    fn a_buffer_beyond_the_limit_is_had_alone() {
        let buffers = Buffers::new(BLOCK, 4096, 8192);
        let small = buffers.try_take(&[extent(0, 1)]);
        assert!(buffers.try_take(&[extent(0, 1 << 20)]).is_none());
        drop(small);
        let large = buffers.try_take(&[extent(0, 1 << 20)]).unwrap();
        assert!(buffers.try_take(&[extent(0, 1)]).is_none());
        drop(large);
        assert!(buffers.try_take(&[extent(0, 1)]).is_some());
    }

    /// Whoever is called drops its buffers at once, however many wait: no recursion.
    #[test]
    fn a_long_line_is_served() {
        const COUNT: usize = 100_000;
        let buffers = Buffers::new(BLOCK, 4096, 4096);
        let first = buffers.try_take(&[extent(0, 1)]);
        let (sender, granted) = channel();
        for _ in 0..COUNT {
            let sender = sender.clone();
            let drops = move |_: Vec<Buffer>| sender.send(()).unwrap();
            buffers.wait(OWNER, vec![extent(0, 1)], Box::new(drops));
        }
        assert!(granted.try_recv().is_err());
        drop(first);
        assert_eq!(granted.try_iter().count(), COUNT);
    }

    #[test]
    fn who_cancels_is_in_nobodys_way() {
        let buffers = Buffers::new(BLOCK, 4096, 8192);
        let first = buffers.try_take(&[extent(0, 1)]);
        let (sender, granted) = channel();
        for (owner, length) in [(OWNER, 8192), (Owner(1), 1), (OWNER, 1)] {
            let sender = sender.clone();
            let granted = move |buffers: Vec<Buffer>| sender.send((owner, buffers)).unwrap();
            buffers.wait(owner, vec![extent(0, length)], Box::new(granted));
        }
        assert!(granted.try_recv().is_err());
        buffers.cancel(OWNER);
        assert_eq!(granted.try_recv().unwrap().0, Owner(1));
        drop(first);
        assert!(granted.try_recv().is_err());
    }

    #[test]
    fn memory_is_used_again() {
        let buffers = Buffers::new(BLOCK, 4096, 1 << 20);
        let address = || {
            buffers.try_take(&[extent(0, 5000)]).unwrap()[0]
                .data()
                .as_ptr()
                .addr()
        };
        assert_eq!(address(), address());
        assert_eq!(buffers.0.state().kept_bytes, 8192);
    }

    #[test]
    fn sizes_are_few_and_close() {
        let buffers = Buffers::new(BLOCK, 4096, 1 << 20);
        let size = |offset, length| buffers.0.size(extent(offset, length));
        for (offset, length, expected) in [
            (0, 0, 4096),
            (0, 1, 4096),
            (511, 4096, 8192),
            (0, 65536, 65536),
            (1, 65536, 65536 + 8192),
            (0, 1 << 20, 1 << 20),
            (1, 1 << 20, (1 << 20) + (128 << 10)),
            (0, 4 << 20, 4 << 20),
        ] {
            assert_eq!(size(offset, length), expected, "{length} bytes at {offset}");
        }
        let sizes: std::collections::BTreeSet<_> = (1..1 << 20).map(|n| size(0, n)).collect();
        assert!(sizes.len() < 64, "{}", sizes.len());
    }

    /// What is in use and what is kept are within the limit together, whatever the sizes.
    #[test]
    fn memory_that_is_kept_gives_way() {
        const LIMIT: usize = 1 << 20;
        let buffers = Buffers::new(BLOCK, 4096, LIMIT);
        let state = || {
            let state = buffers.0.state();
            let kept: usize = state.kept.values().flatten().map(Memory::len).sum();
            assert_eq!(kept, state.kept_bytes);
            (state.used, kept)
        };
        let take = |count, length| buffers.try_take(&vec![extent(0, length); count]).unwrap();
        // All of it is kept, and all is used again.
        drop(take(16, 65536));
        assert_eq!(state(), (0, LIMIT));
        let all = take(16, 65536);
        assert_eq!(state(), (LIMIT, 0));
        drop(all);
        // Another size: as much as is needed gives way.
        let other = take(3, 100_000);
        assert_eq!(state(), (3 * 106_496, 11 * 65536));
        drop(other);
        assert_eq!(state(), (0, 3 * 106_496 + 11 * 65536));
        // The largest first.
        let small = take(30, 1);
        assert_eq!(state(), (30 * 4096, 106_496 + 11 * 65536));
        drop(small);
        // What is larger than the limit is had alone, and not kept.
        drop(take(1, 2 << 20));
        assert_eq!(state(), (0, 0));
        drop(take(1, 1 << 20));
        assert_eq!(state(), (0, LIMIT));
    }
}
