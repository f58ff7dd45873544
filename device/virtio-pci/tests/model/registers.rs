// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The values of registers that a driver may rely on, by VIRTIO 1.3, 4.1.4.3: written from the
//! text of the standard and the documentation of the crate, field by field.

use std::collections::BTreeMap;

use ringbar_virtio_pci::{Description, Queue};

use crate::support::*;

/// The fields of a queue, by their registers.
pub type Fields = BTreeMap<Register, u64>;

/// The registers of a function.
#[derive(Debug)]
pub struct Registers {
    description: Description,
    vectors: u64,
    /// Fields that are not of a queue. Without an entry, 0.
    fields: Fields,
    /// Fields by queue.
    queues: Vec<Fields>,
    pub features: u64,
    pub is_resetting: bool,
}

impl Registers {
    pub fn new(description: Description, vectors: u64) -> Self {
        let mut registers = Self {
            description,
            vectors,
            fields: Fields::new(),
            queues: Vec::new(),
            features: 0,
            is_resetting: false,
        };
        registers.reset_all();
        registers
    }

    pub fn status(&self) -> u64 {
        self.fields[&STATUS]
    }

    pub fn has_status(&self, bits: u64) -> bool {
        self.status() & bits == bits
    }

    fn selected(&self) -> Option<&Fields> {
        self.queues.get(self.fields[&QUEUE_SELECT] as usize)
    }

    fn is_of_queue(register: Register) -> bool {
        register.0 >= QUEUE_SIZE.0
    }

    /// The value that the driver reads; `None` if it must not rely on any.
    pub fn expected(&self, register: Register) -> Option<u64> {
        if self.is_resetting && register != STATUS {
            return None;
        }
        let half = |features: u64, select: Register| match self.fields[&select] {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        Some(match register {
            GENERATION => return None,
            DEVICE_FEATURE => half(self.description.features, DEVICE_FEATURE_SELECT),
            DRIVER_FEATURE => half(self.features, DRIVER_FEATURE_SELECT),
            NUM_QUEUES => self.description.queues.into(),
            _ if Self::is_of_queue(register) => match self.selected() {
                Some(queue) => queue[&register],
                None if register == QUEUE_SIZE => 0,
                None => return None,
            },
            _ => self.fields[&register],
        })
    }

    /// The driver writes a register, of its width. Returns whether it is a reset.
    pub fn write(&mut self, register: Register, value: u64) -> bool {
        if self.is_resetting {
            return false;
        }
        let vector = if value < self.vectors {
            value
        } else {
            NO_VECTOR
        };
        match register {
            STATUS if value == 0 => return true,
            STATUS => self.write_status(value),
            DEVICE_FEATURE_SELECT | DRIVER_FEATURE_SELECT | QUEUE_SELECT => {
                self.fields.insert(register, value);
            }
            DRIVER_FEATURE if !self.has_status(FEATURES_OK) => {
                let old = self.features;
                match self.fields[&DRIVER_FEATURE_SELECT] {
                    0 => self.features = old >> 32 << 32 | value,
                    1 => self.features = old & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            CONFIG_VECTOR => {
                self.fields.insert(register, vector);
            }
            _ if Self::is_of_queue(register) => self.write_queue(register, value, vector),
            _ => {}
        }
        false
    }

    fn write_status(&mut self, value: u64) {
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, FAILED] {
            let offered = self.description.features;
            let allowed = match bit {
                FEATURES_OK => {
                    self.features & VERSION_1 != 0 && self.features & offered == self.features
                }
                DRIVER_OK => self.has_status(FEATURES_OK),
                _ => true,
            };
            if value & bit != 0 && allowed {
                *self.fields.get_mut(&STATUS).unwrap() |= bit;
            }
        }
    }

    fn write_queue(&mut self, register: Register, value: u64, vector: u64) {
        let select = self.fields[&QUEUE_SELECT] as usize;
        let max = u64::from(self.description.queue_size);
        let Some(queue) = self.queues.get_mut(select) else {
            return;
        };
        let is_enabled = queue[&QUEUE_ENABLE] == 1;
        let value = match register {
            QUEUE_VECTOR => vector,
            _ if is_enabled => return,
            QUEUE_SIZE if value.count_ones() != 1 || value > max => return,
            QUEUE_ENABLE if value != 1 => return,
            QUEUE_NOTIFY_OFF => return,
            _ => value,
        };
        queue.insert(register, value);
    }

    /// The driver writes a half of an address: the lower one at `half` 0.
    pub fn write_half(&mut self, register: Register, half: u64, value: u64) {
        if let Some(old) = self.selected().map(|queue| queue[&register]) {
            let value = match half {
                0 => old >> 32 << 32 | value,
                _ => old & 0xffff_ffff | value << 32,
            };
            self.write(register, value);
        }
    }

    pub fn set_needs_reset(&mut self) {
        if self.has_status(DRIVER_OK) && !self.is_resetting {
            *self.fields.get_mut(&STATUS).unwrap() |= NEEDS_RESET;
        }
    }

    pub fn reset_all(&mut self) {
        let of = |pairs: &[(Register, u64)]| pairs.iter().copied().collect::<Fields>();
        self.is_resetting = false;
        self.features = 0;
        self.fields = of(&[
            (DEVICE_FEATURE_SELECT, 0),
            (DRIVER_FEATURE_SELECT, 0),
            (CONFIG_VECTOR, NO_VECTOR),
            (STATUS, 0),
            (QUEUE_SELECT, 0),
        ]);
        self.queues = (0..self.description.queues)
            .map(|index| {
                of(&[
                    (QUEUE_SIZE, self.description.queue_size.into()),
                    (QUEUE_VECTOR, NO_VECTOR),
                    (QUEUE_ENABLE, 0),
                    (QUEUE_NOTIFY_OFF, index.into()),
                    (QUEUE_DESCRIPTORS, 0),
                    (QUEUE_DRIVER, 0),
                    (QUEUE_DEVICE, 0),
                ])
            })
            .collect();
    }

    /// The enabled queues.
    pub fn enabled(&self) -> BTreeMap<u16, Queue> {
        let enabled = (0..)
            .zip(&self.queues)
            .filter(|(_, q)| q[&QUEUE_ENABLE] == 1);
        enabled
            .map(|(index, queue)| {
                let queue = Queue {
                    index,
                    size: queue[&QUEUE_SIZE] as u16,
                    descriptors: queue[&QUEUE_DESCRIPTORS],
                    driver: queue[&QUEUE_DRIVER],
                    device: queue[&QUEUE_DEVICE],
                };
                (index, queue)
            })
            .collect()
    }

    /// The vectors that are set: of queues, and of the configuration as `None`.
    pub fn vectors(&self) -> BTreeMap<Option<u16>, u16> {
        let queues = (0..).zip(&self.queues);
        let queues = queues.map(|(index, queue)| (Some(index), queue[&QUEUE_VECTOR]));
        let config = (None, self.fields[&CONFIG_VECTOR]);
        queues
            .chain([config])
            .filter(|&(_, vector)| vector != NO_VECTOR)
            .map(|(of, vector)| (of, vector as u16))
            .collect()
    }
}
