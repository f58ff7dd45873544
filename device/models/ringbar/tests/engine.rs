// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device in an engine: slow requests delay no other requests.

mod support;

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringbar_engine::model::{Mapped, Mapper};
use ringbar_engine::testing::{Driver, Notify, TIMEOUT, asleep};
use ringbar_engine::{DeviceModel, Engine, Options};
use ringbar_model::{Device, DeviceOptions, Session};
use ringbar_spec::{
    CONTROL_QUEUE, FIRST_IO_QUEUE, Opcode, RequestHeader, RequestStatus, StatusCode,
};
use ringbar_storage::{MemoryStorage, Storage};
use support::{CAPACITY, TestStorage, pattern};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// I/O queues, which share a worker.
const QUEUES: u16 = 2;

/// A device whose flushes send a message when they begin, and wait for one before they continue.
struct Machine {
    engine: Engine<Session, GuestMemoryMmap>,
    drivers: Vec<Driver>,
    begins: Receiver<()>,
    go_on: Sender<()>,
    storage: Arc<TestStorage>,
}

impl Machine {
    fn start() -> Self {
        let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
        let goes_on = Mutex::new(goes_on);
        let mut storage = TestStorage::new();
        storage.on_flush = Some(Box::new(move || {
            begun.send(()).unwrap();
            goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        }));
        let storage = Arc::new(storage);
        let (engine, drivers) = run(&session(Arc::clone(&storage) as Arc<dyn Storage>));
        Self {
            engine,
            drivers,
            begins,
            go_on,
            storage,
        }
    }

    fn io(&mut self, queue: u16) -> &mut Driver {
        &mut self.drivers[usize::from(FIRST_IO_QUEUE + queue)]
    }

    /// Waits until the storage flushes.
    #[track_caller]
    fn wait_flush(&self) {
        self.begins.recv_timeout(TIMEOUT).unwrap();
    }

    /// Lets this number of flushes of the storage continue, now or later.
    fn let_flush(&self, count: usize) {
        for _ in 0..count {
            self.go_on.send(()).unwrap();
        }
    }
}

fn session(storage: Arc<dyn Storage>) -> Arc<Session> {
    let options = DeviceOptions {
        io_queues: QUEUES,
        ..DeviceOptions::default()
    };
    let device = Device::new(storage, options).unwrap();
    Arc::new(Session::new(Arc::new(device)).unwrap())
}

/// An engine for the device, and a driver for each queue, which runs.
fn run(session: &Arc<Session>) -> (Engine<Session, GuestMemoryMmap>, Vec<Driver>) {
    let counters = Arc::clone(session.queue_counters());
    let poll = Duration::from_micros(200);
    let options = Options {
        poll,
        cpus: 2,
        record: None,
    };
    let engine = Engine::new(Arc::clone(session), counters, options).unwrap();
    let controls = engine.queues();
    let bytes = Driver::AREA * controls.len() as u64;
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
    engine.replace_memory(Some(mem.clone()));
    let mut drivers: Vec<_> = controls
        .into_iter()
        .enumerate()
        .map(|(index, control)| Driver::new(mem.clone(), index, control, Notify::ByDescriptor))
        .collect();
    drivers.iter_mut().for_each(Driver::start);
    (engine, drivers)
}

/// Submits a request without data.
fn submit(driver: &mut Driver, opcode: Opcode, flags: u16, length: u64, argument: u64) -> u16 {
    let mut header = RequestHeader::command(opcode, 0, length, argument);
    header.flags = flags;
    driver.submit(&header.to_bytes(), RequestStatus::SIZE as u64)
}

/// Waits for a request without data; returns its number with its status.
#[track_caller]
fn wait(driver: &mut Driver) -> (u16, RequestStatus) {
    let (number, output) = driver.wait();
    (number, status(&output, 0))
}

