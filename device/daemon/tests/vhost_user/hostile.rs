// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver that breaks the rules.

use crate::support::driver::{INDIRECT, Queue};
use crate::support::{Daemon, Desc, NEXT, Vmm, WRITE, desc};
use ringbar_spec::{Event, Opcode, QueueFault};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// Submits a chain without a valid place for a status.
fn provoke(queue: &mut Queue, table: &[Desc]) {
    queue.put_header(Opcode::Flush, 0, 0, 0);
    queue.put_table(0, table);
    queue.add(0);
    queue.kick();
}

fn broken(queue: u16, fault: QueueFault) -> Event {
    Event::QueueBroken { queue, fault }
}

#[test]
fn every_fault_is_reported_and_the_other_queues_go_on() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "6"]);
    let mut vmm = Vmm::start(daemon.socket(), 6);
    vmm.post_event_buffers(8);

    let at = vmm.io(0).header_at();
    provoke(vmm.io(0), &[desc(at, 32, NEXT, 0)]);
    assert_eq!(vmm.wait_event(), broken(2, QueueFault::Chain));

    let at = vmm.io(1).header_at();
    provoke(vmm.io(1), &[desc(at, 32, 0, 0)]);
    assert_eq!(vmm.wait_event(), broken(3, QueueFault::NoStatus));

    let at = vmm.io(2).header_at();
    provoke(
        vmm.io(2),
        &[desc(at, 32, NEXT, 1), desc(1 << 50, 16, WRITE, 0)],
    );
    assert_eq!(vmm.wait_event(), broken(4, QueueFault::Address));

    vmm.io(3).set_available(257);
    vmm.io(3).kick();
    assert_eq!(vmm.wait_event(), broken(5, QueueFault::Ring));

    vmm.io(4).add(256);
    vmm.io(4).kick();
    assert_eq!(vmm.wait_event(), broken(6, QueueFault::Ring));

    provoke(vmm.control(), &[desc(u64::MAX, 32, INDIRECT, 0)]);
    assert_eq!(vmm.wait_event(), broken(0, QueueFault::Address));

    assert_eq!(vmm.io(5).write(0, &[1; 100]).result, 100);
    daemon.wait_log("queue=0 fault=Address");
}

#[test]
fn events_wait_for_a_buffer() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    provoke(vmm.io(0), &[desc(0, 32, NEXT, 0)]);
    daemon.wait_log("driver broke a queue");
    provoke(vmm.io(1), &[desc(0, 32, 0, 0)]);
    daemon.wait_log("driver broke a queue");
    vmm.post_event_buffers(2);
    assert_eq!(vmm.wait_event(), broken(2, QueueFault::Chain));
    assert_eq!(vmm.wait_event(), broken(3, QueueFault::NoStatus));
}

#[test]
fn requests_before_the_bad_one_are_answered() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    vmm.post_event_buffers(1);
    let queue = vmm.io(0);
    queue.put_header(Opcode::Flush, 0, 0, 0);
    queue.put_table(
        0,
        &[
            desc(queue.header_at(), 32, NEXT, 1),
            desc(queue.status_at(), 16, WRITE, 0),
            desc(queue.header_at(), 32, 0, 0),
        ],
    );
    queue.add(0);
    queue.add(2);
    queue.add(0);
    queue.kick();
    assert_eq!(queue.wait_interrupt(), 1);
    assert_eq!(queue.take_used(), Some((0, 16)));
    assert_eq!(vmm.wait_event(), broken(2, QueueFault::NoStatus));
    assert_eq!(vmm.io(0).take_used(), None);
}

/// The monitor resets the device without a stop of its queues before.
#[test]
fn ho13_a_broken_queue_is_whole_after_a_reset_message() {
    let daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    vmm.post_event_buffers(2);
    provoke(vmm.io(0), &[desc(0, 32, 0, 0)]);
    assert_eq!(vmm.wait_event(), broken(2, QueueFault::NoStatus));
    vmm.frontend.reset_device().unwrap();
    vmm.start_device();
    assert_eq!(vmm.io(1).write(0, &[1; 10]).result, 10);
    assert_eq!(vmm.io(0).write(0, &[1; 10]).result, 10);
}

#[test]
fn a_ring_whose_size_is_no_power_of_two_is_a_broken_queue() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::connect(daemon.socket(), 2, VhostUserProtocolFeatures::all());
    vmm.configure(&[0; 4]);
    vmm.frontend.set_vring_num(2, 100).unwrap();
    vmm.enable();
    vmm.post_event_buffers(1);
    vmm.io(0).kick();
    assert_eq!(vmm.wait_event(), broken(2, QueueFault::Ring));
    let line = daemon.wait_log("no power of two");
    assert!(line.contains("size=100"), "{line}");
    assert_eq!(vmm.io(1).write(0, &[1; 10]).result, 10);
}

#[test]
fn events_from_before_a_reset_are_not_delivered() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    provoke(vmm.io(0), &[desc(0, 32, 0, 0)]);
    daemon.wait_log("driver broke a queue");
    vmm.stop_device();
    vmm.start_device();
    vmm.post_event_buffers(2);
    provoke(vmm.io(1), &[desc(0, 32, NEXT, 0)]);
    assert_eq!(vmm.wait_event(), broken(3, QueueFault::Chain));
}

#[test]
fn bad_event_buffers_break_the_event_queue_only() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "2"]);
    let mut vmm = Vmm::start(daemon.socket(), 2);
    let queue = vmm.events();
    queue.put_table(0, &[desc(queue.scratch(), 31, WRITE, 0)]);
    queue.add(0);
    queue.kick();
    provoke(vmm.io(0), &[desc(0, 32, 0, 0)]);
    daemon.wait_log("queue=1 fault=NoAnswer");
    assert_eq!(vmm.io(1).write(0, &[1; 10]).result, 10);
}

#[test]
fn a_flood_of_faults_does_not_flood_the_log() {
    let mut daemon = Daemon::start(&["--size", "1M", "--queues", "1"]);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    for _ in 0..100 {
        vmm.post_event_buffers(1);
        provoke(vmm.io(0), &[desc(0, 32, 0, 0)]);
        assert_eq!(vmm.wait_event(), broken(2, QueueFault::NoStatus));
        vmm.stop_device();
        vmm.start_device();
    }
    drop(vmm);
    let line = daemon.wait_log("done requests=");
    assert!(line.contains("broken_queues=100"), "{line}");
    daemon.wait_log("repeated messages were not logged");
    daemon.assert_ended_well();
}
