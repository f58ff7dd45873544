// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The registers of the common configuration (VIRTIO 1.3, 4.1.4.3).

use crate::layout::COMMON;
use crate::{Description, Queue, description::VERSION_1};

/// Offsets of the registers.
mod register {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_VECTOR: usize = 16;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const STATUS: usize = 20;
    pub(super) const GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESCRIPTORS: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
    pub(super) const END: usize = 56;
}

/// The offset of `config_generation`.
pub(crate) const GENERATION: u64 = register::GENERATION as u64;

/// Bits of the device status (VIRTIO 1.3, 2.1).
mod status {
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
    /// The bits that the driver sets: `ACKNOWLEDGE`, `DRIVER`, those above, and `FAILED`.
    pub(super) const DRIVER_BITS: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// `VIRTIO_MSI_NO_VECTOR`.
const NO_VECTOR: u16 = 0xffff;

/// The registers of a queue.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    size: u16,
    vector: Option<u16>,
    enabled: bool,
    /// Whether the queue was returned by [`Common::take_unstarted`].
    started: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    fn new(size: u16) -> Self {
        Self {
            size,
            vector: None,
            enabled: false,
            started: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }
}

/// What a write requires of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The driver has written 0 to the status, which is as before.
    Reset,
    /// The driver has written the status, and `DRIVER_OK` is set.
    DriverOk,
    /// The driver has enabled a queue, or enabled one again.
    QueueEnabled,
    /// The vector of a queue has changed.
    QueueVector {
        /// Index of the queue.
        queue: u16,
        /// The new vector.
        vector: Option<u16>,
    },
    /// The vector of configuration changes has changed.
    ConfigVector {
        /// The new vector.
        vector: Option<u16>,
    },
}

/// The registers.
///
/// # Invariants
///
/// - `queues` has at most `u16::MAX` elements.
/// - The size of a queue is a power of two and at most `max_size`.
/// - Vectors are less than `vectors`.
/// - `DRIVER_OK` is set only if `FEATURES_OK` is.
/// - If `FEATURES_OK` is set, `driver_features` is a subset of `offered` with
///   `VIRTIO_F_VERSION_1`.
#[derive(Debug)]
pub(crate) struct Common {
    offered: u64,
    vectors: u16,
    max_size: u16,
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: Option<u16>,
    status: u8,
    select: u16,
    queues: Vec<QueueRegisters>,
}

impl Common {
    pub(crate) fn new(description: &Description) -> Self {
        let max_size = description.queue_size;
        Self {
            offered: description.features,
            vectors: description.interrupts.vectors(),
            max_size,
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: None,
            status: 0,
            select: 0,
            queues: vec![QueueRegisters::new(max_size); description.queues.into()],
        }
    }

    /// Resets all registers but the status.
    pub(crate) fn reset(&mut self) {
        self.device_select = 0;
        self.driver_select = 0;
        self.driver_features = 0;
        self.config_vector = None;
        self.select = 0;
        self.queues.fill(QueueRegisters::new(self.max_size));
    }

    /// The status becomes 0. The other registers are to be reset before.
    pub(crate) fn clear_status(&mut self) {
        self.status = 0;
    }

