// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device implements to be served, and the types of its calls.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::{Errno, Reply};
use crate::dma::{DmaMap, DmaUnmap};

/// A device as the server calls it.
///
/// The server calls from one thread, in the order of the messages. The client waits for most
/// calls with its main lock held, and QEMU gives a connection up after 5 s without a reply; so
/// calls without a [`Reply`] must not block.
///
/// The server has checked each call against [`device`](Self::device), [`region`](Self::region)
/// and [`interrupt`](Self::interrupt). It asks them at every access, so they must be cheap, and
/// their results must not change during a connection.
pub trait Backend {
    /// Describes the device (`VFIO_USER_DEVICE_GET_INFO`).
    fn device(&self) -> DeviceInfo;

    /// Describes region `index`, which is below [`DeviceInfo::regions`]. `None`: the region is
    /// absent; the client reads a size of 0.
    fn region(&self, index: u32) -> Option<Region<'_>>;

    /// Describes interrupt type `index`, which is below [`DeviceInfo::irqs`]. `None`: the type
    /// is absent; the client reads a count of 0.
    fn interrupt(&self, index: u32) -> Option<InterruptInfo>;

    /// Reads `data.len()` bytes of `region` from `offset` bytes on. The range is not empty, lies
    /// in the region, and the region is readable.
    ///
    /// # Errors
    ///
    /// The `errno` of the error reply; `data` is dropped then.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes `data` to `region` from `offset` bytes on. The range is not empty, lies in the
    /// region, and the region is writable.
    ///
    /// # Errors
    ///
    /// The `errno` of the error reply.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// Adds a range for DMA, with the file that holds its memory or, for memory that cannot be
    /// shared, without. The range is not empty, and neither its addresses nor its offsets in the
    /// file exceed 64 bits. Alignment, overlap, and the size and kind of the file are unchecked.
    fn dma_map(&mut self, map: DmaMap, file: Option<OwnedFd>, reply: Reply);

    /// Removes ranges for DMA. `reply` must be answered only after the last access to them. A
    /// range is not empty and its addresses do not exceed 64 bits; whether it was ever added is
    /// unchecked.
    fn dma_unmap(&mut self, unmap: DmaUnmap, reply: Reply);

    /// Changes interrupts of one type (`VFIO_USER_DEVICE_SET_IRQS`). The descriptors are of
    /// whatever kind the client chose: a write to one may block unless it is made non-blocking.
    ///
    /// # Errors
    ///
    /// The `errno` of the error reply.
    fn set_interrupts(&mut self, set: SetInterrupts) -> Result<(), Errno>;

    /// Resets the device (`VFIO_USER_DEVICE_RESET`). Called only if [`DeviceInfo::flags`] has
    /// `VFIO_DEVICE_FLAGS_RESET`.
    fn reset(&mut self, reply: Reply);
}

/// Properties of a device (`VFIO_USER_DEVICE_GET_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of regions; `VFIO_PCI_NUM_REGIONS` for a PCI device.
    pub regions: u32,
    /// Number of interrupt types; `VFIO_PCI_NUM_IRQS` for a PCI device.
    pub irqs: u32,
    /// `VFIO_DEVICE_FLAGS_RESET`, `VFIO_DEVICE_FLAGS_PCI`.
    pub flags: u32,
}

/// Properties of a region (`VFIO_USER_DEVICE_GET_REGION_INFO`).
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Size in bytes.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_READ`, `VFIO_REGION_INFO_FLAG_WRITE`. The server adds the flags
    /// for a mapping.
    pub flags: u32,
    /// The file that the client may map instead of sending messages.
    pub mapping: Option<Mapping<'a>>,
}

/// A file that contains a region.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// The file; the client gets a duplicate of its descriptor.
    pub file: &'a File,
    /// Offset in bytes of the region in the file.
    pub offset: u64,
    /// The parts of the region that the client may map. Empty: the whole region.
    pub areas: &'a [Area],
}

/// A part of a region, with page granularity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Offset in bytes in the region.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// Properties of an interrupt type (`VFIO_USER_DEVICE_GET_IRQ_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptInfo {
    /// Number of interrupts of the type.
    pub count: u32,
    /// `VFIO_IRQ_INFO_EVENTFD`, `_MASKABLE`, `_AUTOMASKED`, `_NORESIZE`.
    pub flags: u32,
}

/// A change of interrupts of one type.
///
/// # Invariants
///
/// - `start + count` is at most the type's [`InterruptInfo::count`].
/// - `count` is 0 only with [`InterruptAction::Trigger`], [`InterruptData::None`] and a `start`
///   of 0: that disables every interrupt of the type.
/// - [`InterruptData::EventFds`] comes only for a type with `VFIO_IRQ_INFO_EVENTFD`.
/// - [`InterruptAction::Mask`] and [`InterruptAction::Unmask`] come only for a type with
///   `VFIO_IRQ_INFO_MASKABLE`.
#[derive(Debug)]
pub struct SetInterrupts {
    /// Interrupt type, such as `VFIO_PCI_MSIX_IRQ_INDEX`.
    pub index: u32,
    /// First interrupt of the type.
    pub start: u32,
    /// Number of interrupts.
    pub count: u32,
    /// What happens to them.
    pub action: InterruptAction,
    /// To which of them, or upon which events.
    pub data: InterruptData,
}

/// Action of [`SetInterrupts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptAction {
    /// Masks interrupts, or sets the descriptors that mask them.
    Mask,
    /// Unmasks interrupts, or sets the descriptors that unmask them.
    Unmask,
    /// Raises interrupts, or sets the descriptors by which the device raises them.
    Trigger,
}

/// Data of [`SetInterrupts`].
#[derive(Debug)]
pub enum InterruptData {
    /// The action applies to each interrupt.
    None,
    /// One byte for each interrupt: the action applies where it is not 0.
    Bool(Vec<u8>),
    /// One descriptor for each interrupt; none at all removes those that were set.
    EventFds(Vec<OwnedFd>),
}
