// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The function: the effects of the driver's reads and writes.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use ringbar_engine::chain::ChainHead;
use ringbar_model::{QueueRole, RequestQueue};
use ringbar_spec::{
    CONTROL_QUEUE, ConfigParts, DeviceConfig, EVENT_QUEUE, FIRST_IO_QUEUE, Opcode, RequestStatus,
    StatusCode,
};
use ringbar_storage::{MemoryStorage, Storage};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::config_space::{self as space, BUS_MASTER, COMMAND};
use crate::registers::{QUEUE_SIZE, Registers, SideEffect};

/// Number of I/O queues.
const IO_QUEUES: u16 = 2;

/// Bytes of device memory.
const CAPACITY: u64 = 16 << 20;

/// Bytes that a device which ignores its reset writes at the start of each buffer of a
/// request.
const SCRIBBLE: [u8; 64] = [0x5c; 64];

/// Offset of the upper half of the capacity in the device configuration.
const CAPACITY_HIGH: u64 = 20;

/// A segment of guest memory that the device may write.
#[derive(Clone, Copy, Debug)]
struct WritableSegment {
    address: u64,
    len: u32,
}

/// A DMA mapping of guest memory, as the monitor announced it.
struct Mapping {
    address: u64,
    size: u64,
    offset: FileOffset,
}

/// A started queue.
struct StartedQueue {
    queue: Queue,
    requests: RequestQueue,
}

/// The state of the function.
pub(crate) struct Function {
    space: [u8; space::SIZE],
    config: DeviceConfig,
    storage: Arc<dyn Storage>,
    registers: Registers,
    started: Vec<Option<StartedQueue>>,
    mappings: Vec<Mapping>,
    memory: GuestMemoryMmap,
    interrupt: Option<File>,
    /// Whether I/O requests stay pending without an answer.
    pub(crate) keeps_requests_pending: bool,
    /// Writable segments of the pending requests.
    pending_writes: Vec<WritableSegment>,
    /// Whether resets are delayed.
    delays_reset: bool,
    /// Whether a delayed reset is pending.
    reset_pending: bool,
    /// Capacity after the driver has read half of the current one.
    next_capacity: Option<u64>,
}

impl Function {
    pub(crate) fn new() -> io::Result<Self> {
        let config = DeviceConfig::new(ConfigParts {
            io_queues: IO_QUEUES,
            max_segments: 254,
            capacity: CAPACITY,
            aperture_bytes: 0,
            max_request_bytes: 1 << 20,
            operations: Opcode::Read.mask() | Opcode::Write.mask() | Opcode::Flush.mask(),
            max_command_bytes: 0,
        })
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let storage = MemoryStorage::new(CAPACITY).map_err(io::Error::other)?;
        Ok(Self {
            space: space::new(),
            config,
            storage: Arc::new(storage),
            registers: Registers::new(usize::from(FIRST_IO_QUEUE + IO_QUEUES)),
            started: Vec::new(),
            mappings: Vec::new(),
            memory: GuestMemoryMmap::new(),
            interrupt: None,
            keeps_requests_pending: false,
            pending_writes: Vec::new(),
            delays_reset: false,
            reset_pending: false,
            next_capacity: None,
        })
    }

    /// Whether the driver lets the function do DMA.
    fn may_do_dma(&self) -> bool {
        self.space[COMMAND] & BUS_MASTER != 0
    }

    /// Delays resets, or executes a pending one.
    pub(crate) fn delay_reset(&mut self, delay: bool) {
        self.delays_reset = delay;
        if !delay && self.reset_pending {
            self.reset();
        }
    }

    /// Writes to the memory of all pending requests, like a device that was not stopped.
    /// Returns whether there are any.
    pub(crate) fn scribble(&mut self) -> bool {
        if !self.may_do_dma() {
            return false;
        }
        for target in &self.pending_writes {
            let bytes = &SCRIBBLE[..SCRIBBLE.len().min(target.len as usize)];
            // Memory that was unmapped is skipped.
            let _ = self.memory.write_slice(bytes, GuestAddress(target.address));
        }
        !self.pending_writes.is_empty()
    }

    /// Overrides the value of a register.
    pub(crate) fn override_register(&mut self, at: u8, value: u32) {
        self.registers.overrides.insert(at.into(), value.into());
    }

    /// Changes the capacity while the driver reads it.
    pub(crate) fn change_capacity(&mut self, bytes: Option<u64>) {
        self.next_capacity = bytes;
    }

    /// Restores the original registers and configuration.
    pub(crate) fn restore(&mut self) {
        self.registers.overrides.clear();
        self.next_capacity = None;
        self.set_capacity(CAPACITY);
    }

    fn set_capacity(&mut self, bytes: u64) {
        // Other tests cover invalid capacities.
        if let Ok(config) = self.config.resized(bytes, 0)
            && config != self.config
        {
            self.config = config;
            self.registers.generation = self.registers.generation.wrapping_add(1);
        }
    }

    fn reset(&mut self) {
        self.registers.reset();
        self.started.clear();
        self.pending_writes.clear();
        self.reset_pending = false;
    }

