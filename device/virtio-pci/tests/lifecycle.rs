// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Start, pause and reset of the device behind the function.

mod support;

use ringbar_virtio_pci::{Action, Interrupts, Queue};
use support::*;

const MSIX: Interrupts = Interrupts::MsiX { vectors: 4 };

/// The queue that [`Machine::enable_queue`] sets up.
fn queue(index: u16, size: u16) -> Queue {
    let base = 0x1_0000_0000 * (u64::from(index) + 1);
    Queue {
        index,
        size,
        descriptors: base,
        driver: base + 0x1000,
        device: base + 0x2000,
    }
}

#[test]
fn driver_ok_starts_the_enabled_queues() {
    let mut machine = Machine::new(MSIX);
    machine.set_bus_mastering(true);
    machine.negotiate(VERSION_1 | 1 << 29);
    // In any order.
    assert_eq!(machine.enable_queue(2, 16), []);
    assert_eq!(machine.enable_queue(0, 64), []);
    let start = Action::Start {
        features: VERSION_1 | 1 << 29,
        queues: vec![queue(0, 64), queue(2, 16)],
    };
    assert_eq!(machine.driver_ok(), [start]);
    assert_eq!(machine.get(STATUS), 15);
    // Once.
    assert_eq!(machine.driver_ok(), []);
    assert_eq!(machine.set(STATUS, FAILED), []);
    assert_eq!(machine.get(STATUS), 15 | FAILED);
}

#[test]
fn status_may_be_written_at_once() {
    let mut machine = Machine::new(MSIX);
    machine.set_bus_mastering(true);
    machine.select_features(VERSION_1);
    let start = Action::Start {
        features: VERSION_1,
        queues: vec![],
    };
    assert_eq!(machine.set(STATUS, 15), [start]);
}

#[test]
fn start_waits_for_bus_mastering() {
    let mut machine = Machine::new(MSIX);
    machine.negotiate(VERSION_1);
    machine.enable_queue(1, 8);
    assert_eq!(machine.driver_ok(), []);
    assert_eq!(machine.get(STATUS), 15);
    assert_eq!(machine.enable_queue(0, 4), []);
    assert_eq!(machine.notify(0), []);
    let start = Action::Start {
        features: VERSION_1,
        queues: vec![queue(0, 4), queue(1, 8)],
    };
    assert_eq!(machine.set_bus_mastering(true), [start]);
    assert_eq!(machine.notify(0), [Action::Notify { queue: 0 }]);
}

#[test]
fn queue_enabled_later_is_started() {
    let mut machine = Machine::new(MSIX);
    machine.start();
    let start = Action::StartQueue(queue(1, 2));
    assert_eq!(machine.enable_queue(1, 2), [start]);
    assert_eq!(machine.notify(1), [Action::Notify { queue: 1 }]);
    assert_eq!(machine.set(QUEUE_ENABLE, 1), []);
}

#[test]
fn bus_mastering_pauses_and_resumes() {
    let mut machine = Machine::new(MSIX);
    machine.start();
    assert_eq!(machine.set_bus_mastering(false), [Action::Pause]);
    assert_eq!(machine.set_bus_mastering(false), []);
    // A notification is not lost; a queue enabled meanwhile waits.
    assert_eq!(machine.notify(2), [Action::Notify { queue: 2 }]);
    assert_eq!(machine.enable_queue(1, 2), []);
    assert_eq!(machine.notify(1), []);
    assert_eq!(
        machine.set_bus_mastering(true),
        [Action::Resume, Action::StartQueue(queue(1, 2))]
    );
    assert_eq!(machine.set_bus_mastering(true), []);
    assert_eq!(machine.set_bus_mastering(false), [Action::Pause]);
    assert_eq!(machine.set_bus_mastering(true), [Action::Resume]);
}

