// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The registers of the function, one by one.

mod support;

use ringbar_virtio_pci::{Action, Description, Interrupts, REGISTER_BAR, Space};
use support::*;

const MSIX: Interrupts = Interrupts::MsiX { vectors: 4 };
const REGISTERS: Space = Space::Bar(REGISTER_BAR);

#[test]
fn registers_have_their_values_after_power_on() {
    let mut machine = Machine::new(MSIX);
    for (register, value) in [
        (DEVICE_FEATURE_SELECT, 0),
        (DEVICE_FEATURE, FEATURES & 0xffff_ffff),
        (DRIVER_FEATURE_SELECT, 0),
        (DRIVER_FEATURE, 0),
        (CONFIG_VECTOR, NO_VECTOR),
        (NUM_QUEUES, 3),
        (STATUS, 0),
        (QUEUE_SELECT, 0),
        (QUEUE_SIZE, 64),
        (QUEUE_VECTOR, NO_VECTOR),
        (QUEUE_ENABLE, 0),
        (QUEUE_NOTIFY_OFF, 0),
        (QUEUE_DESCRIPTORS, 0),
        (QUEUE_DRIVER, 0),
        (QUEUE_DEVICE, 0),
    ] {
        assert_eq!(machine.get(register), value, "{register:?}");
    }
}

#[test]
fn features_are_read_and_written_by_halves() {
    let mut machine = Machine::new(MSIX);
    for (half, value) in [(1, FEATURES >> 32), (2, 0), (0xffff_ffff, 0)] {
        machine.quietly_set(DEVICE_FEATURE_SELECT, half);
        assert_eq!(machine.get(DEVICE_FEATURE), value, "half {half}");
    }
    machine.select_features(0x1234_5678_9abc_def0);
    machine.quietly_set(DRIVER_FEATURE_SELECT, 2);
    machine.quietly_set(DRIVER_FEATURE, 0xffff_ffff);
    for (half, value) in [(0, 0x9abc_def0), (1, 0x1234_5678), (2, 0)] {
        machine.quietly_set(DRIVER_FEATURE_SELECT, half);
        assert_eq!(machine.get(DRIVER_FEATURE), value, "half {half}");
    }
}

#[test]
fn features_are_accepted_if_offered_and_with_version_1() {
    for (features, accepted) in [
        (VERSION_1, true),
        (FEATURES, true),
        (0, false),
        (FEATURES & !VERSION_1, false),
        (VERSION_1 | 1, false),
        (VERSION_1 | 1 << 63, false),
    ] {
        let mut machine = Machine::new(MSIX);
        machine.select_features(features);
        machine.quietly_set(STATUS, 11);
        let expected = if accepted { 11 } else { 3 };
        assert_eq!(machine.get(STATUS), expected, "features {features:#x}");
        // Another try with other features.
        machine.select_features(VERSION_1 | 1 << 28);
        machine.quietly_set(STATUS, 11);
        assert_eq!(machine.get(STATUS), 11, "features {features:#x}");
        // From then on they are fixed.
        machine.select_features(0);
        machine.quietly_set(DRIVER_FEATURE_SELECT, 1);
        let fixed = if accepted { features } else { VERSION_1 };
        assert_eq!(machine.get(DRIVER_FEATURE), fixed >> 32);
    }
}

#[test]
fn status_bits_accumulate() {
    let mut machine = Machine::new(MSIX);
    machine.quietly_set(STATUS, ACKNOWLEDGE);
    machine.quietly_set(STATUS, DRIVER);
    assert_eq!(machine.get(STATUS), 3);
    // DRIVER_OK requires FEATURES_OK; the other bits are none of the driver's.
    machine.quietly_set(STATUS, DRIVER_OK | NEEDS_RESET | 0x30);
    assert_eq!(machine.get(STATUS), 3);
    machine.quietly_set(STATUS, FAILED);
    assert_eq!(machine.get(STATUS), 0x83);
}

