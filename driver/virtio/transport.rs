// SPDX-License-Identifier: GPL-2.0

//! The registers of a VIRTIO PCI device: common configuration, device
//! configuration, notifications (4.1.4.3 to 4.1.4.6).

use super::{
    capability::{
        Capabilities,
        Region, //
        CONFIG_SPACE,
    },
    consistent::consistent,
    isr::Raised,
    reset::{
        self,
        Quiesced,
        Stop,
        Unstoppable,
        Way, //
    },
    ring::Areas, //
};
use crate::abstractions::pci::enable::{
    disable_bus_mastering,
    enable_bus_mastering, //
};
use kernel::{
    device::Bound,
    io::Io,
    pci,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep, //
        Delta,
    }, //
    ModuleMetadata,
};

/// The name of the module, under which BARs are claimed.
const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

/// Offsets within the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 16;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: usize = 20;
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
}

/// Device status bits (2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const FAILED: u8 = 128;
}

/// Feature bits (6).
pub(crate) mod feature {
    /// Requests may use an indirect descriptor table.
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are requested by ring index.
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    /// The device follows VIRTIO 1.0 or later.
    pub(crate) const VERSION_1: u64 = 1 << 32;
    /// The platform's IOMMU and memory protection apply to the device.
    pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// "No vector" in a vector register (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// The value of a vector register: the number of an MSI-X or MSI message, or `None` for
/// [`NO_VECTOR`], with which interrupts raise the line.
pub(crate) type Message = Option<u16>;

/// The address at which the driver notifies the device of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doorbell {
    offset: usize,
    queue: u16,
}

/// The mapped registers. Dropped before the device is unbound.
pub(crate) struct Transport {
    bars: KVec<(u8, pci::DevresBar)>,
    capabilities: Capabilities,
    /// The generation of the device configuration that was read last.
    generation: Atomic<u32>,
}

impl Transport {
    /// Finds and maps the registers. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, shared_memory_id: u8) -> Result<Self> {
        let mut space = [0; CONFIG_SPACE];
        let config = device.config_space();
        for (at, byte) in space.iter_mut().enumerate() {
            *byte = config.try_read8(at)?;
        }
        let capabilities = Capabilities::parse(&space, shared_memory_id).map_err(|missing| {
            dev_err!(
                device,
                "no usable VIRTIO capability in PCI configuration space: {:?}; is this a modern \
                 (1.0) device?\n",
                missing
            );
            ENODEV
        })?;

