// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random accesses to a function, compared with a reference model.
//!
//! The model knows the values of registers that a driver may rely on ([`registers`]) and carries
//! out the actions ([`device`]). After each access the device is to be in the state that the
//! registers require. The model does not predict the actions that lead there.

mod device;
mod registers;
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
use support::*;

/// One step of the driver, the monitor, or the device.
#[derive(Clone, Debug)]
enum Step {
    /// The driver writes a register, through configuration space if `window`.
    Write {
        register: Register,
        value: u64,
        window: bool,
    },
    /// The driver writes a half of an address.
    WriteHalf {
        register: Register,
        half: u64,
        value: u64,
    },
    /// The driver reads a register.
    Read { register: Register, window: bool },
    /// The driver selects features and then accepts them.
    Negotiate { features: u64 },
    /// The driver selects and enables a queue.
    EnableQueue { queue: u64, size: u64 },
    /// The driver notifies the device, at an address for which there may be no queue.
    Notify { queue: u64, width: usize },
    /// The driver writes the command register.
    Command { value: u64 },
    /// The driver resets the function.
    FunctionLevelReset,
    /// The monitor resets the function.
    FunctionReset,
    /// The device ends a reset, if there is one.
    ResetDone,
    /// The device fails.
    NeedsReset,
    /// The device raises an interrupt, and the driver reads its status.
    Interrupt { bits: u8 },
    /// The device changes its configuration.
    Configure { value: u8 },
    /// The driver reads the configuration, which changes meanwhile if `torn`.
    ReadConfiguration { torn: Option<u8> },
}

const REGISTERS: [Register; 16] = [
    DEVICE_FEATURE_SELECT,
    DEVICE_FEATURE,
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    CONFIG_VECTOR,
    NUM_QUEUES,
    STATUS,
    GENERATION,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_VECTOR,
    QUEUE_ENABLE,
    QUEUE_NOTIFY_OFF,
    QUEUE_DESCRIPTORS,
    QUEUE_DRIVER,
    QUEUE_DEVICE,
];

const ADDRESSES: [Register; 3] = [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE];

/// Values that a register tells apart, and others.
fn value(register: Register) -> BoxedStrategy<u64> {
    match register {
        STATUS => prop_oneof![
            6 => select(vec![1, 3, 11, 15]),
            1 => Just(0),
            2 => 0..256_u64,
        ]
        .boxed(),
        DEVICE_FEATURE_SELECT | DRIVER_FEATURE_SELECT => {
            prop_oneof![4 => 0..3_u64, 1 => any::<u32>().prop_map(u64::from)].boxed()
        }
        QUEUE_SIZE => {
            prop_oneof![3 => (0..17_u32).prop_map(|n| (1 << n) & 0xffff), 2 => 0..80_u64].boxed()
        }
        (_, 2) => prop_oneof![5 => 0..6_u64, 1 => Just(NO_VECTOR), 1 => 0..0x1_0000_u64].boxed(),
        (_, 4) => any::<u32>().prop_map(u64::from).boxed(),
        (_, 1) => (0..256_u64).boxed(),
        _ => any::<u64>().boxed(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let write = (select(&REGISTERS[..]), any::<bool>()).prop_flat_map(|(register, window)| {
        value(register).prop_map(move |value| Step::Write {
            register,
            value,
            // The window has accesses of up to 4 bytes.
            window: window && register.1 <= 4,
        })
    });
    let features = prop_oneof![
        4 => Just(VERSION_1),
        4 => any::<u64>().prop_map(|bits| bits & FEATURES | VERSION_1),
        1 => any::<u64>().prop_map(|bits| bits & FEATURES),
        1 => any::<u64>(),
    ];
    prop_oneof![
        12 => write,
        3 => (select(&ADDRESSES[..]), 0..2_u64, any::<u32>()).prop_map(
            |(register, half, value)| Step::WriteHalf { register, half, value: value.into() }
        ),
        6 => (select(&REGISTERS[..]), any::<bool>()).prop_map(|(register, window)| Step::Read {
            register,
            window: window && register.1 <= 4,
        }),
        5 => features.prop_map(|features| Step::Negotiate { features }),
        5 => (0..4_u64, 0..8_u32).prop_map(|(queue, size)| Step::EnableQueue {
            queue,
            size: 1 << size,
        }),
        5 => (0..5_u64, select(vec![1, 2, 4, 8])).prop_map(|(queue, width)| Step::Notify {
            queue,
            width,
        }),
        6 => select(vec![0, 4, 4, 0x404, 0x400, 0xffff]).prop_map(|value| Step::Command { value }),
        1 => Just(Step::FunctionLevelReset),
        1 => Just(Step::FunctionReset),
        3 => Just(Step::ResetDone),
        1 => Just(Step::NeedsReset),
        1 => any::<u8>().prop_map(|bits| Step::Interrupt { bits }),
        1 => any::<u8>().prop_map(|value| Step::Configure { value }),
        1 => proptest::option::of(any::<u8>()).prop_map(|torn| Step::ReadConfiguration { torn }),
    ]
}

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

/// One access of any kind.
#[derive(Clone, Debug)]
enum Access {
    Read(Space, u64, usize),
    Write(Space, u64, Vec<u8>),
    Reset,
    ResetDone,
    NeedsReset,
}

fn access() -> impl Strategy<Value = Access> {
    let space = prop_oneof![
        4 => Just(Space::Config),
        6 => Just(Space::Bar(2)),
        2 => Just(Space::Bar(1)),
        1 => any::<u8>().prop_map(Space::Bar),
    ];
    let offset = prop_oneof![
        6 => 0..0x100_u64,
        2 => 0..0x1000_u64,
        2 => 0..0x4000_u64,
        1 => any::<u64>(),
        1 => (0..16_u64).prop_map(|back| u64::MAX - back),
    ];
    let length = prop_oneof![
        8 => select(vec![1, 2, 4, 8]),
        2 => 0..20_usize,
        1 => 0..0x4000_usize,
    ];
    // Few kinds of bytes, so that sizes and selections are often possible ones.
    let bytes = prop_oneof![
        (0..4_u8).prop_map(|byte| vec![byte]),
        (0..16_u8).prop_map(|byte| vec![byte, 0, 0, 0]),
        any::<Vec<u8>>(),
    ];
    (space, offset, length, bytes, 0..40).prop_map(|(space, offset, length, bytes, kind)| {
        let offset = if kind % 2 == 0 { offset & !3 } else { offset };
        match kind {
            0..10 => Access::Read(space, offset, length),
            10 => Access::Reset,
            11 => Access::ResetDone,
            12 => Access::NeedsReset,
            _ => Access::Write(
                space,
                offset,
                bytes.into_iter().cycle().take(length).collect(),
            ),
        }
    })
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
