// SPDX-License-Identifier: GPL-2.0

//! Requests whose callers wait for them. Several are in flight, each in a slot:
//!
//! ```text
//!        acquire          map           submit                 reap
//!  free --------> caller ----> caller ---------> the device --------> caller: unmap --> free
//!    ^                                              |
//!    +-- caller: unmap <-- stop, start: the device took too long, or broke the queue
//! ```

use super::{
    queue::{
        DeviceQueue,
        Lifecycle,
        ENTRIES, //
    },
    started::Hardware, //
};
use crate::{
    abstractions::{
        dma::{
            range::DmaRange,
            segments::{
                CleanedPages,
                Extracted,
                Mapped,
                Ownership,
                Room, //
            }, //
        },
        pci::{
            irq,
            revocable::Revoked, //
        },
        ratelimit,
        task::wait::{
            KernelCompletion,
            Signals,
            WaitQueue, //
        }, //
    },
    virtio::{
        reset::{
            Quiesced,
            Unstoppable, //
        },
        ring::{
            descriptor,
            descriptor_flag,
            DESCRIPTOR_WORDS, //
        },
        transport::Transport, //
    }, //
};
use kernel::{
    device::Bound,
    dma::Coherent,
    io::{
        io_read,
        io_write,
        IoBase,
        SysMem, //
    },
    new_spinlock,
    new_spinlock_irq,
    page::PAGE_SIZE,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Time that a request may take.
const TIMEOUT: Delta = Delta::from_secs(10);

/// Number of requests in flight; more callers wait.
const SLOTS: usize = 16;

/// The page of a request in 64-bit words: the indirect descriptor table, the header, the status.
type Page = [u64; PAGE_WORDS];
const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// The page without descriptors: room for a header and a status of [`MAX_BYTES`] each.
const TABLE_WORDS: usize = PAGE_WORDS - 2 * MAX_WORDS;
const MAX_WORDS: usize = MAX_BYTES / 8;
const HEADER_AT: usize = TABLE_WORDS;
const STATUS_AT: usize = HEADER_AT + MAX_WORDS;

/// Greatest size of a header or a status in bytes.
pub(crate) const MAX_BYTES: usize = 64;

/// Greatest number of segments of source or destination, so that the table fits into the page and
/// the chain is no longer than the queue. The other two descriptors are header and status.
pub(crate) const MAX_SEGMENTS: usize = {
    let room = TABLE_WORDS / DESCRIPTOR_WORDS;
    let entries = ENTRIES as usize;
    (if room < entries { room } else { entries } - 2) / 2
};

/// Queue and slots of a device.
pub(crate) struct Requests {
    queue: Arc<DeviceQueue<KBox<Slot>>>,
    free: Pin<KBox<SpinLock<KVec<KBox<Slot>>>>>,
    /// Callers that wait for a free slot.
    waiting: Pin<KBox<WaitQueue>>,
    /// Number of times that the device was stopped. A caller that waited for a slot meanwhile fails
    /// too: it would wait for a dead device as long as each caller before it.
    stops: Atomic<u32>,
    /// Number of slots that the device keeps, because it could not be stopped. Their callers are gone.
    kept: Atomic<usize>,
}

/// The memory of one request.
struct Slot {
    page: Coherent<Page>,
    /// Number of descriptors of the request in the page.
    descriptors: u16,
    /// Number of bytes that the device may write.
    writable: u32,
    source: Option<Mapped>,
    destination: Option<Mapped>,
    end: Arc<End>,
}

/// The place where the caller of a request gets its slot back.
#[pin_data]
struct End {
    #[pin]
    woken: KernelCompletion,
    #[pin]
    returned: SpinLockIrq<Option<Returned>>,
}

/// A slot that the device does not have any more, and the number of bytes that the device says it
/// has written.
type Returned = (KBox<Slot>, Result<u32>);

/// Wakes the threads that wait for their requests.
pub(crate) struct CompletionHandler(Arc<DeviceQueue<KBox<Slot>>>);

impl irq::Handler for CompletionHandler {
    fn handle(&self) -> bool {
        self.0.reap(Slot::complete, |queue| {
            // One of them resets the device.
            queue
                .in_flight()
                .for_each(|slot| slot.end.woken.complete_once());
        });
        true
    }
}

/// The memory for the lists of pages of a request.
pub(crate) struct Rooms {
    source: Room,
    destination: Room,
}

impl Rooms {
    /// For one request. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            source: Room::new()?,
            destination: Room::new()?,
        })
    }
}