fn status(output: &[u8], at: usize) -> RequestStatus {
    let bytes = output[at..at + RequestStatus::SIZE].try_into().unwrap();
    RequestStatus::parse(&bytes).unwrap()
}

/// Reads the first bytes of the device.
#[track_caller]
fn read(driver: &mut Driver) {
    const LENGTH: usize = 40;
    let header = RequestHeader::command(Opcode::Read, 0, LENGTH as u64, 0);
    let number = driver.submit(&header.to_bytes(), (LENGTH + RequestStatus::SIZE) as u64);
    let (done, output) = driver.wait();
    assert_eq!(done, number);
    assert_eq!(output[..LENGTH], pattern(CAPACITY)[..LENGTH]);
    assert_eq!(status(&output, LENGTH).code, StatusCode::Ok);
}

const OK: RequestStatus = RequestStatus {
    code: StatusCode::Ok,
    result: 0,
};

#[test]
fn ho6_flush_blocks_neither_its_queue_nor_another() {
    let mut machine = Machine::start();
    let number = submit(machine.io(0), Opcode::Flush, 0, 0, 0);
    machine.wait_flush();
    // The storage flushes for as long as these take.
    for queue in [1, 0, 1] {
        read(machine.io(queue));
    }
    machine.let_flush(1);
    assert_eq!(wait(machine.io(0)), (number, OK));
}

/// Also where the flush belongs to a write or a command.
#[test]
fn ho6_durable_commands_block_no_queue() {
    let mut machine = Machine::start();
    let flags = RequestHeader::FUA;
    let number = submit(
        machine.io(0),
        Opcode::Fill,
        flags,
        100,
        u64::from_le_bytes([7; 8]),
    );
    machine.wait_flush();
    submit(machine.io(1), Opcode::Crc32c, 0, 100, 0);
    let (_, checksum) = wait(machine.io(1));
    assert_eq!(checksum.result, u64::from(crc32c::crc32c(&[7; 100])));
    assert_eq!(machine.io(0).used(), 0);
    machine.let_flush(1);
    let (done, status) = wait(machine.io(0));
    assert_eq!(
        (done, status.code, status.result),
        (number, StatusCode::Ok, 100)
    );
    assert!(machine.storage.unflushed().is_empty());
}

/// A copy that changes its own source is executed once, even if its queue is stopped during the
/// flush.
#[test]
fn a_copy_within_itself_is_not_executed_twice() {
    const LENGTH: u64 = 1000;
    let mut machine = Machine::start();
    let header = RequestHeader {
        flags: RequestHeader::FUA,
        ..RequestHeader::command(Opcode::Copy, 100, LENGTH, 0)
    };
    let driver = machine.io(0);
    driver.submit(&header.to_bytes(), RequestStatus::SIZE as u64);
    let control = Arc::clone(&driver.control);
    machine.wait_flush();
    let stop = asleep(move || control.stop());
    machine.let_flush(1);
    let stopped = stop.join().unwrap().unwrap();
    let driver = machine.io(0);
    driver.go_on(stopped);
    assert_eq!(wait(driver).1.result, LENGTH);
    let expected = &pattern(CAPACITY)[..LENGTH as usize];
    assert_eq!(
        &machine.storage.contents()[100..100 + LENGTH as usize],
        expected
    );
}

/// A stop during many slow flushes returns while the first one is in progress, and all flushes
/// complete after the queue is started again.
#[test]
fn ho4_a_stop_waits_for_no_flush() {
    const FLUSHES: u16 = 30;
    let mut machine = Machine::start();
    for _ in 0..FLUSHES {
        submit(machine.io(0), Opcode::Flush, 0, 0, 0);
    }
    machine.wait_flush();
    // The worker has taken all that came before this.
    read(machine.io(1));
    let driver = machine.io(0);
    let stopped = driver.control.stop().unwrap();
    assert_eq!(stopped.next_used, 0);
    driver.go_on(stopped);
    machine.let_flush(usize::from(FLUSHES) + 1);
    let mut done: Vec<_> = (0..FLUSHES).map(|_| wait(machine.io(0)).0).collect();
    done.sort_unstable();
    assert!(done.into_iter().eq(0..FLUSHES));
    assert_eq!(machine.io(0).used(), FLUSHES);
}

