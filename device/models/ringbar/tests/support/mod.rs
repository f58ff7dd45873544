// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest whose requests the model processes: some memory, descriptors in it, and a
//! storage behind.

// Not every test program uses all of it.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use ringbar_engine::chain::ChainHead;
use ringbar_model::{Completed, QueueRole, RequestQueue};
use ringbar_spec::{ConfigParts, DeviceConfig, Opcode, QueueFault, RequestStatus};
use ringbar_storage::{Mappable, ResizeError, Storage, StorageError};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Guest memory: two regions that touch, a hole, a third.
pub const REGIONS: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x4000), (0x10000, 0x4000)];

/// Where the queue's descriptor table is.
pub const TABLE: u64 = 0;

/// Its number of entries.
pub const QUEUE_SIZE: u16 = 16;

pub const CAPACITY: u64 = 20_000;
pub const MAX_REQUEST: u32 = 8192;
pub const MAX_SEGMENTS: u16 = 8;

/// Greatest length of a command, for a storage of `capacity` bytes.
pub const fn max_command(capacity: u64) -> u64 {
    capacity - 1000
}

fn config(capacity: u64) -> DeviceConfig {
    DeviceConfig::new(ConfigParts {
        io_queues: 1,
        max_segments: MAX_SEGMENTS,
        capacity,
        aperture_bytes: 0,
        max_request_bytes: MAX_REQUEST,
        operations: Opcode::Read.mask()
            | Opcode::Write.mask()
            | Opcode::Flush.mask()
            | Opcode::COMMANDS,
        max_command_bytes: max_command(capacity),
    })
    .unwrap()
}

/// Bytes of which no two neighbouring blocks are alike.
pub fn pattern(len: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + (i >> 8) + (i >> 16) * 3) as u8)
        .collect()
}

/// Storage in plain memory that can be told to fail.
pub struct TestStorage {
    bytes: GuestMemoryMmap,
    capacity: AtomicU64,
    bad_byte: Option<u64>,
    errno: i32,
    pub flushes: AtomicU32,
    pub discards: AtomicU32,
    /// Offset and length of each write that no flush has covered since.
    unflushed: Mutex<Vec<(u64, u64)>>,
    /// Called before each flush.
    pub on_flush: Option<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for TestStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestStorage").finish_non_exhaustive()
    }
}

impl TestStorage {
    pub fn new() -> Self {
        static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(CAPACITY));
        Self::with_contents(&PATTERN)
    }

    pub fn with_contents(contents: &[u8]) -> Self {
        let bytes = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), contents.len())]).unwrap();
        bytes.write_slice(contents, GuestAddress(0)).unwrap();
        Self {
            bytes,
            capacity: (contents.len() as u64).into(),
            bad_byte: None,
            errno: 0,
            flushes: 0.into(),
            discards: 0.into(),
            unflushed: Mutex::default(),
            on_flush: None,
        }
    }

    /// Storage where transfers that touch `bad_byte` fail, or flushes if there is
    /// none.
    pub fn failing(bad_byte: Option<u64>, errno: i32) -> Self {
        Self {
            bad_byte,
            errno,
            ..Self::new()
        }
    }

    pub fn contents(&self) -> Vec<u8> {
        let mut out = vec![0; self.capacity() as usize];
        self.bytes.read_slice(&mut out, GuestAddress(0)).unwrap();
        out
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), StorageError> {
        match self.bad_byte {
            Some(bad) if (offset..offset + len as u64).contains(&bad) => {
                Err(std::io::Error::from_raw_os_error(self.errno).into())
            }
            _ => Ok(()),
        }
    }

    /// The data that is not durable.
    pub fn unflushed(&self) -> Vec<(u64, u64)> {
        self.unflushed.lock().unwrap().clone()
    }

    fn flushed(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        if let Some(on_flush) = &self.on_flush {
            on_flush();
        }
        let covers = |(at, len): &(u64, u64)| *at >= offset && at + len <= offset + length;
        self.unflushed
            .lock()
            .unwrap()
            .retain(|write| !covers(write));
        self.flushes.fetch_add(1, Ordering::Relaxed);
        match self.errno {
            0 => Ok(()),
            errno if self.bad_byte.is_none() => {
                Err(std::io::Error::from_raw_os_error(errno).into())
            }
            _ => Ok(()),
        }
    }
}

