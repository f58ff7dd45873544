// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The stalled device and the buffers of a test, and threads that call it.

use std::fs::File;
use std::thread::{Scope, ScopedJoinHandle};

use crate::case::{Context, During, Stop, Verdict, eventually, expect_bytes};
use crate::check_eq;
use crate::fixtures::device::all_released;
use crate::host::Host;
use crate::pattern;
use crate::sys::{self, IoVec, Region, SleepState, Task};

/// Bytes of a request.
pub(super) const BLOCK: usize = 16 << 10;

/// The device, its host, and buffers.
pub(super) struct Fixture {
    pub(super) host: Host,
    pub(super) file: File,
    pub(super) bar: Region,
    pub(super) memory: Region,
}

impl Fixture {
    /// Creates memory for `blocks` blocks.
    pub(super) fn new(context: &Context, blocks: usize) -> Verdict<Self> {
        let fixture = Self {
            host: Host::connect()?,
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(blocks * BLOCK)?,
        };
        all_released()?;
        Ok(fixture)
    }

    /// Buffer number `i`.
    pub(super) fn block(&self, i: usize) -> IoVec {
        self.memory.buffer(i * BLOCK, BLOCK)
    }

    /// Offset of block `i` in the device: not aligned.
    pub(super) fn place(i: usize) -> u64 {
        i as u64 * (BLOCK as u64 + 513) + 3
    }

    /// Prepares block `i` to be written: test data in memory, other bytes in the
    /// device.
    pub(super) fn prepare_write(&self, i: usize) {
        self.memory.store(i * BLOCK, data(i));
        self.bar.fill(Self::place(i) as usize, BLOCK, 0xaa);
    }

    /// Prepares block `i` to be read: test data in the device, other bytes in memory.
    pub(super) fn prepare_read(&self, i: usize) {
        self.bar.store(Self::place(i) as usize, data(i));
        self.memory.fill(i * BLOCK, BLOCK, 0xbb);
    }

    /// Checks the test data of block `i` in the device.
    pub(super) fn expect_written(&self, i: usize) -> Verdict {
        let seen = self.bar.load(Self::place(i) as usize, BLOCK);
        expect_bytes(&seen, data(i), &format!("block {i} in the device"))
    }

    /// Checks the test data of block `i` in memory.
    pub(super) fn expect_read(&self, i: usize) -> Verdict {
        let seen = self.memory.load(i * BLOCK, BLOCK);
        expect_bytes(&seen, data(i), &format!("block {i} in memory"))
    }

    /// Checks that ordinary I/O works on every CPU, and no page is pinned.
    pub(super) fn finish(&self) -> Verdict {
        all_released()?;
        for cpu in sys::cpus()? {
            let _pinned = sys::pin_to_cpu(cpu)?;
            self.prepare_write(0);
            let written = sys::pwrite(&self.file, self.block(0), Self::place(0))?;
            check_eq!(written, BLOCK, "bytes written afterwards on CPU {cpu}");
            self.expect_written(0)?;
            self.prepare_read(0);
            let read = sys::pread(&self.file, self.block(0), Self::place(0))?;
            check_eq!(read, BLOCK, "bytes read afterwards on CPU {cpu}");
            self.expect_read(0)?;
        }
        Ok(())
    }
}

/// Test data of block `i`.
pub(super) fn data(i: usize) -> &'static [u8] {
    pattern::bytes(500 + i as u64, BLOCK)
}

/// Waits until a thread is in this sleep state in the system call.
pub(super) fn expect_asleep(task: Task, call: i64, how: SleepState) -> Verdict {
    eventually(&format!("{how:?} sleep in system call {call}"), || {
        Ok(task.sleep_state_in(call).during(|| "the caller".into())? == Some(how))
    })
}

/// A thread with a result.
pub(super) struct Caller<'scope, T> {
    pub(super) task: Task,
    pub(super) thread: ScopedJoinHandle<'scope, T>,
}

impl<'scope, T: Send + 'scope> Caller<'scope, T> {
    /// Starts a thread that makes a call.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        call: impl FnOnce() -> T + Send + 'scope,
    ) -> Verdict<Self> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = scope.spawn(move || {
            // The receiver waits for it.
            let _ = sender.send(Task::current());
            call()
        });
        let task = receiver
            .recv()
            .map_err(|_| Stop::Failed("a thread did not start".into()))?;
        Ok(Self { task, thread })
    }

    pub(super) fn expect_asleep(&self, call: i64, how: SleepState) -> Verdict {
        expect_asleep(self.task, call, how)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread; its result.
    pub(super) fn join(self) -> Verdict<T> {
        eventually("the end of a thread", || Ok(self.thread.is_finished()))?;
        self.thread
            .join()
            .map_err(|_| Stop::Failed("a thread panicked".into()))
    }
}

/// Checks that a transfer is complete.
pub(super) fn expect_whole(result: std::io::Result<usize>, what: &str) -> Verdict {
    let moved = result.during(|| what.to_owned())?;
    check_eq!(moved, BLOCK, "bytes of {what}");
    Ok(())
}
