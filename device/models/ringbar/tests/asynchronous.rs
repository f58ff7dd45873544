// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device on a storage whose operations end when the test says, in an engine.

mod commands_reference;
mod support;

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use commands_reference::{COMMANDS, execute};
use proptest::prelude::*;
use proptest::sample::select;
use ringbar_engine::testing::{Driver, Notify, TIMEOUT, asleep, wait_until};
use ringbar_engine::{Engine, Options};
use ringbar_model::{Device, DeviceOptions, Session};
use ringbar_spec::{FIRST_IO_QUEUE, Opcode, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::asynchronous::Done;
use ringbar_storage::{
    AsyncStorage, Buffers, Completed, Mappable, Operation, Owner, ResizeError, Storage,
    StorageError,
};
use rustix::io::Errno;
use support::{CAPACITY, TestStorage, cases, pattern};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

const QUEUES: u16 = 2;

/// Number of the first I/O queue.
const IO: usize = FIRST_IO_QUEUE as usize;

/// An operation in flight.
struct Begun {
    owner: Owner,
    operation: Operation,
    done: Done,
}

/// A disk over a [`TestStorage`] whose operations are in flight until the test ends them.
struct Disk {
    storage: TestStorage,
    buffers: Buffers,
    begun: Mutex<Vec<Begun>>,
    changed: Condvar,
    cancelled: Mutex<Vec<Owner>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl Disk {
    fn new(storage: TestStorage, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            storage,
            buffers: Buffers::new(512, 4096, limit),
            begun: Mutex::default(),
            changed: Condvar::new(),
            cancelled: Mutex::default(),
        })
    }

    /// Takes the operations in flight, once there are `count`.
    #[track_caller]
    fn wait(&self, count: usize) -> Vec<Begun> {
        let begun = self.begun.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(begun, TIMEOUT, |begun| begun.len() < count);
        let mut begun = waited.unwrap().0;
        assert_eq!(begun.len(), count);
        std::mem::take(&mut *begun)
    }

    #[track_caller]
    fn wait_one(&self) -> Begun {
        self.wait(1).remove(0)
    }

    /// Executes an operation and says that it has ended.
    fn end(&self, begun: Begun) {
        let Begun {
            operation, done, ..
        } = begun;
        let (result, buffer) = match operation {
            Operation::Read(mut buffer) => {
                let offset = buffer.extent().offset;
                let target = VolatileSlice::from(buffer.data_mut());
                (self.storage.read(offset, target), Some(buffer))
            }
            Operation::Write(mut buffer) => {
                let offset = buffer.extent().offset;
                let source = VolatileSlice::from(buffer.data_mut());
                (self.storage.write(offset, source), Some(buffer))
            }
            Operation::Discard(extent) => {
                (self.storage.discard(extent.offset, extent.length), None)
            }
            Operation::WriteZeroes(extent) => (
                self.storage.write_zeroes(extent.offset, extent.length),
                None,
            ),
            Operation::Flush => (self.storage.flush(), None),
        };
        done(Completed { result, buffer });
    }
}

/// Says that an operation has failed, and has done nothing.
fn fail(begun: Begun, errno: Errno) {
    (begun.done)(Completed {
        result: Err(io::Error::from(errno).into()),
        buffer: None,
    });
}

impl AsyncStorage for Disk {
    fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    fn submit(&self, owner: Owner, operation: Operation, done: Done) {
        self.begun.lock().unwrap().push(Begun {
            owner,
            operation,
            done,
        });
        self.changed.notify_all();
    }

    fn cancel(&self, owner: Owner) {
        self.buffers.cancel(owner);
        self.cancelled.lock().unwrap().push(owner);
    }
}

/// The storage with its disk.
#[derive(Debug)]
struct Disked(Arc<Disk>);

impl Storage for Disked {
    fn capacity(&self) -> u64 {
        self.0.storage.capacity()
    }

    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        self.0.storage.resize(capacity)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.0.storage.read(offset, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.0.storage.write(offset, source)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.0.storage.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.0.storage.write_zeroes(offset, length)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.0.storage.flush()
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.0.storage.flush_range(offset, length)
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        None
    }

