// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The state of the device that outlives a connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use ringbar_engine::Threads;
use ringbar_faults::FaultSet;
use ringbar_spec::{ConfigParts, DeviceConfig, FIRST_IO_QUEUE, Opcode, aperture_of};
use ringbar_storage::{Storage, StorageFailure};

use crate::aperture::ApertureLayout;
use crate::counters::{Counters, Counts, QueueCounts, RequestCounts};
use crate::error::Error;
use crate::events::Events;
use crate::flusher::Flusher;

/// Greatest number of data segments of a request. With header and status it makes 256
/// descriptors, the size of a usual queue, which no chain may exceed (VIRTIO 1.3, 2.7.5.3.1).
const MAX_SEGMENTS: u16 = 254;

/// The I/O opcodes that the device executes.
const OPERATIONS: u32 =
    Opcode::Read.mask() | Opcode::Write.mask() | Opcode::Flush.mask() | Opcode::COMMANDS;

/// Options of a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Number of I/O queues, at least 1 and at most [`ringbar_spec::MAX_IO_QUEUES`].
    pub io_queues: u16,
    /// Greatest number of data bytes in one request, at least 1.
    pub max_request_bytes: u32,
    /// Greatest length of one command in bytes, at least
    /// [`ringbar_spec::MIN_COMMAND_BYTES`]. A command occupies its queue until it is completed.
    pub max_command_bytes: u64,
}

impl Default for DeviceOptions {
    /// 4 I/O queues, requests of 4 MiB, commands of 64 MiB.
    fn default() -> Self {
        Self {
            io_queues: 4,
            max_request_bytes: 4 << 20,
            max_command_bytes: 64 << 20,
        }
    }
}

/// A device: its memory, its configuration, and its counters.
#[derive(Debug)]
pub struct Device {
    /// Locked for short times only: messages of the monitor need it.
    state: Mutex<State>,
    /// Locked during a resize, which may take long. Lock order: before `state`.
    resizing: Mutex<()>,
    storage: Arc<dyn Storage>,
    /// Whether the storage can be mapped, unless it has failed.
    mappable: bool,
    flusher: Flusher,
    threads: Threads,
    faults: Arc<FaultSet>,
    /// By the numbers of the queues.
    counters: Vec<Counters>,
    queue_counters: Arc<ringbar_engine::Counters>,
    size_listener: OnceLock<SizeListener>,
    failure_listener: OnceLock<FailureListener>,
}

/// Called with a new capacity in bytes.
struct SizeListener(Box<dyn Fn(u64) + Send + Sync>);

impl fmt::Debug for SizeListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SizeListener").finish_non_exhaustive()
    }
}

/// Called with the reason for which the storage has failed.
struct FailureListener(Box<dyn Fn(&StorageFailure) + Send + Sync>);

impl fmt::Debug for FailureListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureListener").finish_non_exhaustive()
    }
}

/// A connection that began in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Bytes that the monitor can map on it.
    pub aperture: u64,
    /// Whether the capacity has changed on it. The driver may not know.
    pub is_resized: bool,
}

#[derive(Debug)]
struct State {
    config: DeviceConfig,
    /// Bytes that the monitor can map on this connection; a resize does not change them.
    aperture: u64,
    /// Events of the connection, if there is one.
    events: Weak<Events>,
    /// The connection that begins next began in another process.
    resumed: Option<Resumed>,
}

impl State {
    /// The configuration with another capacity.
    fn resized(&self, capacity: u64) -> Result<DeviceConfig, Error> {
        self.config
            .resized(capacity, self.aperture)
            .map_err(Error::Config)
    }
}

