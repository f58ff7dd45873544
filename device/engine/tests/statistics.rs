// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters and latencies of each queue.

mod support;

use std::time::{Duration, Instant};

use ringbar_engine::Latencies;
use ringbar_engine::testing::{Notify, Op, wait_until};
use support::{Machine, variants};

/// Number of requests in a histogram.
fn count(latencies: &Latencies) -> u64 {
    latencies.buckets.iter().map(|bucket| bucket.count).sum()
}

#[test]
fn each_queue_has_counters_of_its_own() {
    for (poll, notify) in variants() {
        let mut machine = Machine::start(2, poll, notify);
        machine.drivers[0].ask(Op::Now, &[1]);
        machine.drivers[0].sum();
        for _ in 0..3 {
            machine.drivers[1].ask(Op::Later, &[1]);
        }
        let mut kept = machine.device.wait_kept(3);
        kept.pop().unwrap().complete(1);
        machine.drivers[1].sum();
        wait_until("the worker has counted", || {
            let [first, second] = &machine.counters.queues()[..] else {
                return false;
            };
            let requests = (first.counts.requests, second.counts.requests);
            requests == (1, 1) && (first.in_flight, second.in_flight) == (0, 2)
        });
        let sum = machine.counters.get();
        assert_eq!((sum.requests, sum.broken_queues), (2, 0));

        // Requests that a stop interrupts are not in flight any more.
        machine.engine.queues()[1].stop().unwrap();
        assert_eq!(machine.counters.queues()[1].in_flight, 0);
    }
}

#[test]
fn latency_is_from_the_available_to_the_used_ring() {
    let kept_for = Duration::from_millis(3);
    for (poll, notify) in variants() {
        let start = Instant::now();
        let mut machine = Machine::start(2, poll, notify);
        for _ in 0..3 {
            machine.drivers[0].ask(Op::Now, &[1]);
            machine.drivers[0].sum();
        }
        // No latency is kept for this one.
        machine.drivers[0].ask(Op::Slowly, &[1, 2]);
        machine.drivers[0].sum();
        machine.drivers[1].ask(Op::Later, &[1]);
        let kept = machine.device.wait_kept(1);
        let taken = Instant::now();
        while taken.elapsed() < kept_for {
            std::hint::spin_loop();
        }
        kept.into_iter().for_each(|request| request.complete(1));
        machine.drivers[1].sum();
        wait_until("the worker has counted", || {
            let queues = machine.counters.queues();
            (queues[0].counts.requests, queues[1].counts.requests) == (4, 1)
        });
        let all = start.elapsed();
        let queues = machine.counters.queues();
        let [now, later] = &queues[0].latencies[..] else {
            panic!("{queues:?}");
        };
        assert_eq!((count(now), count(later)), (3, 0));
        let [now, later] = &queues[1].latencies[..] else {
            panic!("{queues:?}");
        };
        assert_eq!((count(now), count(later)), (0, 1));
        assert!(later.sum >= kept_for && later.sum <= all, "{later:?}");
        assert!(later.buckets[0].upper_bound.unwrap() >= kept_for);
    }
}

/// The first of a batch and each 16th after it, and all that follow one that was kept.
#[test]
fn some_of_many_requests_are_measured() {
    let mut machine = Machine::start(1, Duration::ZERO, Notify::ByCall);
    let queue = machine.engine.queues().remove(0);
    let latencies = |machine: &Machine, operation: usize, requests| {
        wait_until("the worker has counted", || {
            machine.counters.get().requests == requests
        });
        count(&machine.counters.queues()[0].latencies[operation])
    };
    let stopped = queue.stop().unwrap();
    for _ in 0..20 {
        machine.drivers[0].put(Op::Now, &[1]);
    }
    machine.drivers[0].go_on(stopped);
    assert_eq!(latencies(&machine, 0, 20), 2);

    let stopped = queue.stop().unwrap();
    for _ in 0..20 {
        machine.drivers[0].put(Op::Later, &[1]);
    }
    machine.drivers[0].go_on(stopped);
    for request in machine.device.wait_kept(20) {
        request.complete(1);
    }
    assert_eq!(latencies(&machine, 1, 40), 20);
}
