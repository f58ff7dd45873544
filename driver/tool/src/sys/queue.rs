// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A queue of transfers between a file and buffers, by one of three interfaces of the kernel.
//!
//! ```text
//! idle: the owner has the buffer ──submit──► in flight: the kernel has it ──wait──► idle
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::aio::Aio;
use super::buffers::Buffers;
use super::uring::Uring;

/// Direction of a transfer, as the process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file to the buffer.
    Read,
    /// From the buffer to the file.
    Write,
}

/// Interface of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// pread and pwrite, one call at a time
    Sync,
    /// Linux AIO (io_submit)
    Libaio,
    /// io_uring
    #[value(name = "io_uring")]
    IoUring,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync => "sync",
            Self::Libaio => "libaio",
            Self::IoUring => "io_uring",
        })
    }
}

/// A transfer that has completed.
#[derive(Debug)]
pub struct Completed {
    /// Its slot.
    pub slot: usize,
    /// Number of bytes, which may be less than those of the transfer.
    pub result: io::Result<usize>,
}

enum Backend {
    /// With the result of the call that was made last.
    Sync(Vec<Completed>),
    Libaio(Aio),
    IoUring(Box<Uring>),
}

/// Transfers between a file and the buffers of this queue, each in a slot.
///
/// # Invariants
///
/// If `in_flight[slot]` is false, the kernel does not access the buffer of the slot. While it is
/// true, this value does not either.
pub struct Queue {
    file: File,
    backend: Backend,
    buffers: ManuallyDrop<Buffers>,
    in_flight: Vec<bool>,
}

impl Queue {
    /// A queue of `depth` slots with buffers of `block` bytes each; neither is 0.
    pub fn new(file: File, engine: Engine, depth: u32, block: u32) -> io::Result<Self> {
        Ok(Self {
            file,
            backend: match engine {
                Engine::Sync => Backend::Sync(Vec::new()),
                Engine::Libaio => Backend::Libaio(Aio::new(depth)?),
                Engine::IoUring => Backend::IoUring(Box::new(Uring::new(depth)?)),
            },
            buffers: ManuallyDrop::new(Buffers::new(depth as usize, block as usize)?),
            in_flight: vec![false; depth as usize],
        })
    }

    /// Number of slots.
    pub fn depth(&self) -> usize {
        self.buffers.count()
    }

