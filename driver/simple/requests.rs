// SPDX-License-Identifier: GPL-2.0

//! A device with one queue, while it is bound: its registers, the queue, and the request in flight.
//!
//! ```text
//!           start                  run                    the device used it
//!  stopped -------> running: idle -----> running: in flight ---------------> running: idle
//!     ^  ^                                         |
//!     |  +-- the restart failed ------- stop, start: the device took too long, or broke the ring
//!     +----- stop: suspend, unbind
//! ```

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
            device::iommu_translates,
            irq,
            revocable::Revoked, //
        },
        ratelimit,
        task::wait::KernelCompletion, //
    },
    virtio::{
        reset::Unstoppable,
        ring::{
            descriptor,
            descriptor_flag,
            EntryId,
            Ring,
            DESCRIPTOR_WORDS, //
        },
        transport::{
            feature,
            Doorbell,
            Message,
            Transport, //
        }, //
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
    new_mutex,
    page::PAGE_SIZE,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// The only queue, and the message that it sends.
const QUEUE: u16 = 0;
const MESSAGE: Message = Some(0);

/// Time that a request may take.
const TIMEOUT: Delta = Delta::from_secs(10);

/// Number of entries of the queue, and so of descriptors of a request (VIRTIO 1.3, 2.7.5.3.1).
const ENTRIES: u16 = 256;

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

/// Registers and queue of a device.
pub(crate) struct Hardware {
    transport: Transport,
    features: u64,
    used: Arc<KernelCompletion>,
    /// Number of times that the device was stopped. A caller that waited for the queue meanwhile
    /// fails too: it would wait for a dead device as long as each caller before it.
    stops: Atomic<u32>,
    queue: Pin<KBox<Mutex<Queue>>>,
}

/// The queue. The owner of its lock has the request in flight.
struct Queue {
    ring: Ring,
    entry: EntryId,
    doorbell: Doorbell,
    page: Coherent<Page>,
    /// Number of descriptors of the request in the page.
    descriptors: u16,
    running: bool,
}

/// Wakes the thread that waits for its request.
pub(crate) struct CompletionHandler(Arc<KernelCompletion>);

impl irq::Handler for CompletionHandler {
    fn handle(&self) -> bool {
        self.0.complete_once();
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

impl Hardware {
    /// Sets up the queue of a device, which does not run yet. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Self> {
        const REQUIRED: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;
        const WANTED: u64 = feature::EVENT_IDX | feature::ACCESS_PLATFORM;

        let quiesced = transport.quiesce(device).map_err(|_| EIO)?;
        let features = transport.negotiate(device, &quiesced, REQUIRED, WANTED)?;
        if features & feature::ACCESS_PLATFORM == 0 && iommu_translates(device) {
            dev_err!(
                device,
                "an IOMMU translates this device's addresses, but the device bypasses it: boot with \
                 iommu=pt, leave the IOMMU away, or use the vfio-user transport\n"
            );
            transport.fail(device);
            return Err(EOPNOTSUPP);
        }
        // A chain must not be longer than its queue (VIRTIO 1.3, 2.7.5.3.1).
        if transport.queue_max_size(device, QUEUE)? < ENTRIES {
            dev_err!(device, "the queue has fewer than {} entries\n", ENTRIES);
            transport.fail(device);
            return Err(ENODEV);
        }
        let ring = Ring::new(device, ENTRIES, features & feature::EVENT_IDX != 0)?;
        transport.set_config_vector(device, None)?;
        let queue = Queue {
            entry: ring.entries().next().ok_or(EINVAL)?,
            doorbell: transport.enable_queue(device, QUEUE, &ring.areas(), MESSAGE)?,
            page: Coherent::zeroed(device.as_ref(), GFP_KERNEL)?,
            descriptors: 0,
            ring,
            running: false,
        };
        Ok(Self {
            transport,
            features,
            used: Arc::pin_init(KernelCompletion::new(), GFP_KERNEL)?,
            stops: Atomic::new(0),
            queue: KBox::pin_init(new_mutex!(queue), GFP_KERNEL)?,
        })
    }

    /// The handler of the queue's interrupt.
    pub(crate) fn handler(&self) -> CompletionHandler {
        CompletionHandler(self.used.clone())
    }

    /// Starts the device, whatever its state is. Sleeps.
    pub(crate) fn start(&self, device: &pci::Device<Bound>) -> Result {
        self.restart(device, &mut self.queue.lock())
            .map_err(|Unstoppable| EIO)?
    }

    /// Stops the device, which accesses no memory then. Requests fail until it is started. Sleeps.
    pub(crate) fn stop(&self, device: &pci::Device<Bound>) -> Result {
        let mut queue = self.queue.lock();
        queue.running = false;
        self.stops.add(1, Relaxed);
        self.transport.quiesce(device).map(drop).map_err(|_| EIO)
    }

    /// Stops the device, after which it has no request any more, and starts it again if it can.
    fn restart(
        &self,
        device: &pci::Device<Bound>,
        queue: &mut Queue,
    ) -> Result<Result, Unstoppable> {
        let transport = &self.transport;
        queue.running = false;
        self.stops.add(1, Relaxed);
        let quiesced = transport.quiesce(device)?;
        let areas = queue.ring.areas();
        let started = transport
            .negotiate(device, &quiesced, self.features, 0)
            .and_then(|_| {
                queue.ring.restart(&quiesced);
                transport.set_config_vector(device, None)?;
                transport.enable_queue_again(device, queue.doorbell, &areas, MESSAGE)?;
                transport.start(device, quiesced)
            });
        queue.running = started.is_ok();
        Ok(started)
    }

    /// Executes a request, after those of other threads: the device reads `header` and `source`, and
    /// writes `destination` and a status of `S` bytes. The sizes of header and status are multiples
    /// of 8 up to [`MAX_BYTES`]; source and destination have at most [`MAX_SEGMENTS`] segments each.
    /// Sleeps: for requests of other threads, and then at most [`TIMEOUT`]. If the device fails
    /// meanwhile, all who wait fail with it.
    ///
    /// `EAGAIN` if there is no room for DMA at the moment, `EINVAL` for too many segments, `EIO` if
    /// the device fails, writes no status, or does not run.
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
        let stops = self.stops.load(Relaxed);
        let mut queue = self.queue.lock();
        if !queue.running || self.stops.load(Relaxed) != stops {
            return EIO.into();
        }
        let mapped = source.map(|pages| pages.map(device, &mut rooms.source));
        let source = match mapped.transpose() {
            Ok(source) => source,
            Err((error, _pages)) => return error.into(),
        };
        let mapped = destination.map(|pages| pages.map(device, &mut rooms.destination));
        let destination = match mapped.transpose() {
            Ok(destination) => destination,
            Err((error, _pages)) => {
                if let Some(source) = source {
                    source.unmap(device).release_clean(&mut rooms.source);
                }
                return error.into();
            }
        };
        let fits = |list: &Option<Mapped>| {
            list.as_ref()
                .is_none_or(|list| list.ranges().count() <= MAX_SEGMENTS)
        };
        if !(fits(&source) && fits(&destination)) {
            if let Some(source) = source {
                source.unmap(device).release_clean(&mut rooms.source);
            }
            if let Some(destination) = destination {
                destination
                    .unmap(device)
                    .release_clean(&mut rooms.destination);
            }
            return EINVAL.into();
        }
        queue.prepare::<H, S>(header, source.as_ref(), destination.as_ref());
        let result = match self.submit_and_wait(device, &mut queue) {
            Ok(written) => queue.status(written),
            Err(error) => {
                if ratelimit::allows() {
                    dev_err!(
                        device,
                        "the device has failed ({:?}), and is reset\n",
                        error
                    );
                }
                match self.restart(device, &mut queue) {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => dev_err!(device, "the device does not start again\n"),
                    Err(Unstoppable) => {
                        // The device may access the pages for ever.
                        [source, destination]
                            .into_iter()
                            .flatten()
                            .for_each(Mapped::leak);
                        return EIO.into();
                    }
                }
                Err(EIO)
            }
        };
        let cleaned = destination
            .and_then(|destination| destination.unmap(device).release(&mut rooms.destination));
        if let Some(source) = source {
            // The device does not write to these, so they need not be made dirty.
            drop(source.unmap(device).release(&mut rooms.source));
        }
        Ended { result, cleaned }
    }

    /// Gives the request in the page to the device, and returns the number of bytes that the device has
    /// written. An error if it does not complete the request.
    fn submit_and_wait(&self, device: &pci::Device<Bound>, queue: &mut Queue) -> Result<u32> {
        // An interrupt of an earlier request may have come late.
        self.used.reinit();
        // A used entry now is none of this request, whose pages the device may access for longer.
        if queue.ring.has_used() {
            return Err(EPROTO);
        }
        let words = usize::from(queue.descriptors) * DESCRIPTOR_WORDS;
        let table = DmaRange::of_coherent(&queue.page, 0..words * 8, false);
        queue
            .ring
            .push(queue.entry, table, descriptor_flag::INDIRECT);
        queue.ring.publish();
        if queue.ring.wants_notification() {
            self.transport.ring(device, queue.doorbell)?;
        }
        let start = Instant::<Monotonic>::now();
        loop {
            match queue.ring.pop() {
                Ok(Some(used)) if used.entry == queue.entry && !queue.ring.has_used() => {
                    return Ok(used.len);
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Err(EPROTO),
            }
            let left = (TIMEOUT - start.elapsed()).as_millis();
            let left = u32::try_from(left).unwrap_or(0);
            if left == 0 {
                return Err(ETIMEDOUT);
            }
            // The device sends no interrupt for an entry that is used already.
            if !queue.ring.enable_interrupts() {
                // At the end of the time, the next round looks at the ring once more.
                let _ = self.used.wait_timeout(msecs_to_jiffies(left));
            }
        }
    }
}

impl Queue {
    /// Writes a request to the page: descriptor table, header, and a status of ones.
    fn prepare<const H: usize, const S: usize>(
        &mut self,
        header: &[u8; H],
        source: Option<&Mapped>,
        destination: Option<&Mapped>,
    ) {
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
        for data in [source, destination].into_iter().flatten() {
            data.ranges()
                .for_each(|range| put(range, descriptor_flag::NEXT));
        }
        put(buffer(STATUS_AT, S, true), 0);
        self.descriptors = next;

        write(page, HEADER_AT, header);
        write(page, STATUS_AT, &[0xff; S]);
    }

    /// The status of the request in the page, for which the device says that it has written so many
    /// bytes.
    fn status<const S: usize>(&self, written: u32) -> Result<([u8; S], usize)> {
        let mut bytes = [0; S];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word: u64 = io_read!(memory(&self.page), [panic: STATUS_AT + i]);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        if bytes == [0xff; S] {
            return Err(EIO);
        }
        Ok((bytes, (written as usize).saturating_sub(S)))
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

impl Revoked for Hardware {
    /// Frees everything, unless the device may use it for ever.
    fn revoked(self, device: &pci::Device<Bound>) {
        if self.transport.quiesce(device).is_err() {
            core::mem::forget(self);
        }
    }
}
