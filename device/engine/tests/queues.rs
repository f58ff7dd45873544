// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the engine promises of queues, over a transport without messages.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ringbar_engine::testing::{Driver, Notify, Op, TIMEOUT, asleep, wait_until};
use ringbar_engine::{QueueSetup, StoppedAt};
use support::{Machine, variants};

const POLL: Duration = Duration::from_micros(200);

fn machine() -> Machine {
    Machine::start(1, POLL, Notify::ByDescriptor)
}

#[test]
fn requests_complete_in_any_order_on_any_thread() {
    for (poll, notify) in variants() {
        let mut machine = Machine::start(1, poll, notify);
        let driver = &mut machine.drivers[0];
        for byte in 0..10 {
            driver.ask(Op::Later, &[byte]);
        }
        driver.ask(Op::Now, &[99]);
        assert_eq!(driver.sum(), (10, 99));
        let kept = machine.device.wait_kept(10);
        thread::spawn(move || {
            for (number, request) in kept.into_iter().enumerate().rev() {
                request.complete(100 + number as u8);
            }
        });
        for number in (0..10).rev() {
            assert_eq!(driver.sum(), (number, 100 + number as u8));
        }
        driver.ask(Op::Later, &[]);
        for request in machine.device.wait_kept(1) {
            request.complete(1);
        }
        // Before the driver takes the entry, after which it would need no interrupt.
        driver.wait_interrupt();
        assert_eq!(driver.sum(), (11, 1));
    }
}

#[test]
fn a_request_that_is_dropped_is_answered() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Lose, &[1]);
    assert_eq!(driver.sum(), (0, u8::MAX));
    driver.ask(Op::Later, &[1]);
    drop(machine.device.wait_kept(1));
    assert_eq!(driver.sum(), (1, u8::MAX));
    driver.ask(Op::Now, &[1, 2]);
    assert_eq!(driver.sum(), (2, 3));
}

#[test]
fn long_requests_give_way_and_go_on() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Slowly, &[1, 2, 3, 4]);
    driver.ask(Op::Now, &[9]);
    assert_eq!(driver.sum(), (0, 10));
    assert_eq!(driver.sum(), (1, 9));
    assert!(machine.device.steps.load(Ordering::Relaxed) >= 4);
}

/// A stop during a request of many steps waits for one of them, and the request is done when
/// the queue goes on.
#[test]
fn ho4_a_stop_waits_for_one_step() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    let ((reached, reach), (go_on, goes_on)) = (channel(), channel());
    machine.device.on_step(move |step| {
        if step == 3 {
            reached.send(()).unwrap();
            goes_on.recv_timeout(TIMEOUT).unwrap();
        }
    });
    driver.ask(Op::Slowly, &[1; 50]);
    driver.ask(Op::Now, &[7]);
    reach.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&driver.control);
    let stop = asleep(move || control.stop());
    go_on.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    let steps = machine.device.steps.load(Ordering::Relaxed);
    assert_eq!(steps, 3);
    assert_eq!(stopped, StoppedAt::default());
    assert_eq!(driver.used(), 0);
    driver.go_on(stopped);
    assert_eq!(driver.sum(), (0, 50));
    assert_eq!(driver.sum(), (1, 7));
}

/// A stop during a batch waits for the request that the worker is at.
#[test]
fn ho4_a_stop_waits_for_one_request() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    let ((reached, reach), (go_on, goes_on)) = (channel(), channel());
    machine.device.on_step(move |step| {
        if step == 3 {
            reached.send(()).unwrap();
            goes_on.recv_timeout(TIMEOUT).unwrap();
        }
    });
    for byte in 0..20 {
        driver.put(Op::OneStep, &[byte]);
    }
    driver.ring();
    reach.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&driver.control);
    let stop = asleep(move || control.stop());
    go_on.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    let expected = StoppedAt {
        next_avail: 3,
        next_used: 3,
    };
    assert_eq!(stopped, expected);
    driver.go_on(stopped);
    for byte in 0..20 {
        assert_eq!(driver.sum(), (byte.into(), byte));
    }
}

