// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver's view of a function: registers by name, and the surroundings of the function.

// Each test program uses a part.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};

use ringbar_virtio_pci::{
    Action, Description, Function, Identity, Interrupts, REGISTER_BAR, Space, Surroundings,
};

pub const VERSION_1: u64 = 1 << 32;
/// Features that the function under test offers.
pub const FEATURES: u64 = VERSION_1 | 1 << 33 | 1 << 28 | 1 << 29;

/// Bits of the device status.
pub const ACKNOWLEDGE: u64 = 1;
pub const DRIVER: u64 = 2;
pub const DRIVER_OK: u64 = 4;
pub const FEATURES_OK: u64 = 8;
pub const NEEDS_RESET: u64 = 64;
pub const FAILED: u64 = 128;

pub const NO_VECTOR: u64 = 0xffff;

/// Registers of the common configuration: offset and width, as in the table of VIRTIO 1.3,
/// 4.1.4.3.
pub type Register = (u64, usize);
pub const DEVICE_FEATURE_SELECT: Register = (0, 4);
pub const DEVICE_FEATURE: Register = (4, 4);
pub const DRIVER_FEATURE_SELECT: Register = (8, 4);
pub const DRIVER_FEATURE: Register = (12, 4);
pub const CONFIG_VECTOR: Register = (16, 2);
pub const NUM_QUEUES: Register = (18, 2);
pub const STATUS: Register = (20, 1);
pub const GENERATION: Register = (21, 1);
pub const QUEUE_SELECT: Register = (22, 2);
pub const QUEUE_SIZE: Register = (24, 2);
pub const QUEUE_VECTOR: Register = (26, 2);
pub const QUEUE_ENABLE: Register = (28, 2);
pub const QUEUE_NOTIFY_OFF: Register = (30, 2);
pub const QUEUE_DESCRIPTORS: Register = (32, 8);
pub const QUEUE_DRIVER: Register = (40, 8);
pub const QUEUE_DEVICE: Register = (48, 8);

pub const INTERRUPT_STATUS: u64 = 0x1000;
pub const DEVICE_CONFIG: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;

/// The command register and its bits.
pub const COMMAND: u64 = 4;
pub const BUS_MASTER: u64 = 4;
pub const INTX_DISABLE: u64 = 1 << 10;

/// A function with 3 queues of up to 64 descriptors, 8 bytes of device configuration and a shared
/// region.
pub fn description(interrupts: Interrupts) -> Description {
    Description {
        identity: Identity {
            vendor: 0x1af4,
            device: 0x10f0,
            subsystem_vendor: 0x1af5,
            subsystem: 0x10f1,
            revision: 2,
            class: 0x07_80_03,
        },
        interrupts,
        features: FEATURES,
        queues: 3,
        queue_size: 64,
        config_bytes: 8,
        shared_region: Some(0x20_0000),
    }
}

/// The device behind the function.
#[derive(Debug, Default)]
pub struct Device {
    pub config: RefCell<Vec<u8>>,
    pub interrupt_status: Cell<u8>,
}

impl Surroundings for Device {
    fn device_config(&self) -> Vec<u8> {
        self.config.borrow().clone()
    }

    fn take_interrupt_status(&self) -> u8 {
        self.interrupt_status.take()
    }
}

/// A function and its device, with the accesses of a driver.
#[derive(Debug)]
pub struct Machine {
    pub function: Function,
    pub device: Device,
}

impl Machine {
    pub fn new(interrupts: Interrupts) -> Self {
        Self::of(description(interrupts))
    }

    pub fn of(description: Description) -> Self {
        Self {
            function: Function::new(description).unwrap(),
            device: Device::default(),
        }
    }

