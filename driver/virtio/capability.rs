// SPDX-License-Identifier: GPL-2.0

//! The VIRTIO capabilities in PCI configuration space (4.1.4).
//!
//! Parsing works on a copy of the configuration space and trusts nothing in it; the results are
//! regions that do not overflow. An access checks whether its region lies within its BAR.

/// Number of bytes of configuration space that can contain capabilities.
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
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const SHARED_MEMORY: u8 = 8;

/// A part of a BAR.
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

/// The regions of the parts of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Common configuration (4.1.4.3).
    pub(crate) common: Region,
    /// Notifications (4.1.4.4).
    pub(crate) notify: Region,
    /// Distance of the notification addresses of two queues, in bytes; 0 if all queues share one
    /// address.
    pub(crate) notify_multiplier: u32,
    /// Interrupt status (4.1.4.5), if there is one: only a driver without messages needs it.
    pub(crate) isr: Option<Region>,
    /// Device configuration (4.1.4.6).
    pub(crate) device: Region,
    /// The shared memory region with the given id (4.1.4.7), if there is one.
    pub(crate) shared_memory: Option<Region>,
}

/// A required capability that is missing or unusable.
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
    /// Finds the capabilities in a copy of the configuration space. Of several capabilities of a
    /// kind, the first usable one counts (4.1.4.1). `shared_memory_id` is the id of the shared
    /// memory region to find.
    pub(crate) fn parse(space: &[u8; CONFIG_SPACE], shared_memory_id: u8) -> Result<Self, Missing> {
        let byte = |at: usize| space.get(at).copied().unwrap_or(0);
        let word =
            |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);

        let mut common = None;
        let mut notify = None;
        let mut isr = None;
        let mut device = None;
        let mut shared_memory = None;

        let mut next = if byte(STATUS) & STATUS_CAP_LIST != 0 {
            byte(CAPABILITY_LIST) & !3
        } else {
            0
        };
        // A list within the space cannot be longer than this; the loop ends in a list that loops.
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
                ISR if isr.is_none() => isr = low,
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
            isr,
            device: device.ok_or(Missing::Device)?,
            shared_memory,
        })
    }
}

#[kernel::macros::kunit_tests(ringbar_capability)]
mod tests {
    use super::*;

    /// The id of the shared memory region in these tests.
    const ID: u8 = 7;

    /// A configuration space with these capabilities, linked in this order from 0x40 on, 0x20 bytes
    /// apart: kind, bar, length of the capability, and the bytes after byte 5.
    fn space(capabilities: &[(u8, u8, u8, &[u8])]) -> [u8; CONFIG_SPACE] {
        let mut space = [0; CONFIG_SPACE];
        space[STATUS] = STATUS_CAP_LIST;
        space[CAPABILITY_LIST] = FIRST_CAPABILITY;
        let last = capabilities.len() - 1;
        for (i, &(kind, bar, len, rest)) in capabilities.iter().enumerate() {
            let at = FIRST_CAPABILITY as usize + i * 0x20;
            space[at] = VENDOR_SPECIFIC;
            space[at + 1] = if i == last { 0 } else { (at + 0x20) as u8 };
            space[at + 2] = len;
            space[at + 3] = kind;
            space[at + 4] = bar;
            space[at + 5..at + 5 + rest.len()].copy_from_slice(rest);
        }
        space
    }

    /// Id, padding, offset 0x1000, length 0x100, and a word.
    const PLACE: &[u8] = &[ID, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0];
    const GOOD: [(u8, u8, u8, &[u8]); 3] = [
        (COMMON, 2, CAP_LEN, PLACE),
        (NOTIFY, 2, NOTIFY_CAP_LEN, PLACE),
        (DEVICE, 2, CAP_LEN, PLACE),
    ];

    #[test]
    fn all_parts_are_found() {
        let found = Capabilities::parse(&space(&GOOD), ID);
        let region = Region::new(2, 0x1000, 0x100);
        assert_eq!(found.as_ref().ok().map(|found| found.common), region);
        assert_eq!(found.as_ref().ok().map(|found| found.notify), region);
        assert_eq!(found.as_ref().ok().map(|found| found.device), region);
        assert_eq!(
            found.as_ref().ok().map(|found| found.notify_multiplier),
            Some(4)
        );
        assert_eq!(found.as_ref().ok().and_then(|found| found.isr), None);
        assert_eq!(found.ok().and_then(|found| found.shared_memory), None);
    }