#[test]
fn queue_registers_are_those_of_the_selected_queue() {
    let mut machine = Machine::new(MSIX);
    for queue in 0..3 {
        machine.quietly_set(QUEUE_SELECT, queue);
        machine.quietly_set(QUEUE_SIZE, 8 << queue);
        machine.quietly_set(QUEUE_DESCRIPTORS, 0x1111 << (16 * queue));
        machine.quietly_set(QUEUE_DRIVER, 0x2222 << (16 * queue));
        machine.quietly_set(QUEUE_DEVICE, 0x3333 << (16 * queue));
    }
    for queue in 0..3 {
        machine.quietly_set(QUEUE_SELECT, queue);
        assert_eq!(machine.get(QUEUE_SIZE), 8 << queue);
        assert_eq!(machine.get(QUEUE_NOTIFY_OFF), queue);
        assert_eq!(machine.get(QUEUE_DESCRIPTORS), 0x1111 << (16 * queue));
        assert_eq!(machine.get(QUEUE_DRIVER), 0x2222 << (16 * queue));
        assert_eq!(machine.get(QUEUE_DEVICE), 0x3333 << (16 * queue));
    }
    // A queue that does not exist.
    for queue in [3, 4, 0xffff] {
        machine.quietly_set(QUEUE_SELECT, queue);
        for register in [QUEUE_SIZE, QUEUE_ENABLE, QUEUE_DESCRIPTORS] {
            machine.quietly_set(register, 1);
            assert_eq!(machine.get(register), 0, "{register:?} of queue {queue}");
        }
        machine.quietly_set(QUEUE_VECTOR, 1);
        assert_eq!(machine.get(QUEUE_VECTOR), NO_VECTOR);
    }
}

#[test]
fn queue_size_is_a_power_of_two_up_to_the_maximum() {
    let mut machine = Machine::new(MSIX);
    let mut size = 64;
    for value in 0..=0xffff_u64 {
        machine.quietly_set(QUEUE_SIZE, value);
        if value.is_power_of_two() && value <= 64 {
            size = value;
        }
        assert_eq!(machine.get(QUEUE_SIZE), size, "after {value}");
    }
}

#[test]
fn enabled_queue_is_fixed_but_for_its_vector() {
    let mut machine = Machine::new(MSIX);
    machine.quietly_set(QUEUE_ENABLE, 0);
    machine.quietly_set(QUEUE_ENABLE, 2);
    assert_eq!(machine.get(QUEUE_ENABLE), 0);
    assert_eq!(machine.enable_queue(1, 16), []);
    assert_eq!(machine.get(QUEUE_ENABLE), 1);
    for (register, value) in [
        (QUEUE_SIZE, 32),
        (QUEUE_ENABLE, 0),
        (QUEUE_DESCRIPTORS, 7),
        (QUEUE_DRIVER, 7),
        (QUEUE_DEVICE, 7),
    ] {
        let before = machine.get(register);
        machine.quietly_set(register, value);
        assert_eq!(machine.get(register), before, "{register:?}");
    }
    let vector = Action::QueueVector {
        queue: 1,
        vector: Some(2),
    };
    assert_eq!(machine.set(QUEUE_VECTOR, 2), [vector]);
}

#[test]
fn vectors_are_read_back_if_they_exist() {
    for (interrupts, vectors) in [
        (MSIX, 4),
        (Interrupts::Msi { vectors: 2 }, 2),
        (Interrupts::IntxOnly, 0),
    ] {
        let mut machine = Machine::new(interrupts);
        machine.quietly_set(QUEUE_SELECT, 1);
        let (mut config, mut queue) = (None, None);
        for value in [0, 0, 1, 1, 2, 3, 4, 0x100, 0xffff, 0xffff, 1, 0xfffe] {
            let vector = (value < vectors).then_some(value as u16);
            let expected = |old| if old == vector { 0 } else { 1 };
            let actions = machine.set(CONFIG_VECTOR, value);
            assert_eq!(actions.len(), expected(config));
            for action in actions {
                assert_eq!(action, Action::ConfigVector { vector });
            }
            let actions = machine.set(QUEUE_VECTOR, value);
            assert_eq!(actions.len(), expected(queue));
            for action in actions {
                assert_eq!(action, Action::QueueVector { queue: 1, vector });
            }
            (config, queue) = (vector, vector);
            let read_back = vector.map_or(NO_VECTOR, u64::from);
            assert_eq!(machine.get(CONFIG_VECTOR), read_back);
            assert_eq!(machine.get(QUEUE_VECTOR), read_back);
        }
    }
}