/// The end of a request.
pub(crate) struct Ended<const S: usize> {
    /// The status that the device wrote, and the number of bytes that it says it wrote before it.
    pub(crate) result: Result<([u8; S], usize)>,
    /// Pages to be dropped where nothing is held that others need.
    pub(crate) cleaned: Option<CleanedPages>,
}

impl<const S: usize> From<Error> for Ended<S> {
    fn from(error: Error) -> Self {
        Self {
            result: Err(error),
            cleaned: None,
        }
    }
}

impl Hardware for Requests {
    type Handler = CompletionHandler;

    fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Self> {
        let queue = DeviceQueue::new(device, transport)?;
        let mut free = KVec::with_capacity(SLOTS, GFP_KERNEL)?;
        for _ in 0..SLOTS {
            free.push(KBox::new(Slot::new(device)?, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self {
            queue,
            free: KBox::pin_init(new_spinlock!(free), GFP_KERNEL)?,
            waiting: KBox::pin_init(WaitQueue::new(), GFP_KERNEL)?,
            stops: Atomic::new(0),
            kept: Atomic::new(0),
        })
    }

    fn handler(&self) -> CompletionHandler {
        CompletionHandler(self.queue.clone())
    }

    fn start(&self, device: &pci::Device<Bound>) -> Result {
        let mut lifecycle = self.queue.lifecycle();
        let quiesced = self.stop_queue(&mut lifecycle, device).map_err(|_| EIO)?;
        lifecycle.start(device, quiesced)
    }

    fn stop(&self, device: &pci::Device<Bound>) -> Result {
        let mut lifecycle = self.queue.lifecycle();
        self.stop_queue(&mut lifecycle, device)
            .map(drop)
            .map_err(|_| EIO)
    }

    fn shut_down(&self, device: &pci::Device<Bound>) {
        let mut lifecycle = self.queue.lifecycle();
        lifecycle.forbid_start();
        // A failure was logged.
        let _ = self.stop_queue(&mut lifecycle, device);
    }
}

impl Requests {
    /// Executes a request: the device reads `header` and `source`, and writes `destination` and a
    /// status of `S` bytes. The sizes of header and status are multiples of 8 up to [`MAX_BYTES`];
    /// source and destination have at most [`MAX_SEGMENTS`] segments each. Sleeps: for a free slot,
    /// and then at most [`TIMEOUT`]. If the device fails meanwhile, it is reset, and all who wait
    /// fail with it.
    ///
    /// `EAGAIN` if there is no room for DMA at the moment, `EINVAL` for too many segments, `EIO` if
    /// the device fails, writes no status, or does not run, `EINTR` if the caller is killed while it
    /// waits for a slot.
    pub(crate) fn run<const H: usize, const S: usize, O: Ownership>(
        &self,
        device: &pci::Device<Bound>,
        header: &[u8; H],
        source: Option<Extracted<'_, O>>,
        destination: Option<Extracted<'_, O>>,
        rooms: &mut Rooms,
    ) -> Ended<S> {
        const {
            assert!(H > 0 && H % 8 == 0 && H <= MAX_BYTES);
            assert!(S > 0 && S % 8 == 0 && S <= MAX_BYTES);
        }
        let mut slot = match self.acquire() {
            Ok(slot) => slot,
            Err(error) => return error.into(),
        };
        if let Err(error) = slot.map(device, source, destination, rooms) {
            slot.release_clean(device, rooms);
            self.put_back(slot);
            return error.into();
        }
        slot.prepare::<H, S>(header);
        let end = slot.end.clone();
        let (mut slot, result) = match self.queue.submit(device, slot, |slot| slot.table()) {
            Ok(()) => match self.wait(device, &end) {
                Some(returned) => returned,
                // The device may access the pages for ever, and keeps the slot.
                None => {
                    {
                        // As of `stops`: a caller that waits for a slot checks both.
                        let _free = self.free.lock();
                        self.kept.add(1, Relaxed);
                    }
                    self.waiting.notify_all();
                    return EIO.into();
                }
            },
            Err((error, mut slot)) => {
                slot.release_clean(device, rooms);
                self.put_back(slot);
                // The device broke the queue when no caller waited for it.
                let mut lifecycle = self.queue.lifecycle();
                if self.queue.is_broken() {
                    self.reset(&mut lifecycle, device);
                }
                return error.into();
            }
        };
        let result = result.and_then(|written| slot.status(written));
        let cleaned = slot.release(device, rooms);
        self.put_back(slot);
        Ended { result, cleaned }
    }

    /// Takes a free slot. Sleeps until there is one. `EIO` if the device does not run, or is stopped
    /// meanwhile.
    fn acquire(&self) -> Result<KBox<Slot>> {
        let stops = self.stops.load(Relaxed);
        loop {
            let mut free = self.free.lock();
            if self.stops.load(Relaxed) != stops {
                return Err(EIO);
            }
            if let Some(slot) = free.pop() {
                return Ok(slot);
            }
            // No slot comes back from a device that has all, and cannot be stopped.
            if self.queue.is_stopped() || self.kept.load(Relaxed) == SLOTS {
                return Err(EIO);
            }
            self.waiting
                .wait(Signals::Fatal, None, || drop(free))
                // The wake-up may have been that of a slot.
                .inspect_err(|_| self.waiting.notify_one())?;
        }
    }

    fn put_back(&self, slot: KBox<Slot>) {
        // It has capacity for all slots.
        let _ = self.free.lock().push_within_capacity(slot);
        self.waiting.notify_one();
    }

    /// Waits until the device has used the slot, and resets the device if it does not. Sleeps. `None`
    /// if the device keeps the slot, because it cannot be stopped.
    fn wait(&self, device: &pci::Device<Bound>, end: &End) -> Option<Returned> {
        let start = Instant::<Monotonic>::now();
        loop {
            if let Some(returned) = end.returned.lock().take() {
                return Some(returned);
            }
            let left = (TIMEOUT - start.elapsed()).as_millis();
            let left = u32::try_from(left).unwrap_or(0);
            if left == 0 || !self.queue.is_running() {
                break;
            }
            // A wake-up may be that of the slot's last request, and come late.
            let _ = end.woken.wait_timeout(msecs_to_jiffies(left));
        }
        let mut lifecycle = self.queue.lifecycle();
        if let Some(returned) = end.returned.lock().take() {
            return Some(returned);
        }
        // If it is stopped and has the slot, it cannot be stopped: the next caller need not try again.
        if !self.queue.is_stopped() {
            self.reset(&mut lifecycle, device);
        }
        end.returned.lock().take()
    }

    /// Stops a device that has failed, and starts it again if it can. Sleeps.
    fn reset(&self, lifecycle: &mut Lifecycle<'_, KBox<Slot>>, device: &pci::Device<Bound>) {
        if ratelimit::allows() {
            dev_err!(device, "the device has failed, and is reset\n");
        }
        if let Ok(quiesced) = self.stop_queue(lifecycle, device) {
            if lifecycle.start(device, quiesced).is_err() {
                dev_err!(device, "the device does not start again\n");
            }
        }
    }

    /// Stops the device, and returns the slots to their callers. Sleeps.
    fn stop_queue(
        &self,
        lifecycle: &mut Lifecycle<'_, KBox<Slot>>,
        device: &pci::Device<Bound>,
    ) -> Result<Quiesced, Unstoppable> {
        let stopped = lifecycle.stop(device, Slot::complete, |slot| slot.end(Err(EIO)));
        {
            // With the lock, so that a caller either sees the number or is in the queue.
            let _free = self.free.lock();
            self.stops.add(1, Relaxed);
        }
        self.waiting.notify_all();
        stopped
    }
}

impl Slot {
    fn new(device: &pci::Device<Bound>) -> Result<Self> {
        Ok(Self {
            page: Coherent::zeroed(device.as_ref(), GFP_KERNEL)?,
            descriptors: 0,
            writable: 0,
            source: None,
            destination: None,
            end: Arc::pin_init(
                pin_init!(End {
                    woken <- KernelCompletion::new(),
                    returned <- new_spinlock_irq!(None),
                }),
                GFP_KERNEL,
            )?,
        })
    }

    /// Maps the pages of a request for DMA. After an error some may be mapped.
    fn map<O: Ownership>(
        &mut self,
        device: &pci::Device<Bound>,
        source: Option<Extracted<'_, O>>,
        destination: Option<Extracted<'_, O>>,
        rooms: &mut Rooms,
    ) -> Result {
        let map = |pages: Option<Extracted<'_, O>>, room| {
            let mapped = pages.map(|pages| pages.map(device, room));
            // The pages are released here.
            mapped.transpose().map_err(|(error, _pages)| error)
        };
        self.source = map(source, &mut rooms.source)?;
        self.destination = map(destination, &mut rooms.destination)?;
        let fits = [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .all(|list| list.ranges().count() <= MAX_SEGMENTS);
        fits.then_some(()).ok_or(EINVAL)
    }

    /// Writes a request to the page: descriptor table, header, and a status of ones.
    fn prepare<const H: usize, const S: usize>(&mut self, header: &[u8; H]) {
        let page = &self.page;
        let buffer = |at: usize, bytes: usize, writable| {
            DmaRange::of_coherent(page, at * 8..at * 8 + bytes, writable)
        };
        let mut next = 0;
        let mut put = |range, flags| {
            let at = usize::from(next) * DESCRIPTOR_WORDS;
            next += 1;
            let [first, second] = descriptor(range, flags, next);
            io_write!(memory(page), [panic: at], first);
            io_write!(memory(page), [panic: at + 1], second);
        };
        put(buffer(HEADER_AT, H, false), descriptor_flag::NEXT);
        // `MAX_SEGMENTS` bounds the segments, so the table has room for all of them.
        for data in [&self.source, &self.destination].into_iter().flatten() {
            data.ranges()
                .for_each(|range| put(range, descriptor_flag::NEXT));
        }
        put(buffer(STATUS_AT, S, true), 0);
        self.descriptors = next;
        let destination = self.destination.iter().flat_map(Mapped::ranges);
        // CAST: At most `MAX_BYTES`.
        self.writable = destination.map(|range| range.len()).sum::<u32>() + S as u32;

        write(page, HEADER_AT, header);
        write(page, STATUS_AT, &[0xff; S]);
    }

    /// The descriptor table.
    fn table(&self) -> (DmaRange<'_>, u16) {
        let words = usize::from(self.descriptors) * DESCRIPTOR_WORDS;
        let table = DmaRange::of_coherent(&self.page, 0..words * 8, false);
        (table, descriptor_flag::INDIRECT)
    }

    /// Returns the slot to the caller of its request, which the device has completed. Any context.
    fn complete(this: KBox<Self>, written: u32) -> bool {
        this.end(Ok(written));
        true
    }

    /// Returns the slot to the caller of its request. Any context.
    fn end(self: KBox<Self>, result: Result<u32>) {
        let end = self.end.clone();
        *end.returned.lock() = Some((self, result));
        end.woken.complete_once();
    }

    /// The status of the request, for which the device says that it has written so many bytes.
    fn status<const S: usize>(&self, written: u32) -> Result<([u8; S], usize)> {
        let mut bytes = [0; S];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word: u64 = io_read!(memory(&self.page), [panic: STATUS_AT + i]);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        // A device that has written no status, or more than it may.
        if bytes == [0xff; S] || written > self.writable {
            return Err(EIO);
        }
        Ok((bytes, (written as usize).saturating_sub(S)))
    }

    /// Releases the pages of a request that the device does not have any more. Any context.
    fn release(&mut self, device: &pci::Device<Bound>, rooms: &mut Rooms) -> Option<CleanedPages> {
        if let Some(source) = self.source.take() {
            // The device does not write to these, so they need not be made dirty.
            drop(source.unmap(device).release(&mut rooms.source));
        }
        let destination = self.destination.take()?;
        destination.unmap(device).release(&mut rooms.destination)
    }

    /// As [`Self::release`], for a request that the device never had.
    fn release_clean(&mut self, device: &pci::Device<Bound>, rooms: &mut Rooms) {
        if let Some(source) = self.source.take() {
            source.unmap(device).release_clean(&mut rooms.source);
        }
        if let Some(destination) = self.destination.take() {
            destination
                .unmap(device)
                .release_clean(&mut rooms.destination);
        }
    }
}

/// The page as the CPU sees it.
fn memory(page: &Coherent<Page>) -> SysMem<'_, Page> {
    page.as_view().as_sys_mem()
}

/// Writes bytes from word `at` on.
fn write(page: &Coherent<Page>, at: usize, bytes: &[u8]) {
    for (i, chunk) in bytes.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        io_write!(memory(page), [panic: at + i], u64::from_ne_bytes(word));
    }
}

impl Revoked for Requests {
    /// Frees everything, unless the device may use it for ever.
    fn revoked(self, device: &pci::Device<Bound>) {
        if self.stop(device).is_err() {
            core::mem::forget(self);
        }
    }
}
