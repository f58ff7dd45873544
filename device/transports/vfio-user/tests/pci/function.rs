// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the conformance suite does not ask of a transport: the PCI function itself, its shared
//! region, INTx, and how long accesses to registers take.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::{BUS_MASTER, MEMORY, Machine, NOTIFY, event, is_raised};
use ringbar_engine::model::SharedFile;
use ringbar_engine::testing::{Adder, Op, Rings, TIMEOUT, wait_until};
use ringbar_vfio_user::Interrupts;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;

/// Offset of the interrupt status register within BAR 2.
const ISR: u64 = 0x1000;

/// Offsets within the common configuration (VIRTIO 1.3, 4.1.4.3).
const CONFIG_MSIX_VECTOR: u64 = 16;
const CONFIG_GENERATION: u64 = 21;

/// A device with `queues` queues that runs, and its queues.
fn start(queues: u16, interrupts: Interrupts) -> (Arc<Adder>, Machine, Vec<Rings>) {
    let device = Adder::new(queues);
    let machine = Machine::connect(Arc::clone(&device), interrupts, Duration::ZERO);
    let rings = run(&machine, queues);
    (device, machine, rings)
}

fn run(machine: &Machine, queues: u16) -> Vec<Rings> {
    let rings = |queue| Rings::new(machine.memory.clone(), queue);
    let mut rings: Vec<_> = (0..usize::from(queues)).map(rings).collect();
    rings.iter_mut().for_each(Rings::clear);
    let setups: Vec<_> = rings.iter().map(Rings::setup).collect();
    machine.start(&setups);
    rings
}

/// Has a worker wait within a step: until something is sent, or its sender is gone. The receiver
/// hears that it waits.
fn hold_steps(device: &Adder) -> (Receiver<()>, Sender<()>) {
    let ((reached, reach), (go_on, goes_on)) = (channel(), channel::<()>());
    let goes_on = Mutex::new(goes_on);
    device.on_step(move |_| {
        let _ = reached.send(());
        let _ = goes_on.lock().map(|goes_on| goes_on.recv_timeout(TIMEOUT));
    });
    (reach, go_on)
}

fn read_byte(client: &mut Client, at: u64) -> u8 {
    let mut byte = [0];
    client
        .region_read(VFIO_PCI_BAR2_REGION_INDEX, at, &mut byte)
        .unwrap();
    byte[0]
}

#[test]
fn reset_is_reported_after_workers_have_stopped_and_blocks_no_access() {
    let (device, machine, mut rings) = start(1, Interrupts::MsiX { vectors: 1 });
    let (reach, go_on) = hold_steps(&device);
    rings[0].put_request(&[Op::OneStep as u8, 1], 1);
    machine.ring(0);
    reach.recv_timeout(TIMEOUT).unwrap();

    let begin = Instant::now();
    machine.begin_reset();
    let mut slowest = begin.elapsed();
    for _ in 0..200 {
        let begin = Instant::now();
        assert_ne!(machine.status(), 0, "a worker is within a step");
        slowest = slowest.max(begin.elapsed());
    }
    go_on.send(()).unwrap();
    wait_until("the device is reset", || machine.status() == 0);
    println!("slowest of 201 accesses while a worker is within a step: {slowest:?}");
    // One that waited for the worker would have taken all of TIMEOUT.
    assert!(slowest < TIMEOUT / 4, "{slowest:?}");
    machine.end();
}

#[test]
fn device_reset_and_unmap_are_answered_after_the_step_of_a_worker() {
    for unmaps in [false, true] {
        let (device, machine, mut rings) = start(1, Interrupts::MsiX { vectors: 1 });
        let (reach, go_on) = hold_steps(&device);
        rings[0].put_request(&[Op::OneStep as u8, 1], 1);
        machine.ring(0);
        reach.recv_timeout(TIMEOUT).unwrap();
        let is_released = AtomicBool::new(false);
        thread::scope(|scope| {
            let answered = scope.spawn(|| {
                match unmaps {
                    true => machine.unmap(),
                    false => machine.client().reset().unwrap(),
                }
                is_released.load(Ordering::SeqCst)
            });
            for _ in 0..1000 {
                assert!(!answered.is_finished(), "answered within the step");
                thread::yield_now();
            }
            is_released.store(true, Ordering::SeqCst);
            go_on.send(()).unwrap();
            assert!(answered.join().unwrap(), "answered within the step");
        });
        if !unmaps {
            assert_eq!(machine.status(), 0);
        }
        machine.end();
    }
}

