// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random steps: accesses that a driver may make, and accesses of any kind.

use proptest::prelude::*;
use proptest::sample::select;
use ringbar_virtio_pci::Space;

use crate::support::*;

/// One step of the driver, the monitor, or the device.
#[derive(Clone, Debug)]
pub enum Step {
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

pub fn step() -> impl Strategy<Value = Step> {
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

/// One access of any kind.
#[derive(Clone, Debug)]
pub enum Access {
    Read(Space, u64, usize),
    Write(Space, u64, Vec<u8>),
    Reset,
    ResetDone,
    NeedsReset,
}

pub fn access() -> impl Strategy<Value = Access> {
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
