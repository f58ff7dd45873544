// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI configuration space, and the layout of the BAR (VIRTIO 1.3, 4.1.4).

use ringbar_spec::{DeviceConfig, PCI_DEVICE_ID, PCI_VENDOR_ID};

/// Bytes of configuration space.
pub(crate) const SIZE: usize = 256;

/// The command register, and its bit for bus mastering.
pub(crate) const COMMAND: usize = 0x04;
pub(crate) const BUS_MASTER: u8 = 4;

/// Bytes of BAR 0.
pub(crate) const BAR_SIZE: u64 = 0x2000;

/// Offsets of the parts of BAR 0, and their sizes.
pub(crate) const COMMON: u64 = 0;
pub(crate) const COMMON_SIZE: u64 = 0x40;
pub(crate) const ISR: u64 = 0x100;
pub(crate) const DEVICE: u64 = 0x200;
pub(crate) const DEVICE_SIZE: u64 = DeviceConfig::SIZE as u64;
pub(crate) const NOTIFY: u64 = 0x400;
pub(crate) const NOTIFY_SIZE: u64 = 0x100;
/// Bytes between the notification addresses of two queues.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_TABLE: u32 = 0x1000;
const MSIX_PBA: u32 = 0x1800;

/// Types of VIRTIO capabilities (`VIRTIO_PCI_CAP_*`).
const CAP_COMMON_CFG: u8 = 1;
const CAP_NOTIFY_CFG: u8 = 2;
const CAP_ISR_CFG: u8 = 3;
const CAP_DEVICE_CFG: u8 = 4;

const FIRST_CAPABILITY: u8 = 0x40;
const CAP_ID_MSIX: u8 = 0x11;
const CAP_ID_VENDOR: u8 = 0x09;

/// The configuration space after a reset.
pub(crate) fn new() -> [u8; SIZE] {
    const STATUS: usize = 0x06;
    const STATUS_CAP_LIST: u8 = 0x10;
    const REVISION: usize = 0x08;
    const CLASS: usize = 0x0b;
    const CLASS_OTHER: u8 = 0xff;
    const SUBSYSTEM: usize = 0x2c;
    const CAPABILITY_LIST: usize = 0x34;

    let mut space = [0; SIZE];
    for at in [0, SUBSYSTEM] {
        space[at..at + 2].copy_from_slice(&PCI_VENDOR_ID.to_le_bytes());
        space[at + 2..at + 4].copy_from_slice(&PCI_DEVICE_ID.to_le_bytes());
    }
    space[STATUS] = STATUS_CAP_LIST;
    space[REVISION] = 1;
    space[CLASS] = CLASS_OTHER;
    space[CAPABILITY_LIST] = FIRST_CAPABILITY;

    let virtio = |kind, at: u64, size: u64, more: &[u8]| {
        // Type, BAR, id and padding, then offset and length.
        let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
        body.extend((at as u32).to_le_bytes());
        body.extend((size as u32).to_le_bytes());
        body.extend(more);
        (CAP_ID_VENDOR, body)
    };
    // One vector; table and pending bits in BAR 0.
    let mut msix = vec![0, 0];
    msix.extend(MSIX_TABLE.to_le_bytes());
    msix.extend(MSIX_PBA.to_le_bytes());
    let capabilities = [
        (CAP_ID_MSIX, msix),
        virtio(CAP_COMMON_CFG, COMMON, COMMON_SIZE, &[]),
        virtio(
            CAP_NOTIFY_CFG,
            NOTIFY,
            NOTIFY_SIZE,
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        ),
        virtio(CAP_ISR_CFG, ISR, 4, &[]),
        virtio(CAP_DEVICE_CFG, DEVICE, DEVICE_SIZE, &[]),
    ];
    let mut at = usize::from(FIRST_CAPABILITY);
    let last = capabilities.len() - 1;
    for (i, (id, body)) in capabilities.iter().enumerate() {
        let next = (at + 2 + body.len()).next_multiple_of(4);
        space[at] = *id;
        // All capabilities fit into the space.
        space[at + 1] = if i == last { 0 } else { next as u8 };
        space[at + 2..at + 2 + body.len()].copy_from_slice(body);
        at = next;
    }
    space
}

/// Whether the driver may write the byte at `at`: the command register and the interrupt
/// line.
pub(crate) const fn is_writable(at: usize) -> bool {
    matches!(at, 0x04 | 0x05 | 0x3c)
}
