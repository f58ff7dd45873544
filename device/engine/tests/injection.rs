// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults of queues on demand: what the driver sees of each, and that they end.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringbar_engine::injection::{FaultId, FaultInjector, UsedFault, Waker};
use ringbar_engine::testing::{Driver, Op, asleep, wait_until};
use ringbar_engine::{Injection, StoppedAt};
use support::{Machine, variants};

/// Longer than a test takes, unless it is about to fail.
const LONG: Duration = Duration::from_secs(30);

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Plan {
    stalls: bool,
    used: Option<UsedFault>,
    drops_interrupts: bool,
    holds_stops: Option<Duration>,
}

#[derive(Default)]
struct Faults {
    is_active: Arc<AtomicBool>,
    plan: Mutex<Plan>,
    /// Number of the present plan; a fault persists until the next one.
    id: AtomicU64,
    waker: Mutex<Option<Waker>>,
    /// Number of occasions of any kind.
    asked: AtomicU64,
    /// How often a worker asked whether a fault persists.
    polled: AtomicU64,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faults")
    }
}

impl Faults {
    fn set(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
        self.id.fetch_add(1, Ordering::SeqCst);
        self.is_active
            .store(plan != Plan::default(), Ordering::SeqCst);
        self.waker.lock().unwrap().as_ref().unwrap()();
    }

    fn end(&self) {
        self.set(Plan::default());
    }

    fn plan(&self) -> (FaultId, Plan) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan.lock().unwrap();
        (self.id.load(Ordering::SeqCst), *plan)
    }
}

impl FaultInjector for Faults {
    fn stall(&self, _queue: u16) -> Option<FaultId> {
        let (id, plan) = self.plan();
        plan.stalls.then_some(id)
    }

    fn used(&self, _queue: u16) -> Option<UsedFault> {
        self.plan().1.used
    }

    fn drops_interrupt(&self, _queue: u16) -> bool {
        self.plan().1.drops_interrupts
    }

    fn hold_stop(&self, _queue: u16) -> Option<(FaultId, Duration)> {
        let (id, plan) = self.plan();
        plan.holds_stops.map(|time| (id, time))
    }

    fn persists(&self, fault: FaultId) -> bool {
        self.polled.fetch_add(1, Ordering::SeqCst);
        fault == self.id.load(Ordering::SeqCst)
    }

    fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap() = Some(waker);
    }
}

/// Runs `test` with each way to notify, with and without polling.
fn each(test: impl Fn(Machine, &Faults)) {
    for (poll, notify) in variants() {
        let faults = Arc::<Faults>::default();
        let injector = Arc::clone(&faults) as Arc<dyn FaultInjector>;
        let injection = Injection::new(Arc::clone(&faults.is_active), injector);
        test(
            Machine::start_with_faults(1, poll, notify, injection),
            &faults,
        );
    }
}

#[test]
fn a_queue_without_faults_asks_for_none() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        driver.ask(Op::Now, &[1, 2]);
        driver.wait_interrupt();
        assert_eq!(driver.sum(), (0, 3));
        driver.control.stop().unwrap();
        assert_eq!(faults.asked.load(Ordering::SeqCst), 0);
    });
}

/// A stalled queue takes no entry, whatever the driver does, and its worker sleeps without asking
/// for the doorbell. It goes on when the fault ends, without one.
#[test]
fn a_stalled_queue_goes_on_when_the_fault_ends() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        driver.ask(Op::Now, &[1]);
        driver.wait_interrupt();
        assert_eq!(driver.sum(), (0, 1));
        wait_until("the worker sleeps", || driver.asks_for_bell());
        faults.set(Plan {
            stalls: true,
            ..Plan::default()
        });
        driver.ask(Op::Now, &[2]);
        wait_until("the queue stalls", || {
            faults.asked.load(Ordering::SeqCst) > 0
        });
        for _ in 0..3 {
            driver.ring();
        }
        // Answered by the worker, which has seen the doorbell by then or sees it again.
        machine.engine.replace_memory(Some(machine.mem.clone()));
        assert_eq!(driver.used(), 1);
        assert!(!driver.is_interrupted());
        // Nothing happens for a while: a worker that does not sleep asks all the time.
        let before = faults.polled.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        let polled = faults.polled.load(Ordering::SeqCst) - before;
        assert!(
            polled < 100,
            "the worker does not sleep: asked {polled} times"
        );
        let stalled = faults.asked.load(Ordering::SeqCst);
        assert_eq!(stalled, 1, "an entry was counted twice");
        faults.end();
        driver.wait_interrupt();
        assert_eq!(driver.sum(), (1, 2));
        driver.ask(Op::Now, &[3]);
        assert_eq!(driver.sum(), (2, 3));
    });
}

