// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The lying device of a test, and requests to it.

use std::cell::Cell;
use std::fs::File;
use std::io;

use ringbar_agent_protocol::host::{Lie, LieQueue, UsedLie};
use ringbar_uapi::{self as uapi, Command};

use crate::case::{Context, Verdict, eventually, expect_errno};
use crate::check_eq;
use crate::fixtures::device::{all_released, info};
use crate::fixtures::driver::{bind, expect_working, unbind};
use crate::host::Host;
use crate::kernel_log::KernelLog;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, CommandEntry, CommandRing, PAGE, Region, Ring,
    UringOperation,
};

/// Entries of each queue. Few, because the driver is bound often, and each entry adds to
/// the time of a probe.
pub(super) const QUEUE_SIZE: u16 = 32;

/// Bytes of a request.
pub(super) const BLOCK: usize = 16 << 10;

/// The device of a test. If the test does not leave it in order, it is bound again when
/// dropped.
pub(super) struct LyingDevice<'a> {
    pub(super) context: &'a Context,
    pub(super) host: Host,
    pub(super) address: String,
    pub(super) log: KernelLog,
    pub(super) told: u64,
    pub(super) in_order: Cell<bool>,
}

impl<'a> LyingDevice<'a> {
    /// The device, which works and does not lie yet.
    pub(super) fn new(context: &'a Context) -> Verdict<Self> {
        let host = Host::connect()?;
        host.end_lies()?;
        expect_working(context, 1)?;
        let told = host.lies_told()?;
        Ok(Self {
            context,
            told,
            address: context.pci_address()?,
            log: KernelLog::from_now()?,
            host,
            in_order: Cell::new(false),
        })
    }

    /// Prepares a lie about the next request of an I/O queue.
    pub(super) fn lie(&self, lie: UsedLie) -> Verdict {
        self.tell(Lie::Used(LieQueue::Io, lie))
    }

    /// Prepares any lie.
    pub(super) fn tell(&self, lie: Lie) -> Verdict {
        self.in_order.set(false);
        self.host.lie(lie)
    }

    /// Waits until `count` lies were told since the start of the test.
    pub(super) fn expect_told(&self, count: u64) -> Verdict {
        eventually(&format!("{count} lies"), || {
            Ok(self.host.lies_told()? - self.told >= count)
        })
    }

    /// Checks that the driver has logged one line since the last call, and that it
    /// contains all of these words.
    pub(super) fn expect_line(&mut self, words: &[&str]) -> Verdict {
        let lines = self.log.of_driver()?;
        check_eq!(lines.len(), 1, "lines of the driver, which are {lines:?}");
        for word in words {
            crate::check!(lines[0].contains(word), "{:?} without {word:?}", lines[0]);
        }
        Ok(())
    }

    /// Checks that the driver has logged nothing.
    pub(super) fn expect_no_line(&mut self) -> Verdict {
        let lines = self.log.of_driver()?;
        crate::check!(lines.is_empty(), "the driver said {lines:?}");
        Ok(())
    }

    /// Waits until the driver has taken the device out of service, for a lie that does not
    /// break the queues of the requests to come.
    pub(super) fn wait_out_of_service(&self) -> Verdict {
        let file = self.context.open()?;
        eventually("the end of service", || {
            Ok(info(&file)?.state == uapi::STATE_OUT_OF_SERVICE)
        })?;
        self.expect_out_of_service()
    }

    /// Checks that new requests end with EIO, and no page is pinned.
    pub(super) fn expect_out_of_service(&self) -> Verdict {
        let file = self.context.open()?;
        expect_all_fail(&file, &[libc::EIO])?;
        all_released()
    }

    /// Returns the device to service in the documented way.
    pub(super) fn bring_back(&mut self) -> Verdict {
        unbind(&self.address)?;
        bind(self.context, &self.address)?;
        self.expect_in_order()
    }

    /// Checks that the device works, and no page is pinned.
    pub(super) fn expect_in_order(&mut self) -> Verdict {
        expect_working(self.context, 2)?;
        all_released()?;
        self.in_order.set(true);
        Ok(())
    }
}

impl Drop for LyingDevice<'_> {
    fn drop(&mut self) {
        if let Err(stop) = self.host.end_lies() {
            eprintln!("ending lies: {stop:?}");
        }
        if !self.in_order.get() {
            // The device may not be bound.
            let _ = unbind(&self.address);
            if let Err(stop) = bind(self.context, &self.address) {
                eprintln!("bringing the device back: {stop:?}");
            }
        }
    }
}

/// I/O engine of a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Engine {
    Synchronous,
    Aio,
    Uring,
}

impl Engine {
    pub(super) const ALL: [Self; 3] = [Self::Synchronous, Self::Aio, Self::Uring];

    /// Reads into the start of `memory`.
    pub(super) fn read(
        self,
        file: &File,
        memory: &Region,
        length: usize,
        at: u64,
    ) -> io::Result<usize> {
        let buffer = memory.buffer(0, length);
        match self {
            Self::Synchronous => sys::pread(file, buffer, at),
            Self::Aio => AioContext::new(1)?.run(AioOperation::pread(file, buffer, at)),
            Self::Uring => Ring::new(1)?.run(&UringOperation::read(file, Buffers::One(buffer), at)),
        }
    }

    /// Writes from the start of `memory`.
    pub(super) fn write(
        self,
        file: &File,
        memory: &Region,
        length: usize,
        at: u64,
    ) -> io::Result<usize> {
        let buffer = memory.buffer(0, length);
        match self {
            Self::Synchronous => sys::pwrite(file, buffer, at),
            Self::Aio => AioContext::new(1)?.run(AioOperation::pwrite(file, buffer, at)),
            Self::Uring => {
                Ring::new(1)?.run(&UringOperation::write(file, Buffers::One(buffer), at))
            }
        }
    }
}

/// Checks that every kind of I/O fails with one of these errors.
pub(super) fn expect_all_fail(file: &File, errors: &[i32]) -> Verdict {
    let memory = Region::anonymous(PAGE)?;
    for engine in Engine::ALL {
        let read = engine.read(file, &memory, PAGE, 0);
        expect_errno(read, errors, &format!("read by {engine:?}"))?;
        let write = engine.write(file, &memory, PAGE, 0);
        expect_errno(write, errors, &format!("write by {engine:?}"))?;
    }
    let list = [memory.buffer(0, 100), memory.buffer(1000, 100)];
    expect_errno(sys::preadv(file, &list, 0), errors, "preadv")?;
    expect_errno(sys::pwritev(file, &list, 0), errors, "pwritev")?;
    expect_errno(sys::fsync(file), errors, "fsync")?;
    let mut fill = Command {
        opcode: uapi::OP_FILL,
        length: 8,
        ..Command::default()
    };
    expect_errno(sys::execute(file, &mut fill), errors, "ioctl")?;
    let completed = CommandRing::new(2)?.run(&CommandEntry::new(file, &fill))?;
    expect_errno(completed.result, errors, "io_uring command")
}
