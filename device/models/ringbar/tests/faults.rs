// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on demand: what the driver sees of each, on both faces of a storage.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringbar_engine::testing::{Driver, Notify};
use ringbar_engine::{Engine, Options};
use ringbar_model::{Device, DeviceOptions, Session};
use ringbar_spec::{FIRST_IO_QUEUE, Opcode, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::{BlockStorage, MemoryStorage, Storage};
use vm_memory::{GuestAddress, GuestMemoryMmap, VolatileSlice};

const CAPACITY: u64 = 1 << 20;

/// Bytes of a read or write.
const LENGTH: usize = 24;

/// Longer than a test takes.
const NEVER: &str = "latency=3600s";

struct Machine {
    device: Arc<Device>,
    driver: Driver,
    _engine: Engine<Session, GuestMemoryMmap>,
    file: Option<PathBuf>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            fs::remove_file(file).unwrap();
        }
    }
}

impl Machine {
    /// A device with these rules, in memory and as a block device.
    fn each(rules: &[&str], test: impl Fn(Self)) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let memory = MemoryStorage::new(CAPACITY).unwrap();
        test(Self::new(Arc::new(memory), None, rules));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("faults-{}-{number}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let block = BlockStorage::open(&path, Some(CAPACITY)).unwrap();
        test(Self::new(Arc::new(block), Some(path), rules));
    }

    fn new(storage: Arc<dyn Storage>, file: Option<PathBuf>, rules: &[&str]) -> Self {
        let device = Arc::new(Device::new(storage, DeviceOptions::default()).unwrap());
        for rule in rules {
            device.faults().add(rule.parse().unwrap()).unwrap();
        }
        let session = Arc::new(Session::new(Arc::clone(&device)).unwrap());
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
        let controls = engine.queues();
        let bytes = Driver::AREA * controls.len() as u64;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
        engine.replace_memory(Some(memory.clone()));
        let index = usize::from(FIRST_IO_QUEUE);
        let control = Arc::clone(&controls[index]);
        let mut driver = Driver::new(memory, index, control, Notify::ByDescriptor);
        driver.start();
        Self {
            device,
            driver,
            _engine: engine,
            file,
        }
    }

    fn submit(&mut self, opcode: Opcode, offset: u64, data: &[u8]) -> u16 {
        let length = match opcode {
            Opcode::Flush => 0,
            _ => LENGTH as u64,
        };
        let header = RequestHeader::command(opcode, offset, length, 0);
        let output = match opcode {
            Opcode::Read => LENGTH,
            _ => 0,
        };
        let input = [&header.to_bytes()[..], data].concat();
        self.driver
            .submit(&input, (output + RequestStatus::SIZE) as u64)
    }

    fn read(&mut self, offset: u64) -> (StatusCode, u64, Vec<u8>) {
        self.submit(Opcode::Read, offset, &[]);
        self.wait_read()
    }

    fn wait_read(&mut self) -> (StatusCode, u64, Vec<u8>) {
        let (_, mut output) = self.driver.wait();
        let status = status(&output[LENGTH..]);
        output.truncate(LENGTH);
        (status.code, status.result, output)
    }

    fn write(&mut self, offset: u64, data: &[u8; LENGTH]) -> (StatusCode, u64) {
        self.submit(Opcode::Write, offset, data);
        self.wait()
    }

    fn wait(&mut self) -> (StatusCode, u64) {
        let (_, output) = self.driver.wait();
        let status = status(&output);
        (status.code, status.result)
    }

    fn counts(&self) -> Vec<(u64, u64)> {
        let listed = self.device.faults().list().into_iter();
        listed.map(|rule| (rule.matches, rule.firings)).collect()
    }

    /// What the storage has.
    fn stored(&self, offset: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let slice = VolatileSlice::from(&mut bytes[..]);
        self.device.storage().read(offset, slice).unwrap();
        bytes
    }
}

fn status(output: &[u8]) -> RequestStatus {
    RequestStatus::parse(output[..RequestStatus::SIZE].try_into().unwrap()).unwrap()
}

#[test]
fn the_third_read_of_a_range_fails() {
    let rules = ["read:offset=4K..8K:nth=3:error=EIO"];
    Machine::each(&rules, |mut machine| {
        let codes = [4096, 0, 5000, 8192, 8191, 4096].map(|offset| machine.read(offset).0);
        let mut expected = [StatusCode::Ok; 6];
        expected[4] = StatusCode::IoError;
        assert_eq!(codes, expected);
        assert_eq!(machine.counts(), [(4, 1)]);
    });
}

#[test]
fn each_error_has_its_status_and_nothing_is_executed() {
    for (errno, code) in [
        ("EIO", StatusCode::IoError),
        ("ENOSPC", StatusCode::NoSpace),
        ("ENXIO", StatusCode::OutOfRange),
        ("EINVAL", StatusCode::Invalid),
        ("EOPNOTSUPP", StatusCode::Unsupported),
    ] {
        Machine::each(&[&format!("nth=1:error={errno}")], |mut machine| {
            assert_eq!(machine.write(0, &[7; LENGTH]), (code, 0));
            assert_eq!(machine.stored(0), [0; LENGTH]);
            assert_eq!(
                machine.write(0, &[7; LENGTH]),
                (StatusCode::Ok, LENGTH as u64)
            );
        });
    }
}

