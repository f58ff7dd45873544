// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random accesses to a function, compared with a reference model.
//!
//! The model knows the values of registers that a driver may rely on ([`registers`]) and carries
//! out the actions ([`device`]). After each access the device is to be in the state that the
//! registers require. The model does not predict the actions that lead there.

mod device;
mod registers;
mod step;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;
use ringbar_virtio_pci::{
    Action, Description, Function, Interrupts, REGISTER_BAR, Space, Surroundings,
};

use device::{Consumer, Limits};
use registers::Registers;
use step::{Access, Step, access, step};
use support::*;

fn interrupts() -> impl Strategy<Value = (Interrupts, u16)> {
    select(vec![
        (Interrupts::MsiX { vectors: 4 }, 4),
        (Interrupts::MsiX { vectors: 1 }, 1),
        (Interrupts::Msi { vectors: 2 }, 2),
        (Interrupts::IntxOnly, 0),
    ])
}

/// A function, the model of it, and the device.
struct Comparison {
    machine: Machine,
    window: u64,
    model: Registers,
    command: u64,
    consumer: Consumer,
    limits: Limits,
}

impl Comparison {
    fn new(interrupts: Interrupts, vectors: u16) -> Self {
        let description = description(interrupts);
        let mut machine = Machine::of(description.clone());
        Self {
            window: machine.virtio_capability(5).unwrap(),
            machine,
            limits: Limits {
                queues: description.queues,
                queue_size: description.queue_size,
                vectors,
            },
            model: Registers::new(description, vectors.into()),
            command: 0,
            consumer: Consumer::default(),
        }
    }

    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.consumer.apply(action, self.limits);
        }
    }

    fn aim(&mut self, (offset, width): Register) {
        assert_eq!(self.machine.set_config(self.window + 4, 1, 2), []);
        assert_eq!(self.machine.set_config(self.window + 8, 4, offset), []);
        let width = width as u64;
        assert_eq!(self.machine.set_config(self.window + 12, 4, width), []);
    }

    fn write(&mut self, register: Register, value: u64, window: bool) {
        let is_reset = self.model.write(register, value);
        let actions = if window {
            self.aim(register);
            self.machine.set_config(self.window + 16, register.1, value)
        } else {
            self.machine.set(register, value)
        };
        self.apply(actions);
        if is_reset {
            self.model_reset();
        }
    }

    /// A reset of the device: it lasts until the device ends it, but for an untouched one.
    fn model_reset(&mut self) {
        if self.model.status() == 0 {
            self.model.reset_all();
        } else {
            self.model.is_resetting = true;
        }
    }

    fn read(&mut self, register: Register, window: bool) -> u64 {
        if window {
            self.aim(register);
            self.machine.config(self.window + 16, register.1)
        } else {
            self.machine.get(register)
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write {
                register,
                value,
                window,
            } => self.write(register, value, window),
            Step::WriteHalf {
                register,
                half,
                value,
            } => {
                self.model.write_half(register, half, value);
                let actions = self.machine.set((register.0 + 4 * half, 4), value);
                assert_eq!(actions, []);
            }
            Step::Read { register, window } => {
                let value = self.read(register, window);
                if let Some(expected) = self.model.expected(register) {
                    assert_eq!(value, expected, "{register:?}");
                }
            }
            Step::Negotiate { features } => {
                for half in 0..2 {
                    self.write(DRIVER_FEATURE_SELECT, half, false);
                    let features = features >> (32 * half) & 0xffff_ffff;
                    self.write(DRIVER_FEATURE, features, false);
                }
                self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, false);
            }
            Step::EnableQueue { queue, size } => {
                self.write(QUEUE_SELECT, queue, false);
                self.write(QUEUE_SIZE, size, false);
                self.write(QUEUE_ENABLE, 1, false);
            }
            Step::Notify { queue, width } => {
                let space = Space::Bar(REGISTER_BAR);
                let actions = self.machine.write(space, NOTIFY + 4 * queue, width, queue);
                self.apply(actions);
                let run = self.consumer.run.as_ref();
                let is_started = run.is_some_and(|run| run.queues.contains_key(&(queue as u16)));
                let notified = std::mem::take(&mut self.consumer.notified);
                let expected = is_started && matches!(width, 2 | 4);
                assert_eq!(notified, vec![queue as u16; expected.into()]);
            }
            Step::Command { value } => {
                self.command = value & 0x546;
                let actions = self.machine.set_config(COMMAND, 2, value);
                self.apply(actions);
            }
            Step::FunctionLevelReset => {
                let actions = self.machine.function_level_reset();
                self.apply(actions);
                self.command = 0;
                self.model_reset();
            }
            Step::FunctionReset => {
                let actions = self.machine.function.reset().into_iter().collect();
                self.apply(actions);
                self.command = 0;
                self.model_reset();
            }
            Step::ResetDone => {
                if std::mem::take(&mut self.consumer.is_resetting) {
                    self.machine.function.reset_done();
                    self.model.reset_all();
                }
            }
            Step::NeedsReset => {
                let was_set = self.model.has_status(NEEDS_RESET);
                self.model.set_needs_reset();
                let is_new = self.model.has_status(NEEDS_RESET) && !was_set;
                assert_eq!(self.machine.function.set_needs_reset(), is_new);
            }
            Step::Interrupt { bits } => {
                self.machine.device.interrupt_status.set(bits);
                let register = (INTERRUPT_STATUS, 1);
                assert_eq!(self.machine.get(register), bits.into());
                assert_eq!(self.machine.get(register), 0);
            }
            Step::Configure { value } => self.configure(value),
            Step::ReadConfiguration { torn } => {
                let before = self.machine.get(GENERATION);
                let low = self.machine.get((DEVICE_CONFIG, 4));
                assert_eq!(low, self.configuration());
                if let Some(value) = torn {
                    self.configure(value);
                }
                let high = self.machine.get((DEVICE_CONFIG + 4, 4));
                assert_eq!(high, self.configuration());
                // All bytes are the same at any moment.
                if self.machine.get(GENERATION) == before {
                    assert_eq!(low, high);
                }
            }
        }
        self.compare();
    }

    /// Four bytes of the configuration, which are the same as the others.
    fn configuration(&self) -> u64 {
        let config = self.machine.device.config.borrow();
        u64::from(config.first().copied().unwrap_or(0)) * 0x0101_0101
    }

    fn configure(&mut self, value: u8) {
        *self.machine.device.config.borrow_mut() = vec![value; 8];
    }

    /// The device is in the state for which the registers ask.
    fn compare(&mut self) {
        let function = &self.machine.function;
        assert_eq!(function.is_resetting(), self.model.is_resetting);
        assert_eq!(self.consumer.is_resetting, self.model.is_resetting);
        assert_eq!(self.machine.config(COMMAND, 2), self.command);
        let is_intx_disabled = self.command & INTX_DISABLE != 0;
        assert_eq!(self.consumer.is_intx_disabled, is_intx_disabled);
        assert_eq!(self.machine.get(STATUS), self.model.status());

        let is_bus_master = self.command & BUS_MASTER != 0;
        let run = self.consumer.run.as_ref();
        if self.model.is_resetting {
            assert_eq!(run, None);
            assert_eq!(self.consumer.vectors, BTreeMap::new());
            return;
        }
        assert_eq!(self.consumer.vectors, self.model.vectors());
        if !self.model.has_status(DRIVER_OK) {
            assert_eq!(run, None);
            return;
        }
        assert_eq!(run.is_some_and(|run| !run.is_paused), is_bus_master);
        let enabled = self.model.enabled();
        if let Some(run) = run {
            assert_eq!(run.features, self.model.features);
            // A queue that was enabled during a pause waits for its end.
            let mut queues = run.queues.iter();
            assert!(queues.all(|(index, queue)| enabled.get(index) == Some(queue)));
            assert!(run.is_paused || run.queues.len() == enabled.len());
        }
    }
}