    /// The device status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// Whether the driver has set `DRIVER_OK`.
    pub(crate) fn is_driver_ok(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// Sets `DEVICE_NEEDS_RESET` and returns whether it was clear.
    pub(crate) fn set_needs_reset(&mut self) -> bool {
        let was_clear = self.status & status::NEEDS_RESET == 0;
        self.status |= status::NEEDS_RESET;
        was_clear
    }

    /// The features that the driver has selected.
    pub(crate) fn features(&self) -> u64 {
        self.driver_features
    }

    /// The enabled queues that were not returned before, in ascending order.
    pub(crate) fn take_unstarted(&mut self) -> Vec<Queue> {
        let unstarted = (0..).zip(&mut self.queues);
        unstarted
            .filter(|(_, queue)| queue.enabled && !queue.started)
            .map(|(index, queue)| {
                queue.started = true;
                Queue {
                    index,
                    size: queue.size,
                    descriptors: queue.descriptors,
                    driver: queue.driver,
                    device: queue.device,
                }
            })
            .collect()
    }

    /// Whether the queue exists and was returned by [`Common::take_unstarted`].
    pub(crate) fn is_started(&self, queue: u16) -> bool {
        self.queues
            .get(usize::from(queue))
            .is_some_and(|queue| queue.started)
    }

    /// Whether configuration changes have a vector.
    pub(crate) fn has_config_vector(&self) -> bool {
        self.config_vector.is_some()
    }

    /// The indices of the queues that have a vector.
    pub(crate) fn queues_with_vector(&self) -> impl Iterator<Item = u16> {
        let queues = (0..).zip(&self.queues);
        queues.filter_map(|(index, queue)| queue.vector.map(|_| index))
    }

    /// The bytes of all registers, with this generation of the device configuration.
    pub(crate) fn image(&self, generation: u8) -> [u8; register::END] {
        let mut image = [0; register::END];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let word = |value: Option<u16>| value.unwrap_or(NO_VECTOR).to_le_bytes();

        put(
            register::DEVICE_FEATURE_SELECT,
            &self.device_select.to_le_bytes(),
        );
        put(
            register::DEVICE_FEATURE,
            &half(self.offered, self.device_select).to_le_bytes(),
        );
        put(
            register::DRIVER_FEATURE_SELECT,
            &self.driver_select.to_le_bytes(),
        );
        put(
            register::DRIVER_FEATURE,
            &half(self.driver_features, self.driver_select).to_le_bytes(),
        );
        put(register::CONFIG_VECTOR, &word(self.config_vector));
        // CAST: By the type's invariant.
        put(
            register::NUM_QUEUES,
            &(self.queues.len() as u16).to_le_bytes(),
        );
        put(register::STATUS, &[self.status, generation]);
        put(register::QUEUE_SELECT, &self.select.to_le_bytes());
        let Some(queue) = self.queues.get(usize::from(self.select)) else {
            // A queue that does not exist has size 0 (4.1.4.3.1).
            put(register::QUEUE_VECTOR, &word(None));
            return image;
        };
        put(register::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(register::QUEUE_VECTOR, &word(queue.vector));
        put(
            register::QUEUE_ENABLE,
            &u16::from(queue.enabled).to_le_bytes(),
        );
        put(register::QUEUE_NOTIFY_OFF, &self.select.to_le_bytes());
        put(
            register::QUEUE_DESCRIPTORS,
            &queue.descriptors.to_le_bytes(),
        );
        put(register::QUEUE_DRIVER, &queue.driver.to_le_bytes());
        put(register::QUEUE_DEVICE, &queue.device.to_le_bytes());
        image
    }

    /// Writes at `offset`. Each register takes writes of its width, one of 64 bits also writes of
    /// its halves (4.1.3.1); others are ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Ok(offset) = usize::try_from(offset) else {
            return Effect::None;
        };
        match *data {
            [value] if offset == register::STATUS => return self.write_status(value),
            [low, high] => return self.write16(offset, u16::from_le_bytes([low, high])),
            _ => {}
        }
        match <[u8; 4]>::try_from(data).map(u32::from_le_bytes) {
            Ok(value) if offset == register::DEVICE_FEATURE_SELECT => self.device_select = value,
            Ok(value) if offset == register::DRIVER_FEATURE_SELECT => self.driver_select = value,
            Ok(value) if offset == register::DRIVER_FEATURE => self.write_features(value),
            _ => self.write_address(offset, data),
        }
        Effect::None
    }

    /// A bit that the driver has set stays set until a reset (2.1.1).
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut new = self.status | (value & status::DRIVER_BITS);
        let is_subset = self.driver_features & !self.offered == 0;
        // Accepted features do not change, so this keeps the bit once it is set.
        if !(is_subset && self.driver_features & VERSION_1 != 0) {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        // INVARIANT: Both bits were cleared above where they must not be set.
        self.status = new;
        if self.is_driver_ok() {
            Effect::DriverOk
        } else {
            Effect::None
        }
    }

    /// The features are fixed once the device has accepted them.
    fn write_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 || self.driver_select > 1 {
            return;
        }
        let shift = 32 * self.driver_select;
        self.driver_features &= !(0xffff_ffff << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn write16(&mut self, offset: usize, value: u16) -> Effect {
        let vector = (value < self.vectors).then_some(value);
        match offset {
            register::CONFIG_VECTOR if self.config_vector != vector => {
                self.config_vector = vector;
                return Effect::ConfigVector { vector };
            }
            register::QUEUE_SELECT => {
                self.select = value;
                return Effect::None;
            }
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.select)) else {
            return Effect::None;
        };
        match offset {
            register::QUEUE_SIZE
                if !queue.enabled && value.is_power_of_two() && value <= self.max_size =>
            {
                queue.size = value;
            }
            register::QUEUE_VECTOR if queue.vector != vector => {
                queue.vector = vector;
                return Effect::QueueVector {
                    queue: self.select,
                    vector,
                };
            }
            register::QUEUE_ENABLE if value == 1 => {
                queue.enabled = true;
                return Effect::QueueEnabled;
            }
            _ => {}
        }
        Effect::None
    }

    /// Writes an address of the selected queue, or a half of one.
    fn write_address(&mut self, offset: usize, data: &[u8]) {
        let Some(queue) = self.queues.get_mut(usize::from(self.select)) else {
            return;
        };
        if queue.enabled {
            return;
        }
        let address = match offset & !7 {
            register::QUEUE_DESCRIPTORS => &mut queue.descriptors,
            register::QUEUE_DRIVER => &mut queue.driver,
            register::QUEUE_DEVICE => &mut queue.device,
            _ => return,
        };
        let at = offset % 8;
        if matches!((at, data.len()), (0, 8) | (0 | 4, 4)) {
            let mut bytes = address.to_le_bytes();
            bytes[at..at + data.len()].copy_from_slice(data);
            *address = u64::from_le_bytes(bytes);
        }
    }
}

/// The half of `features` that `select` selects; 0 beyond the bits there are.
fn half(features: u64, select: u32) -> u32 {
    match select {
        // CAST: The halves.
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

const _: () = assert!(register::END as u64 == COMMON.bytes);
