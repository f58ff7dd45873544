// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The registers of a virtio-pci function.
//!
//! The model is a table of the registers of the common configuration (VIRTIO 1.3, 4.1.4.3) with
//! what a write of the whole register does. After each step all of them are read and compared.
//! Accesses of other widths must not change a register, except for halves of 64 bits.

use ringbar_virtio_pci::{Description, Function, REGISTER_BAR, Space};

use crate::functions::{Device, Effects, VERSION_1, description, vectors};
use crate::input::Input;

const BAR: Space = Space::Bar(REGISTER_BAR);
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const COMMAND: u64 = 4;
const BUS_MASTER: u16 = 1 << 2;

/// Offset and width of the registers, in bytes.
const REGISTERS: [(u64, usize); 16] = [
    (0, 4),
    (4, 4),
    (8, 4),
    (12, 4),
    (16, 2),
    (18, 2),
    (20, 1),
    (21, 1),
    (22, 2),
    (24, 2),
    (26, 2),
    (28, 2),
    (30, 2),
    (32, 8),
    (40, 8),
    (48, 8),
];
const STATUS: u64 = 20;
const GENERATION: u64 = 21;

const ACKNOWLEDGED: u8 = 1 | 2 | 128;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

#[derive(Clone, Debug)]
struct Queue {
    size: u16,
    vector: u16,
    enabled: bool,
    addresses: [u64; 3],
}

/// The registers of the common configuration.
#[derive(Debug)]
struct Model {
    description: Description,
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    select: u16,
    queues: Vec<Queue>,
    resetting: bool,
    bus_master: bool,
}

impl Model {
    fn new(description: Description) -> Self {
        let queue = Queue {
            size: description.queue_size,
            vector: 0xffff,
            enabled: false,
            addresses: [0; 3],
        };
        Self {
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: 0xffff,
            status: 0,
            select: 0,
            queues: vec![queue; description.queues.into()],
            description,
            resetting: false,
            bus_master: false,
        }
    }

    /// The value of a register, None for one that the model does not know.
    fn read(&self, offset: u64) -> Option<u64> {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let queue = self.queues.get(usize::from(self.select));
        Some(match offset {
            0 => self.device_select.into(),
            4 => half(self.description.features, self.device_select),
            8 => self.driver_select.into(),
            12 => half(self.driver_features, self.driver_select),
            16 => self.config_vector.into(),
            18 => self.description.queues.into(),
            STATUS => self.status.into(),
            22 => self.select.into(),
            24 => queue.map_or(0, |queue| queue.size).into(),
            26 => queue.map_or(0xffff, |queue| queue.vector).into(),
            28 => queue.is_some_and(|queue| queue.enabled).into(),
            30 => queue.map_or(0, |_| self.select).into(),
            32 | 40 | 48 => queue.map_or(0, |queue| queue.addresses[(offset - 32) as usize / 8]),
            _ => return None,
        })
    }

    /// A write of `data`, of any width.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if self.resetting {
            return;
        }
        let is_register = REGISTERS.contains(&(offset, data.len()));
        let is_half = data.len() == 4 && (32..56).contains(&offset) && offset.is_multiple_of(4);
        if !is_register && !is_half {
            return;
        }
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        if is_half {
            let queue = self.queues.get_mut(usize::from(self.select));
            if let Some(queue) = queue.filter(|queue| !queue.enabled) {
                let address = &mut queue.addresses[(offset - 32) as usize / 8];
                let shift = 8 * (offset % 8);
                *address = *address & !(0xffff_ffff << shift) | value << shift;
            }
            return;
        }
        let word = value as u16;
        let known = word < vectors(&self.description);
        let vector = if known { word } else { 0xffff };
        let max_size = self.description.queue_size;
        match offset {
            0 => self.device_select = value as u32,
            8 => self.driver_select = value as u32,
            12 if self.status & FEATURES_OK == 0 => match self.driver_select {
                0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
                1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
                _ => {}
            },
            16 => self.config_vector = vector,
            STATUS => self.write_status(value as u8),
            22 => self.select = word,
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.select)) else {
            return;
        };
        match offset {
            24 if !queue.enabled && word.is_power_of_two() && word <= max_size => queue.size = word,
            26 => queue.vector = vector,
            28 if word == 1 => queue.enabled = true,
            32 | 40 | 48 if !queue.enabled => queue.addresses[(offset - 32) as usize / 8] = value,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        self.status |= value & ACKNOWLEDGED;
        let features = self.driver_features;
        if value & FEATURES_OK != 0
            && features & !self.description.features == 0
            && features & VERSION_1 != 0
        {
            self.status |= FEATURES_OK;
        }
        if value & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
        }
    }

    /// All registers but the status, which reads 0 only when the device has stopped.
    fn reset(&mut self) {
        if self.resetting {
            return;
        }
        let (status, bus_master) = (self.status, self.bus_master);
        *self = Self::new(self.description.clone());
        (self.status, self.bus_master) = (status, bus_master);
        self.resetting = status != 0;
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let description = description(input.u8());
    let mut run = Run {
        function: Function::new(description.clone()).unwrap(),
        effects: Effects::new(&description),
        model: Model::new(description),
        device: Device::default(),
    };
    while !input.is_empty() {
        run.step(&mut input);
        run.compare();
    }
    run.compare_queues();
}