/// Surroundings with arbitrary device configuration.
struct Any(Vec<u8>);

impl Surroundings for Any {
    fn device_config(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn take_interrupt_status(&self) -> u8 {
        0xff
    }
}

/// A function of other dimensions than the one that the model is compared with.
fn any_description() -> impl Strategy<Value = (Description, u16)> {
    let interrupts = prop_oneof![
        (1..2049_u16).prop_map(|vectors| (Interrupts::MsiX { vectors }, vectors)),
        (0..6_u16).prop_map(|n| (Interrupts::Msi { vectors: 1 << n }, 1 << n)),
        Just((Interrupts::IntxOnly, 0)),
    ];
    let shared = proptest::option::of((12..64).prop_map(|n| 1_u64 << n));
    (interrupts, 1..1025_u16, 0..16_u16, 0..4097_u32, shared).prop_map(
        |((interrupts, vectors), queues, size, config_bytes, shared_region)| {
            let description = Description {
                queues,
                queue_size: 1 << size,
                config_bytes,
                shared_region,
                ..description(interrupts)
            };
            (description, vectors)
        },
    )
}

proptest! {
    #[test]
    fn function_behaves_as_the_model(
        (interrupts, vectors) in interrupts(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut comparison = Comparison::new(interrupts, vectors);
        for step in steps {
            comparison.run(step);
        }
    }

    #[test]
    fn any_accesses_are_survived_and_actions_are_valid(
        (description, vectors) in any_description(),
        start in any::<bool>(),
        config in any::<Vec<u8>>(),
        accesses in proptest::collection::vec(access(), 1..80),
    ) {
        let limits = Limits {
            queues: description.queues,
            queue_size: description.queue_size,
            vectors,
        };
        let offered = description.features;
        let mut consumer = Consumer::default();
        let mut function = Function::new(description.clone()).unwrap();
        if start {
            let mut machine = Machine::of(description);
            assert_eq!(machine.set_bus_mastering(true), []);
            machine.negotiate(VERSION_1);
            for action in machine.enable_queue(0, 1).into_iter().chain(machine.driver_ok()) {
                consumer.apply(action, limits);
            }
            function = machine.function;
        }
        let around = Any(config);
        for access in accesses {
            match access {
                Access::Read(space, offset, length) => {
                    let mut data = vec![0; length];
                    let _ = function.read(space, offset, &mut data, &around);
                }
                Access::Write(space, offset, data) => {
                    let actions = function.write(space, offset, &data);
                    for action in actions.into_iter().flatten() {
                        consumer.apply(action, limits);
                    }
                }
                Access::Reset => {
                    for action in function.reset() {
                        consumer.apply(action, limits);
                    }
                }
                Access::ResetDone => {
                    function.reset_done();
                    consumer.is_resetting = false;
                }
                Access::NeedsReset => {
                    let _ = function.set_needs_reset();
                }
            }
            prop_assert_eq!(function.is_resetting(), consumer.is_resetting);
            if let Some(run) = &consumer.run {
                prop_assert_eq!(run.features & !offered, 0);
                prop_assert_ne!(run.features & VERSION_1, 0);
            }
        }
    }
}
