// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The registers of the common configuration (VIRTIO 1.3, 4.1.4.3).

use std::collections::HashMap;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Entries of each queue: more than the tests have requests in flight.
pub(crate) const QUEUE_SIZE: u16 = 128;

/// `DRIVER_OK` of the device status.
const DRIVER_OK: u8 = 4;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The registers of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueRegisters {
    pub(crate) size: u16,
    vector: u16,
    pub(crate) enabled: bool,
    /// Descriptor table, available ring, used ring.
    pub(crate) areas: [u64; 3],
}

impl Default for QueueRegisters {
    fn default() -> Self {
        Self {
            size: QUEUE_SIZE,
            vector: u16::MAX,
            enabled: false,
            areas: [0; 3],
        }
    }
}

/// The side effect of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SideEffect {
    /// No side effect.
    None,
    /// Reset the device.
    Reset,
    /// Start the queues.
    Start,
}

/// The registers.
#[derive(Debug)]
pub(crate) struct Registers {
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: u16,
    pub(crate) status: u8,
    select: u16,
    pub(crate) queues: Vec<QueueRegisters>,
    /// Configuration generation.
    pub(crate) generation: u8,
    /// Overridden values of registers, by offset. An override of a per-queue register
    /// applies to all queues.
    pub(crate) overrides: HashMap<u64, u64>,
}

impl Registers {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: u16::MAX,
            status: 0,
            select: 0,
            queues: vec![QueueRegisters::default(); queues],
            generation: 0,
            overrides: HashMap::new(),
        }
    }

    /// Resets all registers.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            generation: self.generation,
            overrides: std::mem::take(&mut self.overrides),
            ..Self::new(self.queues.len())
        };
    }

    /// The register at `at`.
    pub(crate) fn read(&self, at: u64) -> u64 {
        if let Some(value) = self.overrides.get(&at) {
            return *value;
        }
        let half = |features: u64, select| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let queue = self.queues.get(usize::from(self.select));
        match at {
            0 => self.device_select.into(),
            4 => half(FEATURES, self.device_select),
            8 => self.driver_select.into(),
            12 => half(self.driver_features, self.driver_select),
            16 => self.config_vector.into(),
            18 => self.queues.len() as u64,
            20 => self.status.into(),
            21 => self.generation.into(),
            22 => self.select.into(),
            24 => queue.map_or(0, |queue| queue.size.into()),
            26 => queue.map_or(u16::MAX, |queue| queue.vector).into(),
            28 => queue.map_or(0, |queue| queue.enabled.into()),
            30 => self.select.into(),
            _ => 0,
        }
    }

    /// Writes the register at `at`.
    pub(crate) fn write(&mut self, at: u64, value: u64) -> SideEffect {
        // The driver writes each register with its width.
        match at {
            0 => self.device_select = value as u32,
            8 => self.driver_select = value as u32,
            12 if self.driver_select < 2 => {
                let shift = 32 * self.driver_select;
                self.driver_features &= !(0xffff_ffff << shift);
                self.driver_features |= (value & 0xffff_ffff) << shift;
            }
            16 => self.config_vector = value as u16,
            20 if value == 0 => return SideEffect::Reset,
            20 => {
                let starts = value as u8 & !self.status & DRIVER_OK != 0;
                self.status = value as u8;
                if starts {
                    return SideEffect::Start;
                }
            }
            22 => self.select = value as u16,
            _ => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.select)) {
                    write_queue(queue, at, value);
                }
            }
        }
        SideEffect::None
    }
}

fn write_queue(queue: &mut QueueRegisters, at: u64, value: u64) {
    match at {
        24 => queue.size = value as u16,
        26 => queue.vector = value as u16,
        28 => queue.enabled = value == 1,
        32..56 => {
            let area = &mut queue.areas[(at as usize - 32) / 8];
            let shift = at % 8 * 8;
            *area &= !(0xffff_ffff << shift);
            *area |= (value & 0xffff_ffff) << shift;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_a_queue_are_those_of_the_selected_one() {
        let mut registers = Registers::new(3);
        registers.write(22, 1);
        registers.write(24, 64);
        registers.write(32, 0x1_2345_6789);
        registers.write(36, 7);
        registers.write(28, 1);
        assert_eq!(registers.queues[1].areas[0], 0x7_2345_6789);
        assert_eq!((registers.read(24), registers.read(28)), (64, 1));
        registers.write(22, 2);
        assert_eq!((registers.read(24), registers.read(28)), (128, 0));
        registers.write(22, 3);
        assert_eq!((registers.read(24), registers.read(26)), (0, 0xffff));
    }

    #[test]
    fn status_starts_and_resets() {
        let mut registers = Registers::new(1);
        assert_eq!(registers.write(20, 3), SideEffect::None);
        assert_eq!(registers.write(20, 15), SideEffect::Start);
        assert_eq!(registers.write(20, 15), SideEffect::None);
        assert_eq!(registers.write(20, 0), SideEffect::Reset);
        // The function executes the reset.
        assert_eq!(registers.read(20), 15);
        registers.reset();
        assert_eq!(registers.read(20), 0);
    }

    #[test]
    fn features_have_two_halves() {
        let mut registers = Registers::new(1);
        assert_eq!(registers.read(4), 1 << VIRTIO_RING_F_INDIRECT_DESC);
        registers.write(0, 1);
        assert_eq!(registers.read(4), 1);
        registers.write(0, 2);
        assert_eq!(registers.read(4), 0);
        registers.overrides.insert(4, 9);
        assert_eq!(registers.read(4), 9);
    }
}