impl Storage for TestStorage {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Only makes it smaller than its contents, or as large again.
    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        if capacity == 0 || capacity > self.bytes.last_addr().0 + 1 {
            let source = "not within the contents".into();
            return Err(ResizeError { capacity, source });
        }
        self.capacity.store(capacity, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.check(offset, target.len())?;
        let mut bytes = vec![0; target.len()];
        self.bytes
            .read_slice(&mut bytes, GuestAddress(offset))
            .unwrap();
        target.write_slice(&bytes, 0).unwrap();
        Ok(())
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.check(offset, source.len())?;
        let write = (offset, source.len() as u64);
        self.unflushed.lock().unwrap().push(write);
        let mut bytes = vec![0; source.len()];
        source.read_slice(&mut bytes, 0).unwrap();
        self.bytes
            .write_slice(&bytes, GuestAddress(offset))
            .unwrap();
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.discards.fetch_add(1, Ordering::Relaxed);
        self.write_zeroes(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mut zeros = vec![0; length as usize];
        self.write(offset, VolatileSlice::from(&mut zeros[..]))
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.flushed(0, u64::MAX)
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.flushed(offset, length)
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        None
    }
}

/// A raw descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

pub const fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

pub fn memory() -> GuestMemoryMmap {
    let ranges: Vec<_> = REGIONS
        .iter()
        .map(|(start, len)| (GuestAddress(*start), *len as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

pub fn put_table(mem: &GuestMemoryMmap, at: u64, table: &[Desc]) {
    for (i, d) in table.iter().enumerate() {
        mem.write_obj(
            Descriptor::new(d.addr, d.len, d.flags, d.next),
            GuestAddress(at + 16 * i as u64),
        )
        .unwrap();
    }
}

/// All of guest memory, one vector for each region.
pub fn snapshot(mem: &GuestMemoryMmap) -> Vec<Vec<u8>> {
    REGIONS
        .iter()
        .map(|(start, len)| {
            let mut out = vec![0; *len as usize];
            mem.read_slice(&mut out, GuestAddress(*start)).unwrap();
            out
        })
        .collect()
}

pub fn head(index: u16) -> ChainHead {
    ChainHead {
        table: GuestAddress(TABLE),
        queue_size: QUEUE_SIZE,
        index,
    }
}

/// A device whose descriptors and data the test places by hand.
pub struct Guest {
    pub mem: GuestMemoryMmap,
    pub storage: Arc<TestStorage>,
    pub io: RequestQueue,
    pub control: RequestQueue,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_storage(TestStorage::new())
    }

    pub fn with_storage(storage: TestStorage) -> Self {
        let storage = Arc::new(storage);
        let config = config(storage.capacity());
        Self {
            mem: memory(),
            io: RequestQueue::new(config, QueueRole::Io, storage.clone()),
            control: RequestQueue::new(config, QueueRole::Control, storage.clone()),
            storage,
        }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.read_slice(&mut out, GuestAddress(at)).unwrap();
        out
    }

    pub fn status(&self, at: u64) -> Option<RequestStatus> {
        RequestStatus::parse(self.get(at, RequestStatus::SIZE)[..].try_into().unwrap())
    }

    /// Processes the chain that starts at descriptor 0 on the I/O queue.
    pub fn process(&mut self, table: &[Desc]) -> Result<Completed, QueueFault> {
        put_table(&self.mem, TABLE, table);
        let completed = self.io.process(&self.mem, head(0), || {
            panic!("an I/O queue does not map the aperture")
        })?;
        Ok(completed.expect("only the aperture can be pending"))
    }
}

/// Configuration of a property test of `cases` cases, unless the environment
/// variable `PROPTEST_CASES` says otherwise.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    let default = proptest::test_runner::Config::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => proptest::test_runner::Config { cases, ..default },
    }
}