#[test]
fn flushes_and_commands_fail_too() {
    let rules = ["flush:error=EIO", "discard:offset=0..1:error=ENOSPC"];
    Machine::each(&rules, |mut machine| {
        machine.submit(Opcode::Flush, 0, &[]);
        assert_eq!(machine.wait(), (StatusCode::IoError, 0));
        machine.submit(Opcode::Discard, 0, &[]);
        assert_eq!(machine.wait(), (StatusCode::NoSpace, 0));
        machine.submit(Opcode::Discard, 1, &[]);
        assert_eq!(machine.wait(), (StatusCode::Ok, LENGTH as u64));
        assert_eq!(machine.device.storage().failure(), None);
    });
}

#[test]
fn a_short_transfer_has_half_of_the_bytes() {
    Machine::each(&["offset=4K..:short"], |mut machine| {
        const HALF: usize = LENGTH / 2;
        let short = (StatusCode::IoError, HALF as u64);
        assert_eq!(machine.write(4096, &[7; LENGTH]), short);
        let mut stored = [7; LENGTH];
        stored[HALF..].fill(0);
        assert_eq!(machine.stored(4096), stored);
        let (code, result, data) = machine.read(4096);
        assert_eq!((code, result), short);
        assert_eq!(data[..HALF], [7; HALF]);
        // The driver filled the buffer before.
        assert_eq!(data[HALF..], [0xee; HALF]);
        assert_eq!(machine.write(0, &[1; LENGTH]).0, StatusCode::Ok);
    });
}

#[test]
fn one_byte_is_corrupt_on_its_way() {
    let rules = ["write:offset=4100..:nth=1:corrupt", "read:nth=2:corrupt"];
    Machine::each(&rules, |mut machine| {
        assert_eq!(
            machine.write(4096, &[7; LENGTH]),
            (StatusCode::Ok, LENGTH as u64)
        );
        let mut stored = [7; LENGTH];
        stored[4] = !7;
        assert_eq!(machine.stored(4096), stored);
        assert_eq!(machine.read(4096).2, stored);
        let (code, _, data) = machine.read(4096);
        assert_eq!(
            (code, data[0], &data[1..]),
            (StatusCode::Ok, !7, &stored[1..])
        );
        assert_eq!(machine.stored(4096), stored);
    });
}

#[test]
fn latency_delays_a_request_and_no_other() {
    let rules = [
        "read:offset=4K..8K:latency=3600s",
        "read:offset=8K..:latency=50ms",
    ];
    Machine::each(&rules, |mut machine| {
        machine.submit(Opcode::Read, 4096, &[]);
        machine.submit(Opcode::Read, 0, &[]);
        assert_eq!(machine.driver.wait().0, 1);
        let start = Instant::now();
        machine.submit(Opcode::Read, 8192, &[]);
        assert_eq!(machine.driver.wait().0, 2);
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!(machine.counts(), [(1, 1), (1, 1)]);
        assert_eq!(machine.driver.used(), 2);
    });
}

/// A stop does not wait for a delayed request, and what is left of it changes no guest memory.
/// It is delayed anew when the queue goes on, unless the rule is gone.
#[test]
fn a_stopped_queue_forgets_what_was_delayed() {
    Machine::each(&[NEVER], |mut machine| {
        machine.submit(Opcode::Write, 0, &[7; LENGTH]);
        machine.submit(Opcode::Read, 100, &[]);
        let driver_waits = Instant::now() + Duration::from_secs(20);
        while machine.counts() != [(2, 2)] {
            assert!(Instant::now() < driver_waits);
            std::thread::yield_now();
        }
        let stopped = machine.driver.control.stop().unwrap();
        assert_eq!((stopped.next_avail, stopped.next_used), (0, 0));
        assert_eq!(machine.driver.used(), 0);
        assert_eq!(machine.device.faults().clear_all(), 1);
        machine.driver.go_on(stopped);
        assert_eq!(machine.wait(), (StatusCode::Ok, LENGTH as u64));
        assert_eq!(machine.wait_read().0, StatusCode::Ok);
        assert_eq!(machine.stored(0), [7; LENGTH]);
    });
}

#[test]
fn rules_change_while_the_device_runs() {
    Machine::each(&[], |mut machine| {
        assert_eq!(machine.read(0).0, StatusCode::Ok);
        let rule = "error=ENXIO".parse().unwrap();
        let id = machine.device.faults().add(rule).unwrap();
        assert_eq!(machine.read(0).0, StatusCode::OutOfRange);
        machine.device.faults().clear(id).unwrap();
        assert_eq!(machine.read(0).0, StatusCode::Ok);
    });
}