    fn start(&mut self) -> io::Result<()> {
        let mut started = Vec::new();
        for (index, registers) in (0..).zip(&self.registers.queues) {
            let role = match index {
                CONTROL_QUEUE => QueueRole::Control,
                _ => QueueRole::Io,
            };
            let mut queue = Queue::new(QUEUE_SIZE).map_err(io::Error::other)?;
            let [descriptors, avail, used] = registers.areas;
            let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
            queue.set_size(registers.size);
            let (low, high) = halves(descriptors);
            queue.set_desc_table_address(low, high);
            let (low, high) = halves(avail);
            queue.set_avail_ring_address(low, high);
            let (low, high) = halves(used);
            queue.set_used_ring_address(low, high);
            queue.set_ready(true);
            started.push(registers.enabled.then(|| StartedQueue {
                queue,
                requests: RequestQueue::new(self.config, role, self.storage.clone()),
            }));
        }
        self.started = started;
        Ok(())
    }

    /// Handles the driver's notification of a queue.
    fn process_queue(&mut self, index: u16) -> io::Result<()> {
        let Some(Some(started)) = self.started.get_mut(usize::from(index)) else {
            return Ok(());
        };
        // This device has no events.
        if index == EVENT_QUEUE || self.space[COMMAND] & BUS_MASTER == 0 {
            return Ok(());
        }
        let mut used = false;
        while let Some(chain) = started
            .queue
            .iter(&self.memory)
            .map_err(io::Error::other)?
            .next()
        {
            if self.keeps_requests_pending && index != CONTROL_QUEUE {
                let writable = chain.writable();
                self.pending_writes.extend(
                    writable
                        .map(|descriptor| WritableSegment {
                            address: descriptor.addr().0,
                            len: descriptor.len(),
                        })
                        .filter(|target| target.len as usize != RequestStatus::SIZE),
                );
                continue;
            }
            let head = ChainHead {
                table: GuestAddress(started.queue.desc_table()),
                queue_size: started.queue.size(),
                index: chain.head_index(),
            };
            // The configuration announces no aperture.
            let no_aperture = || {
                Some(RequestStatus {
                    code: StatusCode::Ok,
                    result: 0,
                })
            };
            let completed = started
                .requests
                .process(&self.memory, head, no_aperture)
                .map_err(|fault| io::Error::other(format!("{fault:?}")))?
                .ok_or_else(|| io::Error::other("a request without an answer"))?;
            started
                .queue
                .add_used(&self.memory, head.index, completed.used_len)
                .map_err(io::Error::other)?;
            used = true;
        }
        if used
            && started
                .queue
                .needs_notification(&self.memory)
                .map_err(io::Error::other)?
        {
            self.interrupt()?;
        }
        Ok(())
    }

    fn interrupt(&self) -> io::Result<()> {
        match &self.interrupt {
            Some(event) => (&*event).write_all(&1u64.to_ne_bytes()),
            None => Ok(()),
        }
    }

    /// Puts an id that the ring does not have into the used ring.
    pub(crate) fn break_queue(&mut self) -> io::Result<()> {
        if let Some(Some(started)) = self.started.get_mut(usize::from(FIRST_IO_QUEUE)) {
            let used = started.queue.used_ring();
            let next = started.queue.next_used();
            let element = used + 4 + 8 * u64::from(next % started.queue.size());
            let write = |value: u32, at| self.memory.write_obj(value, GuestAddress(at));
            write(u32::MAX, element).map_err(io::Error::other)?;
            let index = next.wrapping_add(1);
            self.memory
                .write_obj(index, GuestAddress(used + 2))
                .map_err(io::Error::other)?;
        }
        self.interrupt()
    }