/// An answer of an earlier run of the queue is none for a request that was submitted again.
#[test]
fn answers_of_an_earlier_run_are_not_taken() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Later, &[]);
    driver.ask(Op::Now, &[9]);
    assert_eq!(driver.sum(), (1, 9));
    let early = machine.device.wait_kept(1);
    let stopped = driver.control.stop().unwrap();
    driver.go_on(stopped);
    let late = machine.device.wait_kept(1);
    for request in early {
        request.complete(1);
    }
    // The worker has seen that one when this is answered.
    driver.ask(Op::Now, &[8]);
    assert_eq!(driver.sum(), (2, 8));
    for request in late {
        request.complete(2);
    }
    assert_eq!(driver.sum(), (0, 2));
}

/// A stop does not wait for the answers of requests that were completed elsewhere, however many
/// there are.
#[test]
fn ho4_a_stop_waits_for_one_answer() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    for byte in 0..20 {
        driver.ask(Op::Later, &[byte]);
    }
    let kept = machine.device.wait_kept(20);
    // The worker is at something else until all of them are completed.
    let ((reached, reach), (go_on, goes_on)) = (channel(), channel());
    let goes_on = Arc::new(std::sync::Mutex::new(goes_on));
    let pause = move || {
        reached.send(()).unwrap();
        goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
    };
    let pause_answer = pause.clone();
    machine.device.on_step(move |_| pause());
    machine
        .device
        .on_answer(move |number| (number == 2).then(&pause_answer).unwrap_or_default());
    driver.ask(Op::OneStep, &[]);
    reach.recv_timeout(TIMEOUT).unwrap();
    for request in kept {
        request.complete(1);
    }
    go_on.send(()).unwrap();
    // The first answer is that of the step.
    reach.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&driver.control);
    let stop = asleep(move || control.stop());
    go_on.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    assert_eq!(stopped.next_used, 2);
    driver.go_on(stopped);
    for request in machine.device.wait_kept(19) {
        request.complete(2);
    }
    wait_until("all are used", || driver.used() == 21);
}

/// Takes time, as work does.
fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Requests that were completed elsewhere, however many, have their worker for one turn only.
#[test]
fn answers_give_way_to_other_queues() {
    const COUNT: u16 = 20;
    // Polled for so long that an answer would not come by itself.
    for poll in [Duration::ZERO, Duration::from_secs(60)] {
        let mut machine = Machine::start(2, poll, Notify::ByDescriptor);
        for _ in 0..COUNT {
            machine.drivers[0].ask(Op::Later, &[1]);
        }
        let kept = machine.device.wait_kept(COUNT.into());
        let ((reached, reach), (go_on, goes_on)) = (channel(), channel());
        let goes_on = Arc::new(std::sync::Mutex::new(goes_on));
        let pause = move || {
            reached.send(()).unwrap();
            goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        };
        let pause_answer = pause.clone();
        let answers = Arc::<AtomicU32>::default();
        let (sender, answers_before) = channel();
        let count = Arc::clone(&answers);
        machine.device.on_step(move |step| match step {
            1 => pause(),
            _ => sender.send(count.load(Ordering::Relaxed)).unwrap(),
        });
        machine.device.on_answer(move |number| {
            answers.store(number, Ordering::Relaxed);
            match number {
                2 => pause_answer(),
                // The other queue has nothing more, and the worker does not fall asleep.
                3..6 => spin(Duration::from_millis(1)),
                _ => {}
            }
        });
        // The worker is at something else until all of them are completed.
        machine.drivers[0].ask(Op::OneStep, &[]);
        reach.recv_timeout(TIMEOUT).unwrap();
        for request in kept {
            request.complete(1);
        }
        go_on.send(()).unwrap();
        // The first answer is that of the step.
        reach.recv_timeout(TIMEOUT).unwrap();
        machine.drivers[1].ask(Op::OneStep, &[]);
        // Longer than a turn.
        spin(Duration::from_millis(1));
        go_on.send(()).unwrap();
        assert_eq!(answers_before.recv_timeout(TIMEOUT).unwrap(), 2);
        for (driver, expected) in machine.drivers.iter().zip([COUNT + 1, 1]) {
            wait_until("all are used", || driver.used() == expected);
        }
    }
}