struct Run {
    function: Function,
    effects: Effects,
    model: Model,
    device: Device,
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            // Small values of whole registers: what drivers write.
            0..=5 => {
                let (offset, width) = input.choose(&REGISTERS);
                let value = u64::from(input.u8()).to_le_bytes();
                self.write(offset, &value[..width]);
            }
            6 => {
                let (offset, width) = input.choose(&REGISTERS);
                let value = input.u64().to_le_bytes();
                self.write(offset, &value[..width]);
            }
            7 => {
                // Any access to the BAR, also behind its end.
                let offset = u64::from(input.u16() % 0x4010);
                let count = input.u8() % 17;
                let bytes = input.bytes(count.into()).to_vec();
                self.write(offset, &bytes);
            }
            8 => {
                let offset = u64::from(input.u16() % 0x4010);
                let count = usize::from(input.u8());
                self.read(offset, count);
            }
            9 => {
                let queue = u64::from(input.u8()) % u64::from(self.model.description.queues + 1);
                self.write(NOTIFY + 4 * queue, &[0, 0]);
            }
            10 => self.set_command(u16::from(input.u8())),
            11 => {
                let actions = self.function.reset();
                self.effects.apply(&actions);
                self.model.reset();
                self.model.bus_master = false;
            }
            12 => {
                let could = self.model.status & DRIVER_OK != 0
                    && self.model.status & NEEDS_RESET == 0
                    && !self.model.resetting;
                assert_eq!(self.function.set_needs_reset(), could);
                if could {
                    self.model.status |= NEEDS_RESET;
                }
            }
            13 => {
                self.device.interrupt_status.set(input.u8() & 3);
                *self.device.config.borrow_mut() = input.bytes(4).to_vec();
            }
            _ => {
                self.effects.reset_done(&mut self.function);
                if self.model.resetting {
                    self.model.resetting = false;
                    self.model.status = 0;
                }
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let result = self.function.write(BAR, offset, data);
        let possible = offset + data.len() as u64 <= self.function.size(BAR).unwrap();
        assert_eq!(result.is_ok(), possible);
        if let Ok(actions) = result {
            self.effects.apply(&actions);
            self.model.write(offset, data);
        }
    }

    /// The bits of the low byte of the command register.
    fn set_command(&mut self, command: u16) {
        let data = command.to_le_bytes();
        let actions = self.function.write(Space::Config, COMMAND, &data).unwrap();
        self.effects.apply(&actions);
        self.model.bus_master = command & BUS_MASTER != 0;
    }

    /// A long read has the same bytes as short ones.
    fn read(&mut self, offset: u64, count: usize) {
        let mut data = vec![0xee; count];
        self.device.interrupt_status.set(1);
        let result = self.function.read(BAR, offset, &mut data, &self.device);
        let possible = offset + count as u64 <= self.function.size(BAR).unwrap();
        assert_eq!(result.is_ok(), possible);
        if !possible {
            assert!(data.iter().all(|byte| *byte == 0xee));
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            self.device.interrupt_status.set(1);
            let mut single = [0];
            self.function
                .read(BAR, at, &mut single, &self.device)
                .unwrap();
            // A read of the device configuration may change the generation.
            if at != GENERATION {
                assert_eq!(byte, single[0], "{at:#x}");
            }
        }
    }

    fn compare(&mut self) {
        for (offset, width) in REGISTERS {
            let mut data = [0; 8];
            let register = &mut data[..width];
            self.function
                .read(BAR, offset, register, &self.device)
                .unwrap();
            if let Some(expected) = self.model.read(offset) {
                assert_eq!(u64::from_le_bytes(data), expected, "register {offset}");
            }
        }
        let mut config = vec![0; self.model.description.config_bytes as usize];
        self.function
            .read(BAR, CONFIG, &mut config, &self.device)
            .unwrap();
        let mut expected = self.device.config.borrow().clone();
        expected.resize(config.len(), 0);
        assert_eq!(config, expected);

        assert_eq!(self.function.is_resetting(), self.model.resetting);
        assert_eq!(self.effects.resetting, self.model.resetting);
        self.compare_effects();
    }

    /// The device is started as the registers say.
    fn compare_effects(&self) {
        let Self { effects, model, .. } = self;
        let vector = |vector: Option<u16>| vector.unwrap_or(0xffff);
        assert_eq!(vector(effects.config_vector), model.config_vector);
        if let Some(queue) = model.queues.get(usize::from(model.select)) {
            let effect = effects.queue_vectors[usize::from(model.select)];
            assert_eq!(vector(effect), queue.vector);
        }
        let Some((features, queues)) = &effects.started else {
            let wants = model.status & DRIVER_OK != 0 && model.bus_master && !model.resetting;
            assert!(!wants, "not started");
            return;
        };
        assert_eq!(*features, model.driver_features);
        assert_eq!(effects.paused, !model.bus_master);
        for queue in queues {
            let registers = &model.queues[usize::from(queue.index)];
            assert!(registers.enabled);
            assert_eq!(queue.size, registers.size);
            let addresses = [queue.descriptors, queue.driver, queue.device];
            assert_eq!(addresses, registers.addresses);
        }
    }

    /// The same for all queues, which takes longer.
    fn compare_queues(&self) {
        let Self { effects, model, .. } = self;
        for (effect, queue) in effects.queue_vectors.iter().zip(&model.queues) {
            assert_eq!(effect.unwrap_or(0xffff), queue.vector);
        }
        if let (Some((_, queues)), false) = (&effects.started, effects.paused) {
            let enabled = model.queues.iter().filter(|queue| queue.enabled).count();
            assert_eq!(queues.len(), enabled);
        }
    }
}