#[test]
fn addresses_are_written_whole_or_by_halves() {
    let mut machine = Machine::new(MSIX);
    for (at, _) in [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE] {
        machine.quietly_set((at, 8), 0x1111_2222_3333_4444);
        machine.quietly_set((at + 4, 4), 0x5555_6666);
        assert_eq!(machine.get((at, 8)), 0x5555_6666_3333_4444);
        machine.quietly_set((at, 4), 0x7777_8888);
        assert_eq!(machine.get((at, 8)), 0x5555_6666_7777_8888);
        assert_eq!(machine.get((at + 4, 4)), 0x5555_6666);
    }
}

#[test]
fn other_widths_are_read_as_bytes_and_not_written() {
    let mut machine = Machine::new(MSIX);
    machine.quietly_set(QUEUE_DESCRIPTORS, 0x0102_0304_0506_0708);
    machine.quietly_set(STATUS, 3);
    let mut all = [0; 72];
    let read = |machine: &mut Machine, offset, data: &mut [u8]| {
        let Machine { function, device } = machine;
        function.read(REGISTERS, offset, data, device).unwrap();
    };
    read(&mut machine, 0, &mut all);
    // Behind the last register nothing is.
    assert_eq!(all[56..], [0; 16]);
    for offset in 0..64 {
        for length in 1..8 {
            let mut data = [0xaa; 8];
            read(&mut machine, offset as u64, &mut data[..length]);
            assert_eq!(data[..length], all[offset..offset + length]);
        }
    }

    let widths: [(u64, &[usize]); 16] = [
        (0, &[4]),
        (4, &[4]),
        (8, &[4]),
        (12, &[4]),
        (16, &[2]),
        (18, &[2]),
        (20, &[1]),
        (21, &[1]),
        (22, &[2]),
        (24, &[2]),
        (26, &[2]),
        (28, &[2]),
        (30, &[2]),
        (32, &[4, 8]),
        (40, &[4, 8]),
        (48, &[4, 8]),
    ];
    for offset in 0..64_u64 {
        for length in [1, 2, 3, 4, 5, 6, 7, 8, 16, 24] {
            let halves = matches!(offset, 36 | 44 | 52) && length == 4;
            let is_register = widths
                .iter()
                .any(|&(at, widths)| at == offset && widths.contains(&length));
            if halves || is_register {
                continue;
            }
            let actions = machine
                .function
                .write(REGISTERS, offset, &vec![1; length])
                .unwrap();
            assert!(actions.is_empty(), "{length} bytes at {offset}");
            let mut now = [0; 72];
            read(&mut machine, 0, &mut now);
            assert_eq!(now, all, "after {length} bytes at {offset}");
        }
    }
}

#[test]
fn interrupt_status_is_cleared_by_a_read() {
    let mut machine = Machine::new(MSIX);
    machine.device.interrupt_status.set(3);
    // Neither the registers before nor the bytes behind it.
    machine.read(REGISTERS, INTERRUPT_STATUS - 8, 8);
    machine.read(REGISTERS, INTERRUPT_STATUS + 1, 4);
    assert_eq!(machine.read(REGISTERS, INTERRUPT_STATUS, 4), 3);
    assert_eq!(machine.read(REGISTERS, INTERRUPT_STATUS, 1), 0);
    machine.device.interrupt_status.set(1);
    assert_eq!(machine.write(REGISTERS, INTERRUPT_STATUS, 1, 0xff), []);
    assert_eq!(machine.read(REGISTERS, INTERRUPT_STATUS - 1, 2), 0x100);
}