/// Also with nothing to do but to sleep, many times.
#[test]
fn the_end_of_a_stall_is_never_missed() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        for round in 0..200 {
            faults.set(Plan {
                stalls: true,
                ..Plan::default()
            });
            driver.ask(Op::Now, &[7]);
            faults.end();
            assert_eq!(driver.sum(), (round % (Driver::SIZE / 2), 7));
        }
    });
}

#[test]
fn a_stop_ends_a_stall_and_loses_nothing() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        faults.set(Plan {
            stalls: true,
            ..Plan::default()
        });
        driver.ask(Op::Now, &[1]);
        wait_until("the queue stalls", || {
            faults.asked.load(Ordering::SeqCst) > 0
        });
        let stopped = driver.control.stop().unwrap();
        assert_eq!(stopped, StoppedAt::default());
        *faults.plan.lock().unwrap() = Plan::default();
        driver.go_on(stopped);
        assert_eq!(driver.sum(), (0, 1));
    });
}

#[test]
fn an_interrupt_is_lost_and_the_next_one_is_not() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        faults.set(Plan {
            drops_interrupts: true,
            ..Plan::default()
        });
        driver.ask(Op::Now, &[1]);
        wait_until("the worker sleeps", || driver.asks_for_bell());
        assert_eq!(driver.used(), 1);
        assert!(!driver.is_interrupted());
        faults.end();
        assert_eq!(driver.sum(), (0, 1));
        driver.ask(Op::Now, &[2]);
        driver.wait_interrupt();
        assert_eq!(driver.sum(), (1, 2));
    });
}

#[test]
fn a_used_entry_comes_twice() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        faults.set(Plan {
            used: Some(UsedFault::Duplicate),
            ..Plan::default()
        });
        driver.ask(Op::Now, &[1, 1]);
        driver.wait_interrupt();
        assert_eq!([driver.sum(), driver.sum()], [(0, 2), (0, 2)]);
        faults.end();
        driver.ask(Op::Now, &[3]);
        assert_eq!(driver.sum(), (1, 3));
    });
}

/// The driver is interrupted for it, at each place in the ring.
#[test]
fn a_used_entry_names_no_descriptor() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        for round in 0..Driver::SIZE + 2 {
            let is_bad = round % 2 == 0;
            faults.set(Plan {
                used: is_bad.then_some(UsedFault::BadId),
                ..Plan::default()
            });
            driver.ask(Op::Now, &[1]);
            driver.wait_interrupt();
            assert_eq!(driver.used(), round + 1);
            let id = driver.wait_id();
            let own = 2 * u32::from(round % (Driver::SIZE / 2));
            assert_eq!(id, if is_bad { u32::MAX } else { own });
        }
    });
}

#[test]
fn a_queue_goes_on_until_a_held_stop() {
    each(|mut machine, faults| {
        let driver = &mut machine.drivers[0];
        let time = Duration::from_millis(30);
        faults.set(Plan {
            holds_stops: Some(time),
            ..Plan::default()
        });
        let start = Instant::now();
        let stopping = driver.control.begin_stop();
        driver.ask(Op::Now, &[5]);
        assert_eq!(driver.sum(), (0, 5));
        let stopped = stopping.wait().unwrap();
        assert!(start.elapsed() >= time);
        let expected = StoppedAt {
            next_avail: 1,
            next_used: 1,
        };
        assert_eq!(stopped, expected);
        // It is no stop of a queue that has stopped.
        let asked = faults.asked.load(Ordering::SeqCst);
        driver.control.stop().unwrap();
        assert_eq!(faults.asked.load(Ordering::SeqCst), asked);
        faults.end();
        driver.go_on(stopped);
        driver.ask(Op::Now, &[6]);
        assert_eq!(driver.sum(), (1, 6));
    });
}

#[test]
fn a_held_stop_ends_with_the_fault_with_another_change_and_with_the_worker() {
    each(|mut machine, faults| {
        let hold = Plan {
            holds_stops: Some(LONG),
            ..Plan::default()
        };
        let start = Instant::now();
        let driver = &mut machine.drivers[0];
        faults.set(hold);
        let control = Arc::clone(&driver.control);
        let stop = asleep(move || control.stop());
        faults.end();
        assert_eq!(stop.join().unwrap(), Some(StoppedAt::default()));

        driver.start();
        faults.set(hold);
        let stopping = driver.control.begin_stop();
        driver.control.enable(false);
        assert_eq!(stopping.wait(), Some(StoppedAt::default()));

        driver.start();
        let stopping = driver.control.begin_stop();
        drop(machine);
        assert_eq!(stopping.wait(), None);
        assert!(start.elapsed() < LONG, "a stop was held to its end");
    });
}