#[test]
fn resumed_requests_are_submitted_again() {
    for (poll, notify) in variants() {
        let mut machine = Machine::start(1, poll, notify);
        let driver = &mut machine.drivers[0];
        for byte in 0..Driver::SIZE as u8 / 2 {
            driver.ask(Op::InTwo, &[byte, 1]);
        }
        let kept = machine.device.wait_kept(usize::from(Driver::SIZE) / 2);
        assert_eq!(driver.used(), 0);
        thread::spawn(move || kept.into_iter().rev().for_each(|request| request.resume()));
        for byte in (0..Driver::SIZE as u8 / 2).rev() {
            assert_eq!(driver.sum(), (byte.into(), byte + 1));
        }
    }
}

/// A request that is resumed is no other's, and is submitted anew after a stop.
#[test]
fn ho4_a_stop_does_not_wait_for_resumed_requests() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::InTwo, &[1]);
    driver.ask(Op::InTwo, &[2]);
    driver.ask(Op::InTwo, &[3]);
    let kept = machine.device.wait_kept(3);
    let ((reached, reach), (go_on, goes_on)) = (channel(), channel());
    machine.device.on_step(move |step| {
        if step <= 2 {
            reached.send(()).unwrap();
            goes_on.recv_timeout(TIMEOUT).unwrap();
        }
    });
    driver.ask(Op::OneStep, &[]);
    reach.recv_timeout(TIMEOUT).unwrap();
    for request in kept {
        request.resume();
    }
    // The worker takes all three, and is at the first when the stop comes.
    go_on.send(()).unwrap();
    reach.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&driver.control);
    let stop = asleep(move || control.stop());
    go_on.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    let expected = StoppedAt {
        next_avail: 4,
        next_used: 2,
    };
    assert_eq!(stopped, expected);
    assert_eq!(driver.sum(), (3, 0));
    assert_eq!(driver.sum(), (0, 1));
    driver.go_on(stopped);
    // Anew: neither is taken for one that was resumed.
    for (number, request) in (1..).zip(machine.device.wait_kept(2)) {
        assert_eq!(driver.used(), 1 + number);
        request.resume();
        assert_eq!(driver.sum(), (number, number as u8 + 1));
    }
}

/// A request that 65,536 others have overtaken is not taken for the last one, though the index
/// of the ring says so.
#[test]
fn indices_of_the_ring_wrap_around_a_deferred_request() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.put_request_in(0, &[Op::Later as u8], 1);
    driver.ring();
    let kept = machine.device.wait_kept(1);
    for _ in 0..=u16::MAX {
        driver.put_request_in(1, &[Op::Now as u8, 1], 1);
        driver.ring();
        assert_eq!(driver.sum(), (1, 1));
    }
    let stopped = driver.control.stop().unwrap();
    assert_eq!(stopped.next_avail.wrapping_sub(stopped.next_used), 1);
    drop(kept);
    driver.go_on(stopped);
    for request in machine.device.wait_kept(1) {
        request.complete(4);
    }
    assert_eq!(driver.sum(), (0, 4));
}

/// Requests that the device has kept do not change where a queue broke: it is not whole where it
/// goes on.
#[test]
fn a_queue_that_broke_with_requests_in_flight_stays_broken() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Later, &[]);
    let _kept = machine.device.wait_kept(1);
    driver.put_head(Driver::SIZE);
    driver.ring();
    wait_until("the queue is broken", || {
        machine.counters.get().broken_queues == 1
    });
    let stopped = driver.control.stop().unwrap();
    assert_ne!(stopped.next_avail, 0);
    driver.go_on(stopped);
    driver.ask(Op::Now, &[]);
    // The worker has seen the doorbell when it answers this.
    driver.control.set_doorbell(None);
    assert_eq!(driver.used(), 0);
}

