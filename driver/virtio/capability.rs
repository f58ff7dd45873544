// SPDX-License-Identifier: GPL-2.0

//! The VIRTIO capabilities in PCI configuration space (4.1.4).
//!
//! Parsing works on a copy of the configuration space and trusts nothing in it;
//! what comes out are regions that do not overflow. Whether they lie within their
//! BARs shows when they are used, because every access is checked there.

/// Bytes of configuration space that capabilities can be in.
pub(crate) const CONFIG_SPACE: usize = 256;

const STATUS: usize = 0x06;
const STATUS_CAP_LIST: u8 = 0x10;
const CAPABILITY_LIST: usize = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;
const VENDOR_SPECIFIC: u8 = 0x09;

/// `sizeof(struct virtio_pci_cap)`; the extended kinds have 4 or 8 bytes more.
const CAP_LEN: u8 = 16;
const NOTIFY_CAP_LEN: u8 = 20;
const CAP64_LEN: u8 = 24;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
const SHARED_MEMORY: u8 = 8;

/// A piece of a BAR.
///
/// # Invariants
///
/// `bar < 6`, and `offset + len` does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    bar: u8,
    offset: u64,
    len: u64,
}

impl Region {
    fn new(bar: u8, offset: u64, len: u64) -> Option<Self> {
        // 4.1.4: BARs above 5 are reserved, the driver must ignore such a capability.
        if bar > 5 || offset.checked_add(len).is_none() {
            return None;
        }
        Some(Self { bar, offset, len })
    }

    /// Index of the BAR.
    pub(crate) fn bar(&self) -> u8 {
        self.bar
    }

    /// First byte within the BAR.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

/// Where the parts of the device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Common configuration (4.1.4.3).
    pub(crate) common: Region,
    /// Notifications (4.1.4.4).
    pub(crate) notify: Region,
    /// Distance of two queues' notification addresses, in bytes; 0 where all
    /// share one.
    pub(crate) notify_multiplier: u32,
    /// Device configuration (4.1.4.6).
    pub(crate) device: Region,
    /// The shared memory region that was asked for (4.1.4.7), if there is one.
    pub(crate) shared_memory: Option<Region>,
}

/// A capability that is needed and not there, or unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Common configuration.
    Common,
    /// Notifications.
    Notify,
    /// Device configuration.
    Device,
}

impl Capabilities {
    /// Finds the capabilities in a copy of the configuration space. Of several of
    /// a kind the first usable one counts (4.1.4.1). `shared_memory_id` names the
    /// shared memory region that is wanted.
    pub(crate) fn parse(space: &[u8; CONFIG_SPACE], shared_memory_id: u8) -> Result<Self, Missing> {
        let byte = |at: usize| space.get(at).copied().unwrap_or(0);
        let word =
            |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);

        let mut common = None;
        let mut notify = None;
        let mut device = None;
        let mut shared_memory = None;

        let mut next = if byte(STATUS) & STATUS_CAP_LIST != 0 {
            byte(CAPABILITY_LIST) & !3
        } else {
            0
        };
        // A list within the space cannot be longer than this; one that loops is cut off.
        for _ in 0..(CONFIG_SPACE - FIRST_CAPABILITY as usize) / 4 {
            if next < FIRST_CAPABILITY {
                break;
            }
            let at = next as usize;
            next = byte(at + 1) & !3;

            let len = byte(at + 2);
            if byte(at) != VENDOR_SPECIFIC || len < CAP_LEN || at + len as usize > CONFIG_SPACE {
                continue;
            }
            let kind = byte(at + 3);
            let bar = byte(at + 4);
            let low = Region::new(bar, u64::from(word(at + 8)), u64::from(word(at + 12)));
            match kind {
                COMMON if common.is_none() => common = low,
                NOTIFY if notify.is_none() && len >= NOTIFY_CAP_LEN => {
                    notify = low.map(|region| (region, word(at + 16)));
                }
                DEVICE if device.is_none() => device = low,
                SHARED_MEMORY
                    if shared_memory.is_none()
                        && len >= CAP64_LEN
                        && byte(at + 5) == shared_memory_id =>
                {
                    shared_memory = Region::new(
                        bar,
                        u64::from(word(at + 8)) | u64::from(word(at + 16)) << 32,
                        u64::from(word(at + 12)) | u64::from(word(at + 20)) << 32,
                    );
                }
                _ => {}
            }
        }

        let (notify, notify_multiplier) = notify.ok_or(Missing::Notify)?;
        Ok(Self {
            common: common.ok_or(Missing::Common)?,
            notify,
            notify_multiplier,
            device: device.ok_or(Missing::Device)?,
            shared_memory,
        })
    }
}