    fn rebuild_memory(&mut self) -> io::Result<()> {
        self.mappings.sort_by_key(|mapping| mapping.address);
        let ranges = self.mappings.iter().map(|mapping| {
            let address = GuestAddress(mapping.address);
            (address, mapping.size as usize, Some(mapping.offset.clone()))
        });
        self.memory = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        Ok(())
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        let put = |value: u64, data: &mut [u8]| {
            let bytes = value.to_le_bytes();
            for (place, byte) in data.iter_mut().zip(bytes) {
                *place = byte;
            }
        };
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                for (place, at) in data.iter_mut().zip(offset as usize..) {
                    *place = self.space.get(at).copied().unwrap_or(0);
                }
            }
            VFIO_PCI_BAR0_REGION_INDEX => match offset {
                at @ space::COMMON..space::COMMON_SIZE => put(self.registers.read(at), data),
                at if (space::DEVICE..space::DEVICE + space::DEVICE_SIZE).contains(&at) => {
                    if at - space::DEVICE == CAPACITY_HIGH
                        && let Some(bytes) = self.next_capacity.take()
                    {
                        self.set_capacity(bytes);
                    }
                    let bytes = self.config.to_bytes();
                    let first = (at - space::DEVICE) as usize;
                    for (place, at) in data.iter_mut().zip(first..) {
                        *place = bytes.get(at).copied().unwrap_or(0);
                    }
                }
                _ => data.fill(0),
            },
            _ => data.fill(0),
        }
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                for (byte, at) in data.iter().zip(offset as usize..) {
                    if at == COMMAND && byte & BUS_MASTER == 0 {
                        // DMA that was on the bus when bus mastering was disabled.
                        self.scribble();
                    }
                    if space::is_writable(at) {
                        self.space[at] = *byte;
                    }
                }
                Ok(())
            }
            VFIO_PCI_BAR0_REGION_INDEX => self.write_bar(offset, data),
            _ => Ok(()),
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = [0; 8];
        for (place, byte) in bytes.iter_mut().zip(data) {
            *place = *byte;
        }
        let value = u64::from_le_bytes(bytes);
        if (space::NOTIFY..space::NOTIFY + space::NOTIFY_SIZE).contains(&offset) {
            return self.process_queue(value as u16);
        }
        if offset >= space::COMMON_SIZE {
            return Ok(());
        }
        match self.registers.write(offset, value) {
            SideEffect::None => Ok(()),
            SideEffect::Start => self.start(),
            SideEffect::Reset if self.delays_reset => {
                self.reset_pending = true;
                Ok(())
            }
            SideEffect::Reset => {
                self.reset();
                Ok(())
            }
        }
    }

    pub(crate) fn map(
        &mut self,
        address: u64,
        size: u64,
        offset: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        // A mapping without a file cannot hold requests.
        if let Some(file) = file {
            self.mappings.push(Mapping {
                address,
                size,
                offset: FileOffset::new(file, offset),
            });
            self.rebuild_memory()?;
        }
        Ok(())
    }

    pub(crate) fn unmap(&mut self, address: u64, size: u64) -> io::Result<()> {
        self.mappings
            .retain(|mapping| mapping.address < address || mapping.address - address >= size);
        self.rebuild_memory()
    }

    pub(crate) fn set_interrupts(&mut self, index: u32, flags: u32, files: Vec<File>) {
        if index == VFIO_PCI_MSIX_IRQ_INDEX {
            // An empty list of descriptors disables the interrupts.
            self.interrupt = match flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
                true => files.into_iter().next(),
                false => None,
            };
        }
    }

    /// A reset of the whole function, which is never delayed.
    pub(crate) fn reset_function(&mut self) {
        self.reset();
        self.space = space::new();
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const STATUS: u64 = 20;

    fn function() -> Function {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 0x4000).unwrap();
        let mut function = Function::new().unwrap();
        function
            .map(0x8000, 0x4000, 0, Some(memory.into()))
            .unwrap();
        function.pending_writes.push(WritableSegment {
            address: 0x9000,
            len: 100,
        });
        function
    }

    /// Clears memory; returns whether the function writes to it afterwards.
    fn does_dma(function: &mut Function) -> bool {
        let at = GuestAddress(0x9000);
        function.memory.write_obj(0u64, at).unwrap();
        function.scribble();
        function.memory.read_obj::<u64>(at).unwrap() != 0
    }

    fn command(function: &mut Function, command: u8) {
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        function
            .write(region, COMMAND as u64, &[command, 0])
            .unwrap();
    }

    fn status(function: &mut Function) -> u8 {
        let mut byte = [0];
        function.read(VFIO_PCI_BAR0_REGION_INDEX, STATUS, &mut byte);
        byte[0]
    }

    #[test]
    fn dma_ends_with_bus_mastering() {
        let mut function = function();
        assert!(!does_dma(&mut function));
        command(&mut function, BUS_MASTER | 2);
        assert!(does_dma(&mut function));
        function
            .memory
            .write_obj(0u64, GuestAddress(0x9000))
            .unwrap();
        command(&mut function, 2);
        let last: u64 = function.memory.read_obj(GuestAddress(0x9000)).unwrap();
        assert_ne!(last, 0, "nothing was on its way");
        assert!(!does_dma(&mut function));
    }

    #[test]
    fn a_reset_that_is_held_back_comes_when_it_is_released() {
        let mut function = function();
        command(&mut function, BUS_MASTER);
        let bar = VFIO_PCI_BAR0_REGION_INDEX;
        function.write(bar, STATUS, &[3]).unwrap();
        function.delay_reset(true);
        function.write(bar, STATUS, &[0]).unwrap();
        assert_eq!(status(&mut function), 3);
        assert!(does_dma(&mut function));
        function.delay_reset(false);
        assert_eq!(status(&mut function), 0);
        assert!(!does_dma(&mut function));
    }

    #[test]
    fn capacity_changes_between_its_halves() {
        let mut function = function();
        let bar = VFIO_PCI_BAR0_REGION_INDEX;
        let word = |function: &mut Function, at| {
            let mut bytes = [0; 4];
            function.read(bar, space::DEVICE + at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let mut generation = [0];
        function.change_capacity(Some(5 << 32));
        assert_eq!(u64::from(word(&mut function, 16)), CAPACITY);
        assert_eq!(word(&mut function, 20), 5);
        function.read(bar, 21, &mut generation);
        assert_eq!(generation, [1]);
        assert_eq!(word(&mut function, 16), 0);
        function.restore();
        assert_eq!(u64::from(word(&mut function, 16)), CAPACITY);
    }
}