/// Index 0 means that the driver has reset the device, and the index wraps.
#[test]
fn a_queue_that_broke_where_the_index_wraps_stays_broken() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.control.stop().unwrap();
    driver.skip_to(u16::MAX - 1);
    driver.go_on(StoppedAt {
        next_avail: u16::MAX - 1,
        next_used: u16::MAX - 1,
    });
    driver.ask(Op::Now, &[1]);
    driver.sum();
    driver.put_head(Driver::SIZE);
    driver.ring();
    wait_until("the queue is broken", || {
        machine.counters.get().broken_queues == 1
    });
    let stopped = driver.control.stop().unwrap();
    driver.go_on(stopped);
    driver.ask(Op::Now, &[]);
    // The worker has seen the doorbell when it answers this.
    driver.control.set_doorbell(None);
    assert_eq!(driver.used(), u16::MAX);
    assert_eq!(machine.counters.get().broken_queues, 1);
}

/// Nobody is left to ask once the workers have ended.
#[test]
fn a_queue_without_a_worker_is_nowhere() {
    let machine = machine();
    drop(machine.engine);
    assert_eq!(machine.drivers[0].control.stop(), None);
}

#[test]
fn a_disabled_queue_is_not_processed() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.control.enable(false);
    driver.ask(Op::Now, &[1]);
    // The worker has seen the doorbell when it answers the second of these.
    driver.control.set_doorbell(None);
    driver.connect();
    assert_eq!(driver.used(), 0);
    driver.control.enable(true);
    assert_eq!(driver.sum(), (0, 1));
}

#[test]
fn impossible_setups_break_the_queue() {
    let machine = machine();
    let driver = &machine.drivers[0];
    for (number, change) in [
        (|setup: &mut QueueSetup| setup.size = 48) as fn(&mut QueueSetup),
        |setup| setup.size = 0,
        |setup| setup.desc_table = 3,
        |setup| setup.used_ring = 1 << 40,
        |setup| setup.avail_ring = u64::MAX - 1,
    ]
    .into_iter()
    .enumerate()
    {
        let mut setup = driver.setup();
        change(&mut setup);
        driver.control.start(setup);
        driver.ring();
        wait_until("the queue is broken", || {
            machine.counters.get().broken_queues == number as u64 + 1
        });
    }
}

/// An interrupt that is delayed goes out before its queue is disabled.
#[test]
fn ho13_a_delayed_interrupt_comes_before_a_disabled_queue() {
    // Polled for so long that the interrupt would not come by itself.
    let mut machine = Machine::start(1, Duration::from_secs(60), Notify::ByDescriptor);
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Now, &[1]);
    wait_until("the request is used", || driver.used() == 1);
    driver.control.enable(false);
    assert!(driver.is_interrupted());
}

#[test]
fn interrupts_without_a_target_are_not_lost() {
    let mut machine = Machine::start(1, Duration::ZERO, Notify::ByDescriptor);
    let driver = &mut machine.drivers[0];
    driver.control.set_interrupt(None);
    driver.ask(Op::Now, &[1]);
    wait_until("the request is used", || driver.used() == 1);
    // The interrupt comes after the used entry.
    driver.control.stop().unwrap();
    assert!(!driver.is_interrupted());
    driver.connect();
    assert!(driver.is_interrupted());
}

/// Without memory nothing is processed, and with it nothing is missing.
#[test]
fn queues_wait_for_memory() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    machine.engine.replace_memory(None);
    driver.ask(Op::Now, &[4]);
    // The worker has seen the doorbell when it answers the second of these.
    driver.control.set_doorbell(None);
    driver.connect();
    assert_eq!(driver.used(), 0);
    machine.engine.replace_memory(Some(machine.mem.clone()));
    assert_eq!(driver.sum(), (0, 4));
}