/// The end of a connection waits neither for a flush nor for requests in the rings.
#[test]
fn ho5_the_end_waits_for_no_flush() {
    let mut machine = Machine::start();
    for _ in 0..10 {
        submit(machine.io(0), Opcode::Flush, 0, 0, 0);
        submit(machine.io(0), Opcode::Copy, 0, CAPACITY / 2, CAPACITY / 2);
    }
    machine.wait_flush();
    let Machine {
        engine,
        drivers,
        go_on,
        ..
    } = machine;
    drop(engine);
    assert_eq!(drivers[usize::from(FIRST_IO_QUEUE)].control.stop(), None);
    go_on.send(()).unwrap();
}

/// A command of many steps that is stopped starts again from its first step.
#[test]
fn ho4_stopped_command_completes_after_the_restart() {
    let mut machine = Machine::start();
    let word = u64::from_le_bytes([9; 8]);
    for _ in 0..20 {
        let length = CAPACITY - 1000;
        let number = submit(machine.io(0), Opcode::Fill, 0, length, word);
        let driver = machine.io(0);
        let stopped = driver.control.stop().unwrap();
        driver.go_on(stopped);
        let (done, status) = wait(driver);
        assert_eq!((done, status.result), (number, length));
    }
    assert!(
        machine.storage.contents()[..CAPACITY as usize - 1000]
            .iter()
            .all(|b| *b == 9)
    );
}

/// A monitor that replies when the test lets it.
#[derive(Debug)]
struct Monitor(Mutex<Sender<Mapped>>);

impl Mapper for Monitor {
    fn map(&self, _file: File, _offset: u64, length: u64, done: Mapped) {
        assert_eq!(length, 8192);
        self.0.lock().unwrap().send(done).unwrap();
    }
}

#[test]
fn the_aperture_is_mapped_once_for_each_run_of_the_device() {
    let session = session(Arc::new(MemoryStorage::new(8192).unwrap()));
    let (sender, asked) = channel();
    session.set_mapper(Arc::new(Monitor(Mutex::new(sender))));
    let (_engine, mut drivers) = run(&session);
    let control = &mut drivers[usize::from(CONTROL_QUEUE)];
    let map = |control: &mut Driver| submit(control, Opcode::MapAperture, 0, 0, 0);
    let mapped = RequestStatus {
        code: StatusCode::Ok,
        result: 8192,
    };

    // Two requests of the driver, one request to the monitor.
    map(control);
    map(control);
    let first = asked.recv_timeout(TIMEOUT).unwrap();
    // The device is stopped before the monitor replies, and started again.
    control.control.stop().unwrap();
    control.start();
    map(control);
    // Other requests complete meanwhile.
    submit(control, Opcode::Read, 0, 0, 0);
    assert_eq!(wait(control).1.code, StatusCode::Unsupported);
    assert!(asked.try_recv().is_err(), "asked while there was no answer");
    first(Ok(()));
    let second = asked.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(control.used(), 1);
    second(Err(io::Error::other("no")));
    assert_eq!(wait(control).1.code, StatusCode::ApertureUnavailable);

    // The driver can repeat a request that was refused or got no reply; a mapping lasts.
    map(control);
    drop(asked.recv_timeout(TIMEOUT).unwrap());
    assert_eq!(wait(control).1.code, StatusCode::ApertureUnavailable);
    map(control);
    asked.recv_timeout(TIMEOUT).unwrap()(Ok(()));
    assert_eq!(wait(control).1, mapped);
    map(control);
    assert_eq!(wait(control).1, mapped);
    assert!(asked.try_recv().is_err());
}