#[test]
fn shared_region_is_the_file_mapped_or_not() {
    let file = File::from(memfd_create("shared", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, 0x5000).unwrap();
    file.write_all_at(b"behind", 0x1000).unwrap();
    let device = Adder::new(1);
    device.share(
        0x4000,
        SharedFile {
            file: file.try_clone().unwrap(),
            offset: 0x1000,
            length: 0x3000,
        },
    );
    let machine = Machine::connect(device, Interrupts::IntxOnly, Duration::ZERO);
    let mut client = machine.client();
    let region = client.region(VFIO_PCI_BAR4_REGION_INDEX).unwrap();
    assert_eq!(region.size, 0x4000);
    let offset = region.file_offset.as_ref().unwrap().start();
    assert_eq!((offset, region.sparse_areas.len()), (0x1000, 1));
    let area = region.sparse_areas[0];
    assert_eq!((area.offset, area.size), (0, 0x3000));

    let read = |client: &mut Client, at, length| {
        let mut data = vec![0xee; length];
        client
            .region_read(VFIO_PCI_BAR4_REGION_INDEX, at, &mut data)
            .unwrap();
        data
    };
    assert_eq!(read(&mut client, 0, 6), b"behind");
    client
        .region_write(VFIO_PCI_BAR4_REGION_INDEX, 0x2ffc, b"01234567")
        .unwrap();
    // What lies behind the part of the file reads as zero and is not written.
    assert_eq!(read(&mut client, 0x2ffc, 8), b"0123\0\0\0\0");
    assert_eq!(read(&mut client, 0x3ff8, 8), [0; 8]);
    let mut data = [0; 8];
    file.read_exact_at(&mut data, 0x3ffc).unwrap();
    assert_eq!(&data, b"0123\0\0\0\0");
}

#[test]
fn intx_is_raised_once_until_the_driver_has_handled_it() {
    let (_device, machine, mut rings) = start(2, Interrupts::IntxOnly);
    let line = event();
    machine.set_target(VFIO_PCI_INTX_IRQ_INDEX, 0, &line);
    let unmask = || {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        let mut client = machine.client();
        client
            .set_irqs(VFIO_PCI_INTX_IRQ_INDEX, flags, 0, 1, &[])
            .unwrap();
    };
    for round in 0..50u8 {
        for (queue, rings) in rings.iter_mut().enumerate() {
            rings.put_request(&[Op::Now as u8, round], 1);
            machine.ring(queue);
            wait_until("it interrupts", || is_raised(&line));
            // The client masks it; the driver handles it, and the client unmasks it.
            assert_eq!(read_byte(&mut machine.client(), ISR), 1);
            assert_eq!(rings.wait().1[0], round);
            unmask();
            assert!(!is_raised(&line), "it is low");
        }
    }
    // Two queues at a time, of which the driver sees one interrupt.
    for (queue, rings) in rings.iter_mut().enumerate() {
        rings.put_request(&[Op::Now as u8, 1], 1);
        machine.ring(queue);
        rings.wait();
    }
    wait_until("it interrupts", || is_raised(&line));
    assert!(!is_raised(&line), "it is masked");
    unmask();
    wait_until("it is still high", || is_raised(&line));
    machine.end();
}

#[test]
fn change_of_the_configuration_interrupts_by_its_vector() {
    let (device, machine, _rings) = start(1, Interrupts::MsiX { vectors: 2 });
    let targets: [OwnedFd; 2] = [event(), event()];
    for (vector, target) in (0..).zip(&targets) {
        machine.set_target(VFIO_PCI_MSIX_IRQ_INDEX, vector, target);
    }
    machine.write(CONFIG_MSIX_VECTOR, &1u16.to_le_bytes());
    let generation = || read_byte(&mut machine.client(), CONFIG_GENERATION);
    let before = generation();
    assert_eq!(generation(), before);
    device.announce_config(vec![7; 24]);
    assert!(is_raised(&targets[1]) && !is_raised(&targets[0]));
    assert_ne!(generation(), before);
    assert_eq!(machine.config(24), [7; 24]);
    machine.end();
}

#[test]
fn configuration_is_announced_to_a_driver_that_runs_only() {
    let device = Adder::new(1);
    let machine = Machine::connect(Arc::clone(&device), Interrupts::IntxOnly, Duration::ZERO);
    let line = event();
    machine.set_target(VFIO_PCI_INTX_IRQ_INDEX, 0, &line);
    let announce = |byte: u8| device.announce_config(vec![byte; 24]);
    announce(1);
    assert!(!is_raised(&line), "no driver would handle it");
    run(&machine, 1);
    announce(2);
    assert!(is_raised(&line));
    machine.reset();
    announce(3);
    assert!(!is_raised(&line));
    assert_eq!(read_byte(&mut machine.client(), ISR), 0);
    machine.end();
}

#[test]
fn vectors_of_the_driver_before_are_forgotten_by_a_reset() {
    let (device, machine, _rings) = start(1, Interrupts::MsiX { vectors: 2 });
    let former = event();
    machine.set_target(VFIO_PCI_MSIX_IRQ_INDEX, 1, &former);
    machine.write(CONFIG_MSIX_VECTOR, &1u16.to_le_bytes());
    device.announce_config(vec![1; 24]);
    assert!(is_raised(&former));
    // The next driver gives the configuration no vector.
    run(&machine, 1);
    device.announce_config(vec![2; 24]);
    assert!(!is_raised(&former));
    machine.end();
}

#[test]
fn queues_rest_while_bus_mastering_is_off() {
    let (_device, machine, mut rings) = start(1, Interrupts::MsiX { vectors: 1 });
    let rings = &mut rings[0];
    rings.put_request(&[Op::Now as u8, 1], 1);
    machine.ring(0);
    rings.wait();
    machine.set_command(MEMORY);
    rings.put_request(&[Op::Now as u8, 2], 1);
    let before = rings.contents();
    machine.ring(0);
    // Each is answered by the worker between two looks at its queues.
    for _ in 0..3 {
        machine.map_and_unmap_elsewhere();
    }
    assert!(rings.contents() == before, "it wrote to guest memory");
    machine.set_command(MEMORY | BUS_MASTER);
    assert_eq!(rings.wait().1[0], 2);
    machine.end();
}

/// A message that the device sends while bus mastering is taken away may be lost on its way.
#[test]
fn interrupts_are_raised_anew_with_bus_mastering() {
    let (_device, machine, mut rings) = start(1, Interrupts::MsiX { vectors: 1 });
    let target = event();
    machine.set_target(VFIO_PCI_MSIX_IRQ_INDEX, 0, &target);
    rings[0].put_request(&[Op::Now as u8, 1], 1);
    machine.ring(0);
    wait_until("it interrupts", || is_raised(&target));
    machine.set_command(MEMORY);
    is_raised(&target);
    machine.set_command(MEMORY | BUS_MASTER);
    assert!(is_raised(&target));
    machine.end();
}

#[test]
fn doorbells_of_queues_that_are_not_there_are_harmless() {
    let (_device, machine, mut rings) = start(1, Interrupts::MsiX { vectors: 1 });
    for queue in [1u16, 2, 1000, u16::MAX] {
        machine.write(NOTIFY, &queue.to_le_bytes());
    }
    rings[0].put_request(&[Op::Now as u8, 3], 1);
    machine.ring(0);
    assert_eq!(rings[0].wait().1[0], 3);
    machine.end();
}

#[test]
fn client_that_comes_after_another_finds_the_device_as_new() {
    let device = Adder::new(1);
    for round in 0..5 {
        let interrupts = Interrupts::MsiX { vectors: 1 };
        let machine = Machine::connect(Arc::clone(&device), interrupts, Duration::ZERO);
        assert_eq!(machine.status(), 0);
        let mut rings = run(&machine, 1);
        rings[0].put_request(&[Op::Now as u8, round], 1);
        machine.ring(0);
        assert_eq!(rings[0].wait().1[0], round);
        machine.end();
    }
}