/// The device keeps no more requests than a driver can have in flight.
#[test]
fn more_requests_in_flight_than_entries_break_the_queue() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    for round in 0..=Driver::SIZE {
        driver.ask(Op::Later, &[round as u8]);
        if round < Driver::SIZE {
            wait_until("the request is kept", || {
                machine.device.kept() > usize::from(round)
            });
        }
    }
    wait_until("the queue is broken", || {
        machine.counters.get().broken_queues == 1
    });
}

/// A device may answer another request than the one that it is given.
#[test]
fn requests_can_be_exchanged() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Later, &[1]);
    wait_until("the request is kept", || machine.device.kept() == 1);
    driver.ask(Op::Exchange, &[2]);
    assert_eq!(driver.sum(), (0, 77));
    for request in machine.device.wait_kept(1) {
        request.complete(78);
    }
    assert_eq!(driver.sum(), (1, 78));
}

/// A request that was resubmitted and yields is not taken for the last one of the ring.
#[test]
fn a_resubmitted_request_that_yields_survives_another_stop() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::LaterSlowly, &[1, 2, 3]);
    driver.ask(Op::Now, &[50]);
    assert_eq!(driver.sum(), (1, 50));
    let kept = machine.device.wait_kept(1);
    let stopped = driver.control.stop().unwrap();
    drop(kept);
    // Submitted again, it takes many steps, and is stopped within.
    let ((reached, reach), (go, goes)) = (channel(), channel());
    machine.device.on_step(move |step| {
        if step == 2 {
            reached.send(()).unwrap();
            goes.recv_timeout(TIMEOUT).unwrap();
        }
    });
    driver.go_on(stopped);
    reach.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&driver.control);
    let stop = asleep(move || control.stop());
    go.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    let expected = StoppedAt {
        next_avail: 2,
        next_used: 1,
    };
    assert_eq!(stopped, expected);
    driver.go_on(stopped);
    assert_eq!(driver.sum(), (0, 6));
    assert_eq!(driver.used(), 2);
}

/// A message about one queue does not wait for the others of its worker.
#[test]
fn ho4_a_stop_does_not_wait_for_other_queues() {
    const QUEUES: u16 = 8;
    let mut machine = Machine::start(QUEUES, POLL, Notify::ByDescriptor);
    let ((begun, begin), (go, goes)) = (channel(), channel());
    machine.device.on_step(move |_| {
        // The receiver goes when the test is over.
        let _ = begun.send(());
        let _ = goes.recv_timeout(TIMEOUT);
    });
    for driver in &mut machine.drivers {
        driver.ask(Op::Slowly, &[1; 50]);
    }
    for driver in &machine.drivers {
        begin.recv_timeout(TIMEOUT).unwrap();
        let control = Arc::clone(&driver.control);
        let stop = asleep(move || control.stop());
        // The step that the worker is at, and no other.
        go.send(()).unwrap();
        stop.join().unwrap().unwrap();
    }
    assert_eq!(
        machine.device.steps.load(Ordering::Relaxed),
        u32::from(QUEUES)
    );
    drop(go);
}

/// Requests that are completed while there is no guest memory are answered when there is.
#[test]
fn completions_wait_for_memory() {
    let mut machine = machine();
    let driver = &mut machine.drivers[0];
    driver.ask(Op::Later, &[1]);
    let kept = machine.device.wait_kept(1);
    machine.engine.replace_memory(None);
    for request in kept {
        request.complete(5);
    }
    // The worker has read its mail when it answers.
    driver.control.set_doorbell(None);
    assert_eq!(driver.used(), 0);
    machine.engine.replace_memory(Some(machine.mem.clone()));
    assert_eq!(driver.sum(), (0, 5));
}

/// The indices survive a setup that no ring can have.
#[test]
fn a_setup_that_is_corrected_later_keeps_its_place() {
    let machine = machine();
    let driver = &machine.drivers[0];
    let mut setup = driver.setup();
    setup.size = 0;
    (setup.next_avail, setup.next_used) = (7, 7);
    driver.control.start(setup);
    let expected = StoppedAt {
        next_avail: 7,
        next_used: 7,
    };
    assert_eq!(driver.control.stop(), Some(expected));
}