impl Device {
    /// A device whose memory is `storage`, and whose threads `threads` starts.
    pub fn new(
        storage: Arc<dyn Storage>,
        options: DeviceOptions,
        threads: &Threads,
    ) -> Result<Self, Error> {
        let capacity = storage.capacity();
        let mappable = storage.mappable().is_some();
        let config = DeviceConfig::new(ConfigParts {
            io_queues: options.io_queues,
            max_segments: MAX_SEGMENTS,
            capacity,
            aperture_bytes: if mappable { aperture_of(capacity) } else { 0 },
            max_request_bytes: options.max_request_bytes,
            operations: OPERATIONS,
            max_command_bytes: options.max_command_bytes,
        })
        .map_err(Error::Config)?;
        // Fails here rather than when a monitor connects.
        ApertureLayout::new(config.aperture_bytes())?;
        Ok(Self {
            state: Mutex::new(State {
                config,
                aperture: config.aperture_bytes(),
                events: Weak::new(),
                resumed: None,
            }),
            resizing: Mutex::new(()),
            flusher: Flusher::new(Arc::clone(&storage), threads).map_err(Error::Flusher)?,
            threads: threads.clone(),
            storage,
            mappable,
            faults: Arc::new(FaultSet::with_first_queue(FIRST_IO_QUEUE)),
            counters: (0..FIRST_IO_QUEUE + options.io_queues)
                .map(|_| Counters::default())
                .collect(),
            queue_counters: Arc::default(),
            size_listener: OnceLock::new(),
            failure_listener: OnceLock::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each part is changed by a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contents of the configuration space.
    pub fn config(&self) -> DeviceConfig {
        self.state().config
    }

    /// Changes the size of the device memory to `capacity` bytes, and sends the driver an event.
    ///
    /// Requests can access added memory at once. The mapping behind the aperture stays as the
    /// monitor made it until the next connection; a driver that has handled the event of a
    /// smaller size lets no process access the aperture beyond that size.
    ///
    /// This may take long, for example while a file system allocates blocks. Requests and
    /// messages of the monitor do not wait for it. The configuration changes after the storage.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an impossible size and [`Error::Resize`] where the storage keeps
    /// its size.
    pub fn resize(&self, capacity: u64) -> Result<(), Error> {
        // The lock orders resizes and protects no data.
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state().resized(capacity)?;
        self.storage.resize(capacity).map_err(Error::Resize)?;
        // Before the driver can know the capacity.
        if let Some(SizeListener(listener)) = self.size_listener.get() {
            listener(capacity);
        }
        let events = {
            let mut state = self.state();
            // Computed again, because a connection with another aperture may have begun.
            state.config = state.resized(capacity)?;
            state.events.upgrade()
        };
        // Without the lock: messages of the monitor need it, whatever the announcement does.
        if let Some(events) = events {
            events.capacity_changed(capacity);
        }
        Ok(())
    }

    /// Has `listener` called with each new capacity, before the driver hears of it. The first one
    /// counts.
    pub fn set_size_listener(&self, listener: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.size_listener.set(SizeListener(Box::new(listener)));
    }

    /// Has `listener` called for each request that fails once the storage has
    /// failed for good, before the driver hears of it. On any thread, and on several at once. The
    /// first listener counts.
    pub fn set_failure_listener(&self, listener: impl Fn(&StorageFailure) + Send + Sync + 'static) {
        let listener = FailureListener(Box::new(listener));
        let _ = self.failure_listener.set(listener);
    }

    /// A request has failed, perhaps because the storage has.
    pub(crate) fn request_failed(&self) {
        if let Some(FailureListener(listener)) = self.failure_listener.get()
            && let Some(failure) = self.storage.failure()
        {
            listener(&failure);
        }
    }

    /// The connection that begins next began in another process. It keeps its aperture, and the
    /// driver gets the event of a new capacity if there was one.
    pub fn resume(&self, resumed: Resumed) {
        self.state().resumed = Some(resumed);
    }

    /// The storage of the device memory.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The rules for faults, which can change at any time. The device executes those of requests;
    /// those of queues are for the engine that runs it.
    pub const fn faults(&self) -> &Arc<FaultSet> {
        &self.faults
    }

    pub(crate) const fn threads(&self) -> &Threads {
        &self.threads
    }

    pub(crate) const fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// The counters of a queue that the device has.
    pub(crate) fn counters(&self, queue: u16) -> &Counters {
        &self.counters[usize::from(queue)]
    }

    /// Counters for the engines that run the device.
    pub const fn queue_counters(&self) -> &Arc<ringbar_engine::Counters> {
        &self.queue_counters
    }

    /// The counters of the device and of its queues.
    pub fn counts(&self) -> Counts {
        let mut requests = RequestCounts::default();
        for queue in &self.counters {
            requests += queue.get();
        }
        Counts {
            queues: self.queue_counters.get(),
            requests,
        }
    }

    /// What is known of each queue, in the order of their numbers.
    pub fn queue_counts(&self) -> Vec<QueueCounts> {
        let mut queues = self.queue_counters.queues();
        queues.resize(self.counters.len(), ringbar_engine::QueueCounts::default());
        queues
            .into_iter()
            .zip(&self.counters)
            .map(|(queue, requests)| QueueCounts {
                queue: queue.counts,
                in_flight: queue.in_flight,
                requests: requests.get(),
                latencies: ringbar_faults::OPERATIONS
                    .iter()
                    .map(|(_, name)| *name)
                    .zip(queue.latencies)
                    .collect(),
            })
            .collect()
    }

    /// Whether a monitor is connected.
    pub fn is_connected(&self) -> bool {
        self.state().events.strong_count() > 0
    }

    /// Begins a connection, to which `events` belong. Returns the layout of its aperture, which
    /// shows all whole pages of the device memory, or none if the storage cannot be mapped.
    pub(crate) fn connect(&self, events: &Arc<Events>) -> Result<ApertureLayout, Error> {
        let mut state = self.state();
        let capacity = state.config.capacity();
        let resumed = state.resumed.take();
        let shown = match resumed {
            Some(resumed) => resumed.aperture,
            None if self.mappable => capacity,
            None => 0,
        };
        let layout = ApertureLayout::new(shown)?;
        state.config = state
            .config
            .resized(capacity, shown)
            .map_err(Error::Config)?;
        state.aperture = shown;
        state.events = Arc::downgrade(events);
        drop(state);
        if resumed.is_some_and(|resumed| resumed.is_resized) {
            events.capacity_changed(capacity);
        }
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use ringbar_spec::Event;

    use super::*;
    use crate::fixtures::{HookedStorage, Thread};

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A device whose storage sends a message when a resize begins, and waits for another one
    /// before it continues.
    fn slow_device() -> (Arc<Device>, Receiver<()>, Sender<()>) {
        let (begun, begins) = channel();
        let (go_on, goes_on) = channel();
        let goes_on = Mutex::new(goes_on);
        let mut storage = HookedStorage::new(4096);
        storage.on_resize = Box::new(move || {
            begun.send(()).unwrap();
            goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        });
        let device = Device::new(
            Arc::new(storage),
            DeviceOptions::default(),
            &Threads::default(),
        )
        .unwrap();
        (Arc::new(device), begins, go_on)
    }

    #[test]
    fn ho11_configuration_and_connections_do_not_wait_for_a_new_size() {
        let (device, begins, go_on) = slow_device();
        go_on.send(()).unwrap();
        device.resize(8192).unwrap();
        begins.recv_timeout(TIMEOUT).unwrap();
        let config = device.config();
        assert_eq!((config.capacity(), config.aperture_bytes()), (8192, 4096));

        let other = Arc::clone(&device);
        let resize = thread::spawn(move || other.resize(12288));
        begins.recv_timeout(TIMEOUT).unwrap();
        let (sender, done) = channel();
        let other = Arc::clone(&device);
        let events = Arc::new(Events::default());
        let connected = Arc::clone(&events);
        thread::spawn(move || {
            other.connect(&connected).unwrap();
            sender.send(other.config()).unwrap();
        });
        let config = done.recv_timeout(TIMEOUT / 2).expect("it waits");
        assert_eq!((config.capacity(), config.aperture_bytes()), (8192, 8192));
        assert_eq!(events.front(), None);

        go_on.send(()).unwrap();
        resize.join().unwrap().unwrap();
        // The connection that began meanwhile gets the event and keeps its aperture.
        let config = device.config();
        assert_eq!((config.capacity(), config.aperture_bytes()), (12288, 8192));
        let capacity = 12288;
        assert_eq!(events.front(), Some(Event::CapacityChanged { capacity }));
    }

    #[test]
    fn ho11_sizes_are_changed_one_after_the_other() {
        let (device, begins, go_on) = slow_device();
        let resize = |capacity| {
            let (device, (sender, receiver)) = (Arc::clone(&device), channel());
            let handle = thread::spawn(move || {
                sender.send(Thread::current()).unwrap();
                device.resize(capacity)
            });
            receiver.recv().unwrap().until_asleep();
            handle
        };
        let first = resize(8192);
        begins.recv_timeout(TIMEOUT).unwrap();
        let second = resize(12288);
        assert!(begins.try_recv().is_err());
        go_on.send(()).unwrap();
        first.join().unwrap().unwrap();
        begins.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(device.config().capacity(), 8192);
        go_on.send(()).unwrap();
        second.join().unwrap().unwrap();
        assert_eq!(device.config().capacity(), 12288);
        assert_eq!(device.storage().capacity(), 12288);
    }
}