    fn asynchronous(&self) -> Option<Arc<dyn AsyncStorage>> {
        Some(Arc::clone(&self.0) as Arc<dyn AsyncStorage>)
    }
}

struct Machine {
    engine: Engine<Session, GuestMemoryMmap>,
    drivers: Vec<Driver>,
    disk: Arc<Disk>,
    mem: GuestMemoryMmap,
}

fn memory() -> GuestMemoryMmap {
    let bytes = Driver::AREA * u64::from(FIRST_IO_QUEUE + QUEUES);
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

impl Machine {
    fn new(storage: TestStorage, limit: usize) -> Self {
        let disk = Disk::new(storage, limit);
        let options = DeviceOptions {
            io_queues: QUEUES,
            ..DeviceOptions::default()
        };
        let device = Device::new(Arc::new(Disked(Arc::clone(&disk))), options).unwrap();
        assert_eq!(device.config().aperture_bytes(), 0);
        let session = Arc::new(Session::new(Arc::new(device)).unwrap());
        let counters = Arc::clone(session.queue_counters());
        let poll = Duration::from_micros(200);
        let engine = Engine::new(
            session,
            counters,
            Options {
                poll,
                cpus: 2,
                record: None,
            },
        )
        .unwrap();
        let mem = memory();
        engine.replace_memory(Some(mem.clone()));
        let mut drivers: Vec<_> = engine
            .queues()
            .into_iter()
            .enumerate()
            .map(|(index, control)| Driver::new(mem.clone(), index, control, Notify::ByDescriptor))
            .collect();
        drivers.iter_mut().for_each(Driver::start);
        Self {
            engine,
            drivers,
            disk,
            mem,
        }
    }

    fn start() -> Self {
        Self::new(TestStorage::new(), usize::MAX)
    }

    fn io(&mut self) -> &mut Driver {
        &mut self.drivers[IO]
    }
}

/// Bytes of the reads and writes here.
const LENGTH: u64 = 24;

fn submit(driver: &mut Driver, header: &RequestHeader, data: &[u8]) -> u16 {
    let output = match header.opcode {
        Opcode::Read => header.length,
        _ => 0,
    };
    let input = [&header.to_bytes()[..], data].concat();
    driver.submit(&input, output + RequestStatus::SIZE as u64)
}

fn read(driver: &mut Driver, offset: u64) -> u16 {
    submit(
        driver,
        &RequestHeader::command(Opcode::Read, offset, LENGTH, 0),
        &[],
    )
}

fn write(driver: &mut Driver, offset: u64, data: &[u8], flags: u16) -> u16 {
    let header = RequestHeader {
        flags,
        ..RequestHeader::command(Opcode::Write, offset, data.len() as u64, 0)
    };
    submit(driver, &header, data)
}

fn status(output: &[u8], at: usize) -> RequestStatus {
    let bytes = output[at..at + RequestStatus::SIZE].try_into().unwrap();
    RequestStatus::parse(&bytes).unwrap()
}

/// Waits for a request without data to the driver.
#[track_caller]
fn wait(driver: &mut Driver) -> (u16, StatusCode, u64) {
    let (number, output) = driver.wait();
    let status = status(&output, 0);
    (number, status.code, status.result)
}

/// Waits for a read; returns its number with what it has brought.
#[track_caller]
fn wait_read(driver: &mut Driver) -> (u16, Vec<u8>) {
    let (number, output) = driver.wait();
    let (data, rest) = output.split_at(LENGTH as usize);
    let expected = RequestStatus {
        code: StatusCode::Ok,
        result: LENGTH,
    };
    assert_eq!(status(rest, 0), expected);
    (number, data.to_vec())
}

fn stored(offset: u64) -> Vec<u8> {
    pattern(CAPACITY)[offset as usize..][..LENGTH as usize].to_vec()
}

#[test]
fn requests_complete_in_the_order_of_the_disk() {
    const DEPTH: u16 = Driver::SIZE / 2;
    let mut machine = Machine::start();
    for number in 0..DEPTH {
        read(machine.io(), u64::from(number) * 100);
    }
    let begun = machine.disk.wait(usize::from(DEPTH));
    assert_eq!(machine.io().used(), 0);
    for (number, begun) in begun.into_iter().enumerate().rev() {
        machine.disk.end(begun);
        let expected = (number as u16, stored(number as u64 * 100));
        assert_eq!(wait_read(machine.io()), expected);
    }
}

/// What the guest has in its memory after a stop stays there, whatever the disk does.
#[test]
fn ho4_a_stop_waits_for_no_disk() {
    let mut machine = Machine::start();
    read(machine.io(), 0);
    write(machine.io(), 5000, &[1; 10], 0);
    submit(
        machine.io(),
        &RequestHeader::command(Opcode::Flush, 0, 0, 0),
        &[],
    );
    let begun = machine.disk.wait(3);
    let owner = Owner(FIRST_IO_QUEUE.into());
    assert!(begun.iter().all(|begun| begun.owner == owner));
    let driver = machine.io();
    let stopped = driver.control.stop().unwrap();
    assert_eq!((stopped.next_avail, stopped.next_used), (0, 0));
    let area = Driver::AREA * IO as u64;
    let contents = |machine: &Machine| {
        let mut bytes = vec![0; Driver::AREA as usize];
        machine
            .mem
            .read_slice(&mut bytes, GuestAddress(area))
            .unwrap();
        bytes
    };
    let before = contents(&machine);
    for begun in begun {
        machine.disk.end(begun);
    }
    // The worker has seen the ends when it answers.
    machine.io().control.set_doorbell(None);
    machine.io().connect();
    assert!(contents(&machine) == before);
    // Once at the start of each, and now.
    let cancelled = machine.disk.cancelled.lock().unwrap().clone();
    assert_eq!(cancelled.len(), machine.drivers.len() + 1);
    assert_eq!(cancelled.last(), Some(&owner));

    // They are done again when the queue goes on.
    let driver = machine.io();
    driver.go_on(stopped);
    for begun in machine.disk.wait(3).into_iter().rev() {
        machine.disk.end(begun);
    }
    assert_eq!(wait(machine.io()), (2, StatusCode::Ok, 0));
    assert_eq!(wait(machine.io()), (1, StatusCode::Ok, 10));
    assert_eq!(wait_read(machine.io()), (0, stored(0)));
}

#[test]
fn a_reset_forgets_what_is_in_flight() {
    let mut machine = Machine::start();
    read(machine.io(), 0);
    let stale = machine.disk.wait_one();
    machine.io().control.stop().unwrap();
    machine.io().start();
    read(machine.io(), 200);
    let begun = machine.disk.wait_one();
    machine.disk.end(stale);
    machine.io().control.set_doorbell(None);
    machine.io().connect();
    assert_eq!(machine.io().used(), 0);
    machine.disk.end(begun);
    assert_eq!(wait_read(machine.io()), (0, stored(200)));
}

/// A read that was begun with one memory ends in the one that there is by then.
#[test]
fn memory_is_replaced_while_the_disk_works() {
    let mut machine = Machine::start();
    read(machine.io(), 0);
    let begun = machine.disk.wait_one();
    let mut bytes = vec![0; (Driver::AREA * u64::from(FIRST_IO_QUEUE + QUEUES)) as usize];
    machine.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let new = memory();
    new.write_slice(&bytes, GuestAddress(0)).unwrap();
    machine.engine.replace_memory(Some(new.clone()));
    machine.disk.end(begun);
    let output = Driver::AREA * IO as u64 + 0x8000;
    let mut data = vec![0; LENGTH as usize];
    wait_until("the read ends in the new memory", || {
        let mut data = vec![0; LENGTH as usize];
        new.read_slice(&mut data, GuestAddress(output)).unwrap();
        data == stored(0)
    });
    machine
        .mem
        .read_slice(&mut data, GuestAddress(output))
        .unwrap();
    assert_eq!(data, [0xee; LENGTH as usize]);
    assert_eq!(machine.io().used(), 0);
}

#[test]
fn ho5_the_end_waits_for_no_disk() {
    let mut machine = Machine::start();
    for _ in 0..20 {
        write(machine.io(), 0, &[1; 10], RequestHeader::FUA);
    }
    let begun = machine.disk.wait(20);
    let Machine { engine, disk, .. } = machine;
    drop(engine);
    for begun in begun {
        disk.end(begun);
    }
}

#[test]
fn errors_of_the_disk_are_answered() {
    let mut machine = Machine::start();
    for (errno, code) in [
        (Errno::IO, StatusCode::IoError),
        (Errno::NOSPC, StatusCode::NoSpace),
    ] {
        write(machine.io(), 0, &[1; 10], RequestHeader::FUA);
        fail(machine.disk.wait_one(), errno);
        let (_, answered, result) = wait(machine.io());
        assert_eq!((answered, result), (code, 0));
        let header = RequestHeader::command(Opcode::Crc32c, 0, 10, 0);
        submit(machine.io(), &header, &[]);
        fail(machine.disk.wait_one(), errno);
        assert_eq!(wait(machine.io()).1, code);
        read(machine.io(), 0);
        fail(machine.disk.wait_one(), errno);
        let (_, output) = machine.io().wait();
        assert_eq!(status(&output, LENGTH as usize).code, code);
        assert_eq!(output[..LENGTH as usize], [0xee; LENGTH as usize]);
    }
    // The device became smaller between the check and the operation.
    write(machine.io(), 0, &[1; 10], 0);
    let Begun { done, .. } = machine.disk.wait_one();
    done(Completed {
        result: Err(StorageError::OutOfRange {
            offset: 0,
            length: 10,
            capacity: 1,
        }),
        buffer: None,
    });
    assert_eq!(wait(machine.io()).1, StatusCode::OutOfRange);
    // One that is lost.
    read(machine.io(), 0);
    drop(machine.disk.wait_one());
    let (_, output) = machine.io().wait();
    assert_eq!(status(&output, LENGTH as usize).code, StatusCode::IoError);
}

/// A durable write is answered after a flush that began after the write.
#[test]
fn durable_writes_wait_for_their_flush() {
    let mut machine = Machine::start();
    for fails in [false, true] {
        let number = write(machine.io(), 100, &[9; 10], RequestHeader::FUA);
        let begun = machine.disk.wait_one();
        assert!(matches!(begun.operation, Operation::Write(_)));
        machine.disk.end(begun);
        let flush = machine.disk.wait_one();
        assert!(matches!(flush.operation, Operation::Flush));
        assert_eq!(machine.disk.storage.unflushed(), [(100, 10)]);
        // Others are not held up.
        let other = write(machine.io(), 0, &[], 0);
        assert_eq!(wait(machine.io()), (other, StatusCode::Ok, 0));
        match fails {
            false => machine.disk.end(flush),
            true => fail(flush, Errno::IO),
        }
        let code = match fails {
            false => StatusCode::Ok,
            true => StatusCode::IoError,
        };
        let (done, answered, _) = wait(machine.io());
        assert_eq!((done, answered), (number, code));
    }
}

/// Requests wait for memory in their order, and a stop does not wait for them.
#[test]
fn requests_wait_for_buffers() {
    const COUNT: u16 = 20;
    let mut machine = Machine::new(TestStorage::new(), 8192);
    for number in 0..COUNT {
        match number % 2 {
            0 => read(machine.io(), u64::from(number) * 100),
            _ => write(
                machine.io(),
                u64::from(number) * 100,
                &[number as u8; 20],
                0,
            ),
        };
    }
    // Two fit.
    let begun = machine.disk.wait(2);
    let stopped = machine.io().control.stop().unwrap();
    machine.io().go_on(stopped);
    assert!(machine.disk.begun.lock().unwrap().is_empty());
    for begun in begun {
        machine.disk.end(begun);
    }
    for number in 0..COUNT {
        wait_until("the next one begins", || {
            !machine.disk.begun.lock().unwrap().is_empty()
        });
        let begun = machine.disk.begun.lock().unwrap().remove(0);
        machine.disk.end(begun);
        match number % 2 {
            0 => assert_eq!(
                wait_read(machine.io()),
                (number, stored(u64::from(number) * 100))
            ),
            _ => assert_eq!(wait(machine.io()), (number, StatusCode::Ok, 20)),
        }
    }
    let contents = machine.disk.storage.contents();
    for number in (1..COUNT).step_by(2) {
        let at = usize::from(number) * 100;
        assert_eq!(contents[at..at + 20], [number as u8; 20]);
    }
}

/// Has the operations of a disk end as they come, in another order, until this is dropped.
struct Runner {
    disk: Arc<Disk>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Runner {
    fn start(disk: &Arc<Disk>) -> Self {
        let own = Arc::clone(disk);
        let ends = |begun: &Begun| begun.owner == Owner(u32::MAX);
        let thread = thread::spawn(move || {
            loop {
                let begun = {
                    let begun = own.begun.lock().unwrap();
                    let waited = own
                        .changed
                        .wait_timeout_while(begun, TIMEOUT, |begun| begun.is_empty());
                    std::mem::take(&mut *waited.unwrap().0)
                };
                if begun.is_empty() || begun.iter().any(ends) {
                    return;
                }
                for begun in begun.into_iter().rev() {
                    own.end(begun);
                }
            }
        });
        Self {
            disk: Arc::clone(disk),
            thread: Some(thread),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.disk
            .submit(Owner(u32::MAX), Operation::Flush, Box::new(|_| ()));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Large enough for commands of several steps.
const LARGE: u64 = 1_200_000;

fn command() -> impl Strategy<Value = RequestHeader> {
    let length = prop_oneof![0..100u64, 250_000..600_000u64];
    let word = any::<u64>();
    (select(&COMMANDS[..]), length, any::<[u64; 2]>(), word).prop_map(
        |(opcode, length, [first, second], word)| {
            let within = |number: u64| number % (LARGE - length + 1);
            let argument = match opcode {
                Opcode::Copy | Opcode::Compare => within(second),
                Opcode::Fill => word,
                Opcode::Crc32c => u64::from(word as u32),
                _ => 0,
            };
            RequestHeader::command(opcode, within(first), length, argument)
        },
    )
}

proptest! {
    #![proptest_config(cases(40))]

    /// As the reference says, whatever the alignment, and however often the queue is stopped
    /// meanwhile.
    #[test]
    fn commands_are_those_of_the_reference(
        headers in prop::collection::vec((command(), any::<bool>()), 1..8),
    ) {
        let mut model = pattern(LARGE);
        let mut machine = Machine::new(TestStorage::with_contents(&model), 1 << 20);
        let runner = Runner::start(&machine.disk);
        for (header, stops) in headers {
            let expected = execute(&header, &mut model);
            let number = submit(machine.io(), &header, &[]);
            if stops {
                let stopped = machine.io().control.stop().unwrap();
                // A stale operation may end after a later one: no two at the same time here.
                wait_until("the disk is idle", || machine.disk.begun.lock().unwrap().is_empty());
                machine.io().go_on(stopped);
            }
            prop_assert_eq!(wait(machine.io()), (number, StatusCode::Ok, expected));
        }
        prop_assert!(machine.disk.storage.contents() == model);
        drop(runner);
    }
}

/// Two ranges that differ in a late step.
#[test]
fn a_difference_is_found_in_any_step() {
    const LENGTH: u64 = 590_000;
    let mut machine = Machine::new(TestStorage::with_contents(&[5; LARGE as usize]), 1 << 20);
    let runner = Runner::start(&machine.disk);
    for place in [0, 255 << 10, 256 << 10, 300_001, LENGTH - 1, LENGTH] {
        write(machine.io(), 600_000 + place, &[6], 0);
        assert_eq!(wait(machine.io()).1, StatusCode::Ok);
        let header = RequestHeader::command(Opcode::Compare, 600_000, LENGTH, 0);
        submit(machine.io(), &header, &[]);
        assert_eq!(wait(machine.io()).2, place);
        write(machine.io(), 600_000 + place, &[5], 0);
        assert_eq!(wait(machine.io()).1, StatusCode::Ok);
    }
    drop(runner);
}

/// Commands in flight at once, more than there is memory for: each has two buffers.
#[test]
fn many_commands_wait_for_memory() {
    const COUNT: u16 = 30;
    let mut machine = Machine::new(TestStorage::with_contents(&pattern(LARGE)), 1 << 20);
    let runner = Runner::start(&machine.disk);
    for number in 0..COUNT {
        let opcode = if number % 2 == 0 {
            Opcode::Copy
        } else {
            Opcode::Compare
        };
        let header = RequestHeader::command(opcode, 600_000, 500_000, 0);
        submit(machine.io(), &header, &[]);
    }
    for _ in 0..COUNT {
        assert_eq!(wait(machine.io()).1, StatusCode::Ok);
    }
    drop(runner);
    assert!(format!("{:?}", machine.disk.buffers).contains("used: 0"));
}

/// A copy that changes its own source is executed once, by the face that waits, and its flush
/// as well.
#[test]
fn a_copy_within_itself_is_not_executed_twice() {
    let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
    let goes_on = Mutex::new(goes_on);
    let mut storage = TestStorage::new();
    storage.on_flush = Some(Box::new(move || {
        begun.send(()).unwrap();
        goes_on.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
    }));
    let mut machine = Machine::new(storage, usize::MAX);
    let header = RequestHeader {
        flags: RequestHeader::FUA,
        ..RequestHeader::command(Opcode::Copy, 100, 1000, 0)
    };
    submit(machine.io(), &header, &[]);
    begins.recv_timeout(TIMEOUT).unwrap();
    let control = Arc::clone(&machine.io().control);
    let stop = asleep(move || control.stop());
    go_on.send(()).unwrap();
    let stopped = stop.join().unwrap().unwrap();
    machine.io().go_on(stopped);
    assert_eq!(wait(machine.io()), (0, StatusCode::Ok, 1000));
    let contents = machine.disk.storage.contents();
    assert_eq!(contents[100..1100], pattern(CAPACITY)[..1000]);
    assert!(machine.disk.begun.lock().unwrap().is_empty());
}

/// A worker waits for the disk during a copy within itself: few large transfers, in either
/// direction.
#[test]
fn a_copy_within_itself_is_executed_in_large_chunks() {
    const CHUNK: u64 = 4 << 20;
    const LENGTH: u64 = 2 * CHUNK + 1000;
    for (source, target) in [
        (0, 777),
        (777, 0),
        (0, CHUNK),
        (CHUNK + 1, 0),
        (5, 2 * CHUNK),
    ] {
        let mut expected = pattern(LENGTH + 2 * CHUNK + 5);
        let storage = TestStorage::with_contents(&expected);
        expected.copy_within(source as usize..(source + LENGTH) as usize, target as usize);
        let mut machine = Machine::new(storage, usize::MAX);
        let header = RequestHeader::command(Opcode::Copy, target, LENGTH, source);
        submit(machine.io(), &header, &[]);
        assert_eq!(wait(machine.io()), (0, StatusCode::Ok, LENGTH));
        assert!(
            machine.disk.storage.contents() == expected,
            "{source} to {target}"
        );
        assert_eq!(machine.disk.storage.unflushed().len(), 3);
        assert!(machine.disk.begun.lock().unwrap().is_empty());
    }
}
