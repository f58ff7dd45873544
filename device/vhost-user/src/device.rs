// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What outlives a connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ringbar_model::Storage;
use ringbar_spec::{ConfigParts, DeviceConfig, Opcode};

use crate::aperture::ApertureLayout;
use crate::counters::Counters;
use crate::error::Error;
use crate::events::PendingEvents;

/// Most data segments of a request. With header and status that makes the 256
/// descriptors of a usual queue, which no chain may exceed (VIRTIO 1.3,
/// 2.7.5.3.1).
const MAX_SEGMENTS: u16 = 254;

/// The I/O opcodes that the device executes.
const OPERATIONS: u32 =
    Opcode::Read.mask() | Opcode::Write.mask() | Opcode::Flush.mask() | Opcode::COMMANDS;

/// Choices of whoever runs the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Number of I/O queues, at least 1 and at most [`crate::MAX_IO_QUEUES`].
    pub io_queues: u16,
    /// Most data bytes in one request, at least 1.
    pub max_request_bytes: u32,
    /// Greatest length of one command, at least 1. A command keeps its queue busy
    /// until it is done, and a reset of the device has to wait for it.
    pub max_command_bytes: u64,
    /// How long to look for the next request in an empty ring before sleeping. The
    /// device looks only while that pays; zero for never.
    pub poll: Duration,
}

impl Default for DeviceOptions {
    /// 4 I/O queues, requests of 4 MiB, commands of 64 MiB, and 200 us.
    fn default() -> Self {
        Self {
            io_queues: 4,
            max_request_bytes: 4 << 20,
            max_command_bytes: 64 << 20,
            poll: Duration::from_micros(200),
        }
    }
}

/// A device: its memory, its configuration, and what it has done.
#[derive(Debug)]
pub struct Device {
    state: Mutex<State>,
    storage: Arc<dyn Storage>,
    poll: Duration,
    counters: Counters,
}

#[derive(Debug)]
struct State {
    config: DeviceConfig,
    /// What the aperture of the connection shows of the largest device.
    aperture: u64,
    /// Those of the connection, if there is one.
    events: Weak<PendingEvents>,
}

impl Device {
    /// A device whose memory is `storage`.
    pub fn new(storage: Arc<dyn Storage>, options: DeviceOptions) -> Result<Self, Error> {
        if options.io_queues > crate::MAX_IO_QUEUES {
            return Err(Error::TooManyQueues(options.io_queues));
        }
        let capacity = storage.capacity();
        let config = DeviceConfig::new(ConfigParts {
            io_queues: options.io_queues,
            max_segments: MAX_SEGMENTS,
            capacity,
            aperture_bytes: capacity,
            max_request_bytes: options.max_request_bytes,
            operations: OPERATIONS,
            max_command_bytes: options.max_command_bytes,
        })
        .map_err(Error::Config)?;
        // Refused here rather than when a monitor connects.
        ApertureLayout::new(config.aperture_bytes())?;
        Ok(Self {
            state: Mutex::new(State {
                config,
                aperture: config.aperture_bytes(),
                events: Weak::new(),
            }),
            storage,
            poll: options.poll,
            counters: Counters::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each part is changed by a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the configuration space says.
    pub fn config(&self) -> DeviceConfig {
        self.state().config
    }

    /// Gives the device memory another size, and tells the driver.
    ///
    /// The driver reaches what is added by DMA at once. The aperture keeps the
    /// part that it shows until the next monitor connects; it shows nothing beyond
    /// a smaller size once the driver has heard of it.
    pub fn resize(&self, capacity: u64) -> Result<(), Error> {
        let mut state = self.state();
        let config = state
            .config
            .resized(capacity, state.aperture)
            .map_err(Error::Config)?;
        self.storage.resize(capacity).map_err(Error::Resize)?;
        state.config = config;
        if let Some(events) = state.events.upgrade() {
            events.capacity_changed(capacity);
        }
        Ok(())
    }

    /// What holds the device memory.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// How long to look for the next request.
    pub(crate) const fn poll(&self) -> Duration {
        self.poll
    }

    /// What the device has done.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Begins a connection, to which `events` belong. Returns what the aperture
    /// shows on it, which is all of the device memory.
    pub(crate) fn connect(&self, events: &Arc<PendingEvents>) -> Result<ApertureLayout, Error> {
        let mut state = self.state();
        let capacity = state.config.capacity();
        let layout = ApertureLayout::new(capacity)?;
        state.config = state
            .config
            .resized(capacity, capacity)
            .map_err(Error::Config)?;
        state.aperture = capacity;
        state.events = Arc::downgrade(events);
        Ok(layout)
    }
}