    /// The buffer of a slot.
    ///
    /// # Panics
    ///
    /// If a transfer is in flight in this slot.
    pub fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.in_flight[slot], "slot {slot} is in flight");
        // SAFETY: by the invariant the kernel does not access the buffer; a transfer cannot be
        // submitted while `self` is borrowed.
        unsafe { self.buffers.bytes(slot) }
    }

    /// Starts a transfer of `length` bytes at `at` in the buffer of a slot, from or to `offset` in
    /// the file.
    ///
    /// # Panics
    ///
    /// If the slot is in flight, or its buffer is shorter.
    pub fn submit(
        &mut self,
        slot: usize,
        direction: Direction,
        at: usize,
        length: usize,
        offset: u64,
    ) {
        assert!(!self.in_flight[slot], "slot {slot} is in flight");
        let address = self.buffers.address(slot, at, length);
        let file = self.file.as_fd();
        match &mut self.backend {
            Backend::Sync(completed) => {
                // SAFETY: as in `buffer`.
                let bytes = unsafe { &mut self.buffers.bytes(slot)[at..at + length] };
                let result = loop {
                    let result = match direction {
                        Direction::Read => self.file.read_at(bytes, offset),
                        Direction::Write => self.file.write_at(bytes, offset),
                    };
                    match result {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        result => break result,
                    }
                };
                completed.push(Completed { slot, result });
            }
            // SAFETY: the invariant, which `in_flight` establishes below, and the map of the buffers
            // stays as long as a transfer is in flight, see `drop`.
            Backend::Libaio(aio) => unsafe {
                aio.queue(slot, file, direction, address, length, offset);
            },
            // SAFETY: as above. CAST: at most the size of a buffer, which has 32 bits.
            Backend::IoUring(uring) => unsafe {
                uring.queue(slot, file, direction, address, length as u32, offset);
            },
        }
        // INVARIANT: the slot is in flight before `self` can be used again.
        self.in_flight[slot] = true;
    }

    /// Waits until at least one transfer has completed, and appends those that have.
    pub fn wait(&mut self, completed: &mut Vec<Completed>) -> io::Result<()> {
        let before = completed.len();
        match &mut self.backend {
            Backend::Sync(results) => completed.append(results),
            Backend::Libaio(aio) => aio.wait(completed)?,
            Backend::IoUring(uring) => uring.wait(completed)?,
        }
        for transfer in &completed[before..] {
            // INVARIANT: the kernel has returned the buffer.
            self.in_flight[transfer.slot] = false;
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The kernel may still access the buffers of transfers in flight. Waiting for them could
        // take for ever, so their memory stays until the process ends.
        if !self.in_flight.contains(&true) {
            // SAFETY: not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.buffers) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const ENGINES: [Engine; 3] = [Engine::Sync, Engine::Libaio, Engine::IoUring];

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn wait_for(queue: &mut Queue, count: usize) -> Vec<Completed> {
        let mut completed = Vec::new();
        while completed.len() < count {
            queue.wait(&mut completed).unwrap();
        }
        completed.sort_by_key(|transfer| transfer.slot);
        completed
    }

    #[test]
    fn each_engine_reads_and_writes_at_offsets() {
        for engine in ENGINES {
            let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();
            let file = file(&content);
            let mut queue = Queue::new(file.try_clone().unwrap(), engine, 4, 4096).unwrap();
            let depth = queue.depth();
            assert_eq!(depth, 4);
            for slot in 0..depth {
                queue.submit(slot, Direction::Read, 10, 1000, slot as u64 * 1001);
            }
            for transfer in wait_for(&mut queue, depth) {
                assert_eq!(transfer.result.unwrap(), 1000, "{engine:?}");
                let buffer = queue.buffer(transfer.slot);
                assert_eq!(buffer[10..1010], content[transfer.slot * 1001..][..1000]);
                assert_eq!(buffer[..10], [0; 10]);
                assert_eq!(buffer[1010], 0);
            }
            queue.buffer(2).fill(0xee);
            queue.submit(2, Direction::Write, 0, 7, 3);
            assert_eq!(wait_for(&mut queue, 1)[0].result.as_ref().unwrap(), &7);
            let mut found = [0; 12];
            file.read_exact_at(&mut found, 0).unwrap();
            assert_eq!(found[..3], content[..3]);
            assert_eq!(found[3..10], [0xee; 7]);
            assert_eq!(found[10..], content[10..12]);
        }
    }

    #[test]
    fn an_error_belongs_to_its_transfer() {
        for engine in ENGINES {
            // A file that is open for reading only.
            let file = File::open("/proc/self/exe").unwrap();
            let mut queue = Queue::new(file, engine, 2, 512).unwrap();
            queue.submit(0, Direction::Write, 0, 512, 0);
            queue.submit(1, Direction::Read, 0, 512, 0);
            let completed = wait_for(&mut queue, 2);
            let error = completed[0].result.as_ref().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{engine:?}");
            assert_eq!(completed[1].result.as_ref().unwrap(), &512, "{engine:?}");
        }
    }

    #[test]
    fn a_transfer_at_the_end_is_short() {
        for engine in ENGINES {
            let mut queue = Queue::new(file(&[1; 100]), engine, 1, 512).unwrap();
            queue.submit(0, Direction::Read, 0, 512, 60);
            assert_eq!(wait_for(&mut queue, 1)[0].result.as_ref().unwrap(), &40);
            queue.submit(0, Direction::Read, 0, 512, 100);
            assert_eq!(wait_for(&mut queue, 1)[0].result.as_ref().unwrap(), &0);
        }
    }

    #[test]
    #[should_panic(expected = "slot 0 is in flight")]
    fn the_buffer_of_a_transfer_in_flight_cannot_be_accessed() {
        let mut queue = Queue::new(file(&[1; 100]), Engine::IoUring, 1, 512).unwrap();
        queue.submit(0, Direction::Read, 0, 512, 0);
        queue.buffer(0);
    }
}