#[test]
fn device_configuration_has_its_length() {
    let mut machine = Machine::new(MSIX);
    *machine.device.config.borrow_mut() = (1..=20).collect();
    assert_eq!(
        machine.read(REGISTERS, DEVICE_CONFIG, 8),
        0x0807_0605_0403_0201
    );
    assert_eq!(machine.read(REGISTERS, DEVICE_CONFIG + 7, 2), 8);
    assert_eq!(machine.read(REGISTERS, DEVICE_CONFIG + 8, 8), 0);
    *machine.device.config.borrow_mut() = vec![9; 3];
    assert_eq!(machine.read(REGISTERS, DEVICE_CONFIG, 8), 0x09_0909);
    assert_eq!(machine.write(REGISTERS, DEVICE_CONFIG, 4, 1), []);
    assert_eq!(machine.read(REGISTERS, DEVICE_CONFIG, 4), 0x09_0909);
}

#[test]
fn generation_changes_with_the_configuration() {
    let mut machine = Machine::new(MSIX);
    let set = |machine: &Machine, value| *machine.device.config.borrow_mut() = vec![value; 8];
    set(&machine, 1);
    let first = machine.get(GENERATION);
    assert_eq!(machine.get(GENERATION), first);
    set(&machine, 2);
    let second = machine.get(GENERATION);
    assert_ne!(second, first);
    // Changes back and forth, of which the driver has read something.
    set(&machine, 1);
    machine.read(REGISTERS, DEVICE_CONFIG, 4);
    set(&machine, 2);
    assert_ne!(machine.get(GENERATION), second);
    // As part of a wider access.
    let third = machine.read(REGISTERS, 20, 4);
    set(&machine, 3);
    assert_ne!(machine.read(REGISTERS, 20, 4), third);
    // A reset does not bring an old one back.
    let fourth = machine.get(GENERATION);
    let _ = machine.function.reset();
    assert_eq!(machine.get(GENERATION), fourth);
}

#[test]
fn notifications_are_those_of_started_queues() {
    let mut machine = Machine::new(MSIX);
    for queue in 0..3 {
        assert_eq!(machine.notify(queue), [], "before the start");
    }
    machine.start();
    assert_eq!(machine.notify(0), [Action::Notify { queue: 0 }]);
    assert_eq!(machine.notify(2), [Action::Notify { queue: 2 }]);
    // Not enabled, and not existing.
    for queue in [1, 3, 4, 0x3ff] {
        assert_eq!(machine.notify(queue), [], "queue {queue}");
    }
    // The address counts, not the value.
    let wrong = machine.write(REGISTERS, NOTIFY + 8, 2, 0xffff);
    assert_eq!(wrong, [Action::Notify { queue: 2 }]);
    let wide = machine.write(REGISTERS, NOTIFY + 8, 4, 2);
    assert_eq!(wide, [Action::Notify { queue: 2 }]);
    for (offset, width) in [(0, 1), (0, 3), (0, 8), (1, 2), (2, 2), (6, 4), (0xffe, 2)] {
        let actions = machine.write(REGISTERS, NOTIFY + offset, width, 0);
        assert_eq!(actions, [], "{width} bytes at {offset}");
    }
    assert_eq!(machine.read(REGISTERS, NOTIFY, 8), 0);
}

#[test]
fn as_many_queues_as_there_are_notifications() {
    let mut machine = Machine::of(Description {
        queues: 1024,
        ..description(MSIX)
    });
    machine.set_bus_mastering(true);
    machine.negotiate(VERSION_1);
    machine.enable_queue(1023, 64);
    machine.driver_ok();
    assert_eq!(machine.notify(1023), [Action::Notify { queue: 1023 }]);
    assert_eq!(machine.notify(1022), []);
}