    pub fn read(&mut self, space: Space, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function
            .read(space, offset, &mut bytes[..width], &self.device)
            .unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn write(&mut self, space: Space, offset: u64, width: usize, value: u64) -> Vec<Action> {
        self.function
            .write(space, offset, &value.to_le_bytes()[..width])
            .unwrap()
            .into_iter()
            .collect()
    }

    /// Reads a register of the common configuration.
    pub fn get(&mut self, (offset, width): Register) -> u64 {
        self.read(Space::Bar(REGISTER_BAR), offset, width)
    }

    /// Writes a register of the common configuration.
    pub fn set(&mut self, (offset, width): Register, value: u64) -> Vec<Action> {
        self.write(Space::Bar(REGISTER_BAR), offset, width, value)
    }

    /// Writes a register without effects.
    #[track_caller]
    pub fn quietly_set(&mut self, register: Register, value: u64) {
        assert_eq!(self.set(register, value), [], "{register:?} = {value:#x}");
    }

    pub fn config(&mut self, offset: u64, width: usize) -> u64 {
        self.read(Space::Config, offset, width)
    }

    pub fn set_config(&mut self, offset: u64, width: usize, value: u64) -> Vec<Action> {
        self.write(Space::Config, offset, width, value)
    }

    pub fn notify(&mut self, queue: u64) -> Vec<Action> {
        self.write(Space::Bar(REGISTER_BAR), NOTIFY + 4 * queue, 2, queue)
    }

    /// The capabilities, in the order of their list: offset and id.
    pub fn capabilities(&mut self) -> Vec<(u64, u64)> {
        assert_ne!(self.config(6, 2) & 0x10, 0, "no list of capabilities");
        let mut found = Vec::new();
        let mut at = self.config(0x34, 1);
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4), "capability at {at:#x}");
            assert!(found.len() < 48, "the list of capabilities loops");
            found.push((at, self.config(at, 1)));
            at = self.config(at + 1, 1);
        }
        found
    }

    /// The offset of the VIRTIO capability of a type.
    pub fn virtio_capability(&mut self, kind: u64) -> Option<u64> {
        let found = self.capabilities();
        found
            .into_iter()
            .find(|&(at, id)| id == 9 && self.config(at + 3, 1) == kind)
            .map(|(at, _)| at)
    }

    /// Writes the device control register with the bit that resets the function.
    pub fn function_level_reset(&mut self) -> Vec<Action> {
        let (at, _) = self
            .capabilities()
            .into_iter()
            .find(|c| c.1 == 0x10)
            .unwrap();
        let control = self.config(at + 8, 2);
        self.set_config(at + 8, 2, control | 0x8000)
    }

    pub fn select_features(&mut self, features: u64) {
        for half in 0..2 {
            self.quietly_set(DRIVER_FEATURE_SELECT, half);
            self.quietly_set(DRIVER_FEATURE, features >> (32 * half) & 0xffff_ffff);
        }
    }

    /// Negotiates features, as VIRTIO 1.3, 3.1.1 describes it.
    #[track_caller]
    pub fn negotiate(&mut self, features: u64) {
        self.quietly_set(STATUS, ACKNOWLEDGE);
        self.quietly_set(STATUS, ACKNOWLEDGE | DRIVER);
        self.select_features(features);
        self.quietly_set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_ne!(self.get(STATUS) & FEATURES_OK, 0, "features are rejected");
    }

    /// Sets up a queue, with addresses of its own, and enables it.
    pub fn enable_queue(&mut self, index: u16, size: u64) -> Vec<Action> {
        let base = 0x1_0000_0000 * (u64::from(index) + 1);
        self.quietly_set(QUEUE_SELECT, index.into());
        self.quietly_set(QUEUE_SIZE, size);
        self.quietly_set(QUEUE_DESCRIPTORS, base);
        self.quietly_set(QUEUE_DRIVER, base + 0x1000);
        self.quietly_set(QUEUE_DEVICE, base + 0x2000);
        self.set(QUEUE_ENABLE, 1)
    }

    pub fn set_bus_mastering(&mut self, on: bool) -> Vec<Action> {
        let command = self.config(COMMAND, 2) & !BUS_MASTER;
        self.set_config(COMMAND, 2, command | if on { BUS_MASTER } else { 0 })
    }

    pub fn driver_ok(&mut self) -> Vec<Action> {
        let status = self.get(STATUS);
        self.set(STATUS, status | DRIVER_OK)
    }

    /// Starts the device with queues 0 and 2, of sizes 64 and 16.
    #[track_caller]
    pub fn start(&mut self) -> Vec<Action> {
        assert_eq!(self.set_bus_mastering(true), []);
        self.negotiate(VERSION_1);
        assert_eq!(self.enable_queue(0, 64), []);
        assert_eq!(self.enable_queue(2, 16), []);
        self.driver_ok()
    }
}