    #[test]
    fn interrupt_status_is_found() {
        let isr = (ISR, 2, CAP_LEN, PLACE);
        let found = Capabilities::parse(&space(&[GOOD[0], isr, GOOD[1], GOOD[2]]), ID);
        assert_eq!(
            found.ok().and_then(|found| found.isr),
            Region::new(2, 0x1000, 0x100)
        );
    }

    #[test]
    fn shared_memory_has_64_bits_and_an_id() {
        let place = |id| [id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0];
        let (other, wanted) = (place(ID + 1), place(ID));
        let found = Capabilities::parse(
            &space(&[
                GOOD[0],
                GOOD[1],
                GOOD[2],
                (SHARED_MEMORY, 3, CAP64_LEN, &other),
                (SHARED_MEMORY, 4, CAP64_LEN, &wanted),
            ]),
            ID,
        );
        assert_eq!(
            found.ok().and_then(|found| found.shared_memory),
            Region::new(4, 1 << 32, 2 << 32)
        );
    }

    #[test]
    fn first_usable_one_of_a_kind_counts() {
        let found = Capabilities::parse(
            &space(&[
                (COMMON, 6, CAP_LEN, PLACE),
                (COMMON, 0, CAP_LEN - 1, PLACE),
                (COMMON, 1, CAP_LEN, PLACE),
                (COMMON, 2, CAP_LEN, PLACE),
                GOOD[1],
                GOOD[2],
            ]),
            ID,
        );
        assert_eq!(found.ok().map(|found| found.common.bar()), Some(1));
    }

    #[test]
    fn missing_parts_are_named() {
        let parse = |space| Capabilities::parse(&space, ID).err();
        assert_eq!(parse(space(&[GOOD[0], GOOD[2]])), Some(Missing::Notify));
        assert_eq!(parse(space(&[GOOD[1], GOOD[2]])), Some(Missing::Common));
        assert_eq!(parse(space(&[GOOD[0], GOOD[1]])), Some(Missing::Device));
        // Without the multiplier that it requires.
        let short = (NOTIFY, 2, CAP_LEN, PLACE);
        assert_eq!(
            parse(space(&[GOOD[0], short, GOOD[2]])),
            Some(Missing::Notify)
        );
        // A list whose existence the status register denies.
        let mut hidden = space(&GOOD);
        hidden[STATUS] = 0;
        assert_eq!(parse(hidden), Some(Missing::Notify));
    }

    #[test]
    fn list_that_loops_or_leaves_the_space_ends() {
        let mut looping = space(&GOOD);
        looping[FIRST_CAPABILITY as usize + 0x41] = FIRST_CAPABILITY;
        assert!(Capabilities::parse(&looping, ID).is_ok());
        let mut to_itself = space(&GOOD);
        to_itself[FIRST_CAPABILITY as usize + 1] = FIRST_CAPABILITY;
        assert!(Capabilities::parse(&to_itself, ID).is_err());
        let mut outside = space(&GOOD);
        outside[CAPABILITY_LIST] = 0xfc;
        outside[0xfc] = VENDOR_SPECIFIC;
        outside[0xfe] = CAP_LEN;
        outside[0xff] = COMMON;
        assert!(Capabilities::parse(&outside, ID).is_err());
    }

    #[test]
    fn region_that_overflows_is_none() {
        assert_eq!(Region::new(0, u64::MAX, 1), None);
        assert_eq!(Region::new(6, 0, 1), None);
        assert!(Region::new(5, u64::MAX, 0).is_some());
    }

    #[test]
    fn any_bytes_are_survived() {
        // Each byte of a valid space in turn takes the values that are most likely to cause errors.
        let good = space(&GOOD);
        for at in 0..CONFIG_SPACE {
            for value in [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xf0, 0xfc, 0xff] {
                let mut space = good;
                space[at] = value;
                if let Ok(found) = Capabilities::parse(&space, ID) {
                    let required = [found.common, found.notify, found.device];
                    for region in Iterator::chain(required.into_iter(), found.isr) {
                        assert!(region.bar() < 6);
                        assert!(region.offset().checked_add(region.len()).is_some());
                    }
                }
            }
        }
    }
}
