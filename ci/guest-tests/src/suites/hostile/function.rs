// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A VIRTIO function that no driver is bound to, as a program has it that owns it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::case::{During, Stop, Verdict, eventually};
use crate::check;
use crate::sys::{self, Registers};

/// Bits of the PCI command register: access to memory, bus mastering, no INTx. Without the last,
/// the function would raise an interrupt that nobody expects, and that others share.
const COMMAND: u64 = 0x04;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;

/// Offset of the list of capabilities, and the id of those of the vendor.
const CAPABILITIES: u64 = 0x34;
const VENDOR: u8 = 0x09;

/// Types of VIRTIO's capabilities (VIRTIO 1.3, 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;

/// Longest list of capabilities.
const MAX_CAPABILITIES: usize = 48;

/// Registers of the common configuration (VIRTIO 1.3, 4.1.4.3).
pub(super) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(crate) const DEVICE_FEATURE: usize = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(crate) const DRIVER_FEATURE: usize = 12;
    pub(crate) const NUM_QUEUES: usize = 18;
    pub(crate) const STATUS: usize = 20;
    pub(crate) const QUEUE_SELECT: usize = 22;
    pub(crate) const QUEUE_SIZE: usize = 24;
    pub(crate) const QUEUE_ENABLE: usize = 28;
    pub(crate) const QUEUE_NOTIFY_OFF: usize = 30;
    /// Descriptor table, available ring and used ring, 8 bytes each.
    pub(crate) const QUEUE_ADDRESSES: [usize; 3] = [32, 40, 48];
    pub(crate) const BYTES: usize = 56;
}

/// A range of a BAR.
#[derive(Clone, Copy, Debug)]
struct Structure {
    bar: u8,
    offset: usize,
    length: usize,
    /// Bytes between two queues' notifications.
    multiplier: usize,
}

/// A function, with memory access and bus mastering enabled.
pub(super) struct Function {
    config: File,
    common: Registers,
    common_offset: usize,
    notify: Registers,
    notify_offset: usize,
    notify_length: usize,
    multiplier: usize,
}

impl Function {
    /// The function at this directory of sysfs.
    pub(super) fn new(directory: &Path) -> Verdict<Self> {
        let path = directory.join("config");
        let config = sys::open(&path, libc::O_RDWR).during(|| path.display().to_string())?;
        let structures = Structures::read(&config)?;
        let (common, notify) = (structures.of(TYPE_COMMON)?, structures.of(TYPE_NOTIFY)?);
        let function = Self {
            config,
            common: map(directory, common)?,
            common_offset: common.offset,
            notify: map(directory, notify)?,
            notify_offset: notify.offset,
            notify_length: notify.length,
            multiplier: notify.multiplier,
        };
        function.set_command(true)?;
        Ok(function)
    }

    /// Enables access to registers; and to guest memory, or not.
    pub(super) fn set_command(&self, bus_master: bool) -> Verdict {
        let master = if bus_master { BUS_MASTER } else { 0 };
        let command = MEMORY | INTX_DISABLE | master;
        self.config
            .write_all_at(&command.to_le_bytes(), COMMAND)
            .during(|| "writing the PCI command register".into())
    }

    pub(super) fn read8(&self, register: usize) -> u8 {
        self.common.read8(self.common_offset + register)
    }

    pub(super) fn read16(&self, register: usize) -> u16 {
        self.common.read16(self.common_offset + register)
    }

    pub(super) fn read32(&self, register: usize) -> u32 {
        self.common.read32(self.common_offset + register)
    }

    pub(super) fn write8(&self, register: usize, value: u8) {
        self.common.write8(self.common_offset + register, value);
    }

    pub(super) fn write16(&self, register: usize, value: u16) {
        self.common.write16(self.common_offset + register, value);
    }

    pub(super) fn write32(&self, register: usize, value: u32) {
        self.common.write32(self.common_offset + register, value);
    }

    /// Writes a register of 64 bits in two halves.
    pub(super) fn write64(&self, register: usize, value: u64) {
        self.write32(register, value as u32);
        self.write32(register + 4, (value >> 32) as u32);
    }

    /// Resets the device, and waits until it is.
    pub(super) fn reset(&self) -> Verdict {
        self.write8(common::STATUS, 0);
        eventually("the reset", || Ok(self.read8(common::STATUS) == 0))
    }

    /// Rings a doorbell, at any place where there may be one.
    pub(super) fn ring(&self, notify_off: u16, value: u16) {
        let places = (self.notify_length / self.multiplier.max(2)).max(1);
        let place = usize::from(notify_off) % places * self.multiplier;
        self.notify.write16(self.notify_offset + place, value);
    }
}

struct Structures(Vec<(u8, Structure)>);

impl Structures {
    /// The vendor's capabilities of a configuration space.
    fn read(config: &File) -> Verdict<Self> {
        let byte = |at: u64| -> Verdict<u8> {
            let mut byte = [0];
            config
                .read_exact_at(&mut byte, at)
                .during(|| format!("reading byte {at:#x} of the configuration space"))?;
            Ok(byte[0])
        };
        let word = |at: u64| -> Verdict<usize> {
            let mut bytes = [0; 4];
            config
                .read_exact_at(&mut bytes, at)
                .during(|| format!("reading {at:#x} of the configuration space"))?;
            Ok(u32::from_le_bytes(bytes) as usize)
        };
        let mut found = Vec::new();
        let mut at = u64::from(byte(CAPABILITIES)?);
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 {
                return Ok(Self(found));
            }
            if byte(at)? == VENDOR {
                let kind = byte(at + 3)?;
                let structure = Structure {
                    bar: byte(at + 4)?,
                    offset: word(at + 8)?,
                    length: word(at + 12)?,
                    multiplier: match kind {
                        TYPE_NOTIFY => word(at + 16)?,
                        _ => 0,
                    },
                };
                found.push((kind, structure));
            }
            at = byte(at + 1)?.into();
        }
        Err(Stop::Failed("the list of capabilities has no end".into()))
    }

    fn of(&self, kind: u8) -> Verdict<Structure> {
        let found = self.0.iter().find(|(of, _)| *of == kind);
        found
            .map(|(_, structure)| *structure)
            .ok_or_else(|| Stop::Failed(format!("no VIRTIO capability of type {kind}")))
    }
}

fn map(directory: &Path, structure: Structure) -> Verdict<Registers> {
    check!(
        structure.length >= 2,
        "a structure of {} bytes",
        structure.length
    );
    let path: PathBuf = directory.join(format!("resource{}", structure.bar));
    let file = sys::open(&path, libc::O_RDWR).during(|| path.display().to_string())?;
    let end = structure.offset + structure.length;
    Registers::map(&file, end.next_multiple_of(sys::PAGE))
        .during(|| format!("mapping {}", path.display()))
}