#[test]
fn bus_mastering_of_a_stopped_device_has_no_effect() {
    let mut machine = Machine::new(MSIX);
    assert_eq!(machine.set_bus_mastering(true), []);
    assert_eq!(machine.set_bus_mastering(false), []);
    machine.negotiate(VERSION_1);
    assert_eq!(machine.set_bus_mastering(true), []);
}

#[test]
fn reset_lasts_until_it_is_done() {
    let mut machine = Machine::new(MSIX);
    machine.start();
    machine.set(CONFIG_VECTOR, 1);
    machine.set(QUEUE_VECTOR, 2);
    machine.quietly_set(DEVICE_FEATURE_SELECT, 1);
    assert_eq!(machine.set(STATUS, 0), [Action::Reset]);
    assert!(machine.function.is_resetting());
    assert_eq!(machine.get(STATUS), 15);

    // Meanwhile nothing happens.
    assert_eq!(machine.set(STATUS, 0), []);
    assert_eq!(machine.set(STATUS, ACKNOWLEDGE), []);
    assert_eq!(machine.set(CONFIG_VECTOR, 1), []);
    assert_eq!(machine.set(QUEUE_SELECT, 1), []);
    assert_eq!(machine.enable_queue(1, 64), []);
    assert_eq!(machine.notify(0), []);
    assert_eq!(machine.set_bus_mastering(false), []);
    assert_eq!(machine.set_bus_mastering(true), []);
    assert!(!machine.function.set_needs_reset());
    assert_eq!(machine.get(STATUS), 15);

    machine.function.reset_done();
    assert!(!machine.function.is_resetting());
    let mut fresh = Machine::new(MSIX);
    for offset in 0..56 {
        let register = (offset, 1);
        assert_eq!(machine.get(register), fresh.get(register), "at {offset}");
    }
    // Configuration space is not the device's: bus mastering is on.
    let started = machine.start();
    assert!(matches!(&started[..], [Action::Start { .. }]));
}

#[test]
fn reset_needs_no_start() {
    let mut machine = Machine::new(MSIX);
    machine.quietly_set(STATUS, ACKNOWLEDGE);
    assert_eq!(machine.set(STATUS, 0), [Action::Reset]);
    assert_eq!(machine.get(STATUS), ACKNOWLEDGE);
    machine.function.reset_done();
    assert_eq!(machine.get(STATUS), 0);
}

#[test]
fn untouched_device_is_reset_at_once() {
    let mut machine = Machine::new(MSIX);
    assert_eq!(machine.set(STATUS, 0), []);
    machine.set(CONFIG_VECTOR, 3);
    machine.quietly_set(QUEUE_SELECT, 2);
    machine.set(QUEUE_VECTOR, 0);
    machine.quietly_set(QUEUE_SIZE, 2);
    assert_eq!(
        machine.set(STATUS, 0),
        [
            Action::ConfigVector { vector: None },
            Action::QueueVector {
                queue: 2,
                vector: None
            }
        ]
    );
    assert!(!machine.function.is_resetting());
    machine.quietly_set(QUEUE_SELECT, 2);
    assert_eq!(machine.get(QUEUE_SIZE), 64);
    // The next write counts.
    machine.quietly_set(STATUS, ACKNOWLEDGE);
    assert_eq!(machine.get(STATUS), ACKNOWLEDGE);
}

#[test]
fn end_of_no_reset_has_no_effect() {
    let mut machine = Machine::new(MSIX);
    machine.start();
    machine.function.reset_done();
    assert_eq!(machine.get(STATUS), 15);
    assert_eq!(machine.notify(0), [Action::Notify { queue: 0 }]);
}

#[test]
fn reset_of_a_paused_device() {
    let mut machine = Machine::new(MSIX);
    machine.start();
    machine.set_bus_mastering(false);
    assert_eq!(machine.set(STATUS, 0), [Action::Reset]);
    assert_eq!(machine.set_bus_mastering(true), []);
    machine.function.reset_done();
    assert_eq!(machine.get(STATUS), 0);
}