        // Optional: a driver that gets messages does not need it.
        let mut capabilities = capabilities;
        let mut bars = KVec::new();
        let required = [
            capabilities.common,
            capabilities.notify,
            capabilities.device,
        ];
        let mut map = |region: &Region| -> Result {
            if !bars.iter().any(|&(bar, _)| bar == region.bar()) {
                let bar = device.iomap_region(u32::from(region.bar()), NAME)?;
                bars.push((region.bar(), bar.into_devres()?), GFP_KERNEL)?;
            }
            Ok(())
        };
        required.iter().try_for_each(&mut map)?;
        capabilities.isr = capabilities.isr.filter(|region| map(region).is_ok());
        let mut this = Self {
            bars,
            capabilities,
            generation: Atomic::new(0),
        };
        // Not beyond the end of its BAR. The read clears what an earlier driver left.
        if this.read_interrupt_status(device).is_err() {
            this.capabilities.isr = None;
        }
        Ok(this)
    }

    /// The shared memory region with the given id.
    pub(crate) fn shared_memory(&self) -> Option<Region> {
        self.capabilities.shared_memory
    }

    /// The BAR of `region`, and the offset in it of `width` bytes at `offset` of the region.
    /// `ENXIO` if these bytes are not within the region.
    fn locate<'a>(
        &'a self,
        device: &'a pci::Device<Bound>,
        region: &Region,
        offset: usize,
        width: usize,
    ) -> Result<(&'a pci::Bar<'a>, usize)> {
        let end = offset.checked_add(width).ok_or(ENXIO)?;
        if end as u64 > region.len() {
            return Err(ENXIO);
        }
        let at = usize::try_from(region.offset())?
            .checked_add(offset)
            .ok_or(ENXIO)?;
        let (_, bar) = self
            .bars
            .iter()
            .find(|&&(index, _)| index == region.bar())
            .ok_or(ENXIO)?;
        Ok((bar.access(device.as_ref())?, at))
    }

    /// Whether the device has an interrupt status, which a driver without messages needs.
    pub(crate) fn has_interrupt_status(&self) -> bool {
        self.capabilities.isr.is_some()
    }

    /// Reads the interrupt status, which clears it and releases the line (4.1.4.5.1). `None` if the
    /// device has not raised the line. Any context.
    pub(crate) fn take_raised(&self, device: &pci::Device<Bound>) -> Option<Raised> {
        Raised::parse(self.read_interrupt_status(device).ok()?)
    }

    fn read_interrupt_status(&self, device: &pci::Device<Bound>) -> Result<u8> {
        let region = self.capabilities.isr.as_ref().ok_or(ENXIO)?;
        let (bar, at) = self.locate(device, region, 0, 1)?;
        bar.try_read8(at)
    }

    fn common8(&self, device: &pci::Device<Bound>, offset: usize) -> Result<u8> {
        let (bar, at) = self.locate(device, &self.capabilities.common, offset, 1)?;
        bar.try_read8(at)
    }

    fn set_common8(&self, device: &pci::Device<Bound>, offset: usize, value: u8) -> Result {
        let (bar, at) = self.locate(device, &self.capabilities.common, offset, 1)?;
        bar.try_write8(value, at)
    }

    fn common16(&self, device: &pci::Device<Bound>, offset: usize) -> Result<u16> {
        let (bar, at) = self.locate(device, &self.capabilities.common, offset, 2)?;
        bar.try_read16(at)
    }

    fn set_common16(&self, device: &pci::Device<Bound>, offset: usize, value: u16) -> Result {
        let (bar, at) = self.locate(device, &self.capabilities.common, offset, 2)?;
        bar.try_write16(value, at)
    }

    fn set_common32(&self, device: &pci::Device<Bound>, offset: usize, value: u32) -> Result {
        let (bar, at) = self.locate(device, &self.capabilities.common, offset, 4)?;
        bar.try_write32(value, at)
    }

    /// A 64-bit field is written as two halves (4.1.3.1).
    fn set_common64(&self, device: &pci::Device<Bound>, offset: usize, value: u64) -> Result {
        // CAST: The two halves of the value.
        self.set_common32(device, offset, value as u32)?;
        self.set_common32(device, offset + 4, (value >> 32) as u32)
    }

    /// Stops the device: resets it, and disables bus mastering if the reset fails. From then on it
    /// accesses no memory. Calls are to be serialised. Sleeps.
    pub(crate) fn quiesce(&self, device: &pci::Device<Bound>) -> Result<Quiesced, Unstoppable> {
        let stopped = reset::quiesce(&Stopping {
            transport: self,
            device,
        });
        match &stopped {
            Ok((_, Way::Reset)) => {}
            Ok((_, Way::BusMastering)) => dev_err!(
                device,
                "the device does not come out of reset: bus mastering is off\n"
            ),
            Err(Unstoppable) => dev_err!(
                device,
                "the device neither comes out of reset nor does it leave the bus alone: the \
                 memory that it knows of is lost\n"
            ),
        }
        stopped.map(|(quiesced, _)| quiesced)
    }

    fn add_status(&self, device: &pci::Device<Bound>, bits: u8) -> Result {
        let old = self.common8(device, common::DEVICE_STATUS)?;
        self.set_common8(device, common::DEVICE_STATUS, old | bits)
    }

    /// Resets a device that does not run, enables bus mastering, and negotiates features with it
    /// (3.1.1, steps 1 to 6): those of `wanted` that it offers. `ENODEV` if one of `required` is
    /// missing or the device rejects the set, `EIO` if the reset fails. Sleeps.
    pub(crate) fn negotiate(
        &self,
        device: &pci::Device<Bound>,
        _quiesced: &Quiesced,
        required: u64,
        wanted: u64,
    ) -> Result<u64> {
        // The negotiation begins with a reset, in whichever way the device was stopped.
        if !reset::reset(&Stopping {
            transport: self,
            device,
        }) {
            dev_err!(device, "the device does not come out of reset\n");
            return Err(EIO);
        }
        // The driver may have disabled it, or the device may have lost it during the machine's
        // sleep.
        enable_bus_mastering(device);
        self.add_status(device, status::ACKNOWLEDGE)?;
        self.add_status(device, status::DRIVER)?;

        let mut offered = 0;
        for half in 0..2u32 {
            self.set_common32(device, common::DEVICE_FEATURE_SELECT, half)?;
            let (bar, at) =
                self.locate(device, &self.capabilities.common, common::DEVICE_FEATURE, 4)?;
            offered |= u64::from(bar.try_read32(at)?) << (32 * half);
        }
        if offered & required != required {
            dev_err!(
                device,
                "the device lacks needed VIRTIO features: offered {:#x}, needed {:#x}\n",
                offered,
                required
            );
            self.fail(device);
            return Err(ENODEV);
        }
        let features = offered & (required | wanted);
        for half in 0..2u32 {
            self.set_common32(device, common::DRIVER_FEATURE_SELECT, half)?;
            // CAST: One half of the features.
            self.set_common32(
                device,
                common::DRIVER_FEATURE,
                (features >> (32 * half)) as u32,
            )?;
        }
        self.add_status(device, status::FEATURES_OK)?;
        if self.common8(device, common::DEVICE_STATUS)? & status::FEATURES_OK == 0 {
            dev_err!(device, "the device rejects the features {:#x}\n", features);
            self.fail(device);
            return Err(ENODEV);
        }
        Ok(features)
    }

    /// Starts the device: from now on it processes the queues (3.1.1, step 8).
    pub(crate) fn start(&self, device: &pci::Device<Bound>, _quiesced: Quiesced) -> Result {
        self.add_status(device, status::DRIVER_OK)
    }

    /// Reports to the device that the driver has failed (2.1).
    pub(crate) fn fail(&self, device: &pci::Device<Bound>) {
        // There is no further way to report a failure of this write.
        let _ = self.add_status(device, status::FAILED);
    }

    /// Reads the first `N` bytes of the device configuration, as they were at one moment (2.5.1).
    /// Each access may be a round trip of the whole space to the device's process, so it is read
    /// once unless it changes meanwhile. `EAGAIN` if it changes all the time.
    pub(crate) fn device_config<const N: usize>(
        &self,
        device: &pci::Device<Bound>,
    ) -> Result<[u8; N]> {
        let (bytes, generation) = consistent(
            || self.common8(device, common::CONFIG_GENERATION),
            || {
                let mut bytes = [0; N];
                let mut chunks = bytes.chunks_exact_mut(4);
                for (index, chunk) in chunks.by_ref().enumerate() {
                    let (bar, at) = self.locate(device, &self.capabilities.device, index * 4, 4)?;
                    chunk.copy_from_slice(&bar.try_read32(at)?.to_le_bytes());
                }
                Ok(bytes)
            },
        )?;
        self.generation.store(generation.into(), Relaxed);
        Ok(bytes)
    }

    /// Whether the device configuration has changed since [`Self::device_config`]: one read of a
    /// register. Any context.
    pub(crate) fn has_new_config(&self, device: &pci::Device<Bound>) -> bool {
        self.common8(device, common::CONFIG_GENERATION)
            .is_ok_and(|now| u32::from(now) != self.generation.load(Relaxed))
    }

    /// Number of queues of the device.
    pub(crate) fn queue_count(&self, device: &pci::Device<Bound>) -> Result<u16> {
        self.common16(device, common::NUM_QUEUES)
    }

    /// Makes configuration changes send `message`. Returns whether the device accepts it.
    pub(crate) fn set_config_vector(
        &self,
        device: &pci::Device<Bound>,
        message: Message,
    ) -> Result<bool> {
        self.set_vector(device, common::CONFIG_MSIX_VECTOR, message)
    }

    /// Makes queue `index`, which is not enabled, send `message`. Returns whether the device accepts
    /// it.
    pub(crate) fn set_queue_vector(
        &self,
        device: &pci::Device<Bound>,
        index: u16,
        message: Message,
    ) -> Result<bool> {
        self.set_common16(device, common::QUEUE_SELECT, index)?;
        self.set_vector(device, common::QUEUE_MSIX_VECTOR, message)
    }

    /// Writes a vector register. Returns whether the device accepts the message: one without the
    /// resources answers [`NO_VECTOR`] (4.1.5.1.2.1).
    fn set_vector(&self, device: &pci::Device<Bound>, at: usize, message: Message) -> Result<bool> {
        self.set_common16(device, at, message.unwrap_or(NO_VECTOR))?;
        Ok(match message {
            Some(message) => self.common16(device, at)? == message,
            None => true,
        })
    }

    /// Greatest size of queue `index`, 0 if it is not available.
    pub(crate) fn queue_max_size(&self, device: &pci::Device<Bound>, index: u16) -> Result<u16> {
        self.set_common16(device, common::QUEUE_SELECT, index)?;
        self.common16(device, common::QUEUE_SIZE)
    }

    /// Sets memory and `message` of queue `index`, enables it, and returns its notification address
    /// (4.1.5.1.3).
    pub(crate) fn enable_queue(
        &self,
        device: &pci::Device<Bound>,
        index: u16,
        areas: &Areas,
        message: Message,
    ) -> Result<Doorbell> {
        if !self.set_queue_vector(device, index, message)? {
            dev_err!(
                device,
                "the device refuses the interrupt of queue {}\n",
                index
            );
            return Err(EIO);
        }
        self.set_common16(device, common::QUEUE_SIZE, areas.size)?;
        self.set_common64(device, common::QUEUE_DESC, areas.descriptors)?;
        self.set_common64(device, common::QUEUE_DRIVER, areas.driver)?;
        self.set_common64(device, common::QUEUE_DEVICE, areas.device)?;
        let notify_off = self.common16(device, common::QUEUE_NOTIFY_OFF)?;
        let offset = usize::from(notify_off) * self.capabilities.notify_multiplier as usize;
        // Checked once and here, so that a bad device fails at probe and not at the first request.
        self.locate(device, &self.capabilities.notify, offset, 2)?;
        self.set_common16(device, common::QUEUE_ENABLE, 1)?;
        Ok(Doorbell {
            offset,
            queue: index,
        })
    }

    /// Sets the memory of the queue of `doorbell` again after a reset. `EIO` if the device no
    /// longer has the queue as before.
    pub(crate) fn enable_queue_again(
        &self,
        device: &pci::Device<Bound>,
        doorbell: Doorbell,
        areas: &Areas,
        message: Message,
    ) -> Result {
        let index = doorbell.queue;
        if self.queue_max_size(device, index)? < areas.size
            || self.enable_queue(device, index, areas, message)? != doorbell
        {
            dev_err!(
                device,
                "queue {} is not what it was before the reset\n",
                index
            );
            return Err(EIO);
        }
        Ok(())
    }

    /// Notifies the device that a queue has new chains. Any context.
    #[inline]
    pub(crate) fn ring(&self, device: &pci::Device<Bound>, doorbell: Doorbell) -> Result {
        let (bar, at) = self.locate(device, &self.capabilities.notify, doorbell.offset, 2)?;
        bar.try_write16(doorbell.queue, at)
    }
}

/// A device that is being stopped.
struct Stopping<'a> {
    transport: &'a Transport,
    device: &'a pci::Device<Bound>,
}

impl Stop for Stopping<'_> {
    fn begin_reset(&self) -> Result {
        self.transport
            .set_common8(self.device, common::DEVICE_STATUS, 0)
    }

    fn is_reset(&self) -> Result<bool> {
        // All ones: the device was removed from the bus, so it does no DMA.
        let status = self.transport.common8(self.device, common::DEVICE_STATUS)?;
        Ok(matches!(status, 0 | 0xff))
    }

    fn pause(&self, time: Delta) {
        fsleep(time);
    }

    fn disable_bus_mastering(&self) -> bool {
        disable_bus_mastering(self.device)
    }
}