/// Resets the function in one of the ways there are.
type FunctionReset = fn(&mut Machine) -> Vec<Action>;
const FUNCTION_RESETS: [FunctionReset; 2] = [Machine::function_level_reset, |machine| {
    machine.function.reset().into_iter().collect()
}];

/// The driver of a function level reset has no register to ask, so DMA ends before the write does.
#[test]
fn function_level_reset_pauses_queues_that_run() {
    let mut machine = Machine::new(MSIX);
    assert!(!machine.function_level_reset().contains(&Action::Pause));
    machine.function.reset_done();
    machine.start();
    let actions = machine.function_level_reset();
    assert_eq!(actions[..2], [Action::Pause, Action::Reset]);
}

#[test]
fn function_reset_resets_configuration_space_at_once() {
    for reset in FUNCTION_RESETS {
        let mut machine = Machine::new(MSIX);
        machine.set_config(0x18, 4, 0xfeb0_0000);
        machine.set_config(0x3c, 1, 10);
        machine.start();
        machine.set_config(COMMAND, 2, BUS_MASTER | INTX_DISABLE);
        // By the end of the write of a function level reset there is no DMA any more.
        let actions = reset(&mut machine);
        let first = actions.len() - 2;
        assert_eq!(
            actions[first..],
            [Action::Reset, Action::IntxDisable(false)]
        );
        assert!(
            actions[..first]
                .iter()
                .all(|action| *action == Action::Pause)
        );
        assert_eq!(machine.config(COMMAND, 2), 0);
        assert_eq!(machine.config(0x18, 4), 0);
        assert_eq!(machine.config(0x3c, 1), 0);
        // The device takes its time; the space does not wait for it.
        assert_eq!(machine.get(STATUS), 15);
        machine.set_config(0x3c, 1, 11);
        assert_eq!(machine.set(STATUS, 0), []);
        machine.function.reset_done();
        assert_eq!(machine.get(STATUS), 0);
        assert_eq!(machine.config(0x3c, 1), 11);
    }
}

#[test]
fn function_reset_during_a_reset_resets_configuration_space() {
    for reset in FUNCTION_RESETS {
        let mut machine = Machine::new(MSIX);
        machine.start();
        machine.set(STATUS, 0);
        machine.set_config(COMMAND, 2, BUS_MASTER | INTX_DISABLE);
        assert_eq!(reset(&mut machine), [Action::IntxDisable(false)]);
        assert!(machine.function.is_resetting());
        assert_eq!(machine.config(COMMAND, 2), 0);
        machine.function.reset_done();
        assert_eq!(machine.get(STATUS), 0);
    }
}

#[test]
fn function_reset_of_an_untouched_device_is_done_at_once() {
    for reset in FUNCTION_RESETS {
        let mut machine = Machine::new(MSIX);
        assert_eq!(reset(&mut machine), []);
        machine.set(CONFIG_VECTOR, 0);
        assert_eq!(reset(&mut machine), [Action::ConfigVector { vector: None }]);
        assert!(!machine.function.is_resetting());
    }
}

#[test]
fn failure_is_reported_while_started() {
    let mut machine = Machine::new(MSIX);
    assert!(!machine.function.set_needs_reset());
    assert_eq!(machine.get(STATUS), 0);
    machine.start();
    assert!(machine.function.set_needs_reset());
    assert!(!machine.function.set_needs_reset());
    assert_eq!(machine.get(STATUS), 15 | NEEDS_RESET);
    // The driver does not clear it but by a reset.
    machine.quietly_set(STATUS, 15);
    assert_eq!(machine.get(STATUS), 15 | NEEDS_RESET);
    machine.set(STATUS, 0);
    assert_eq!(machine.get(STATUS), 15 | NEEDS_RESET);
    machine.function.reset_done();
    assert_eq!(machine.get(STATUS), 0);
}
