// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Buffers whose page faults user space handles, arbitrarily late. FUSE, NFS and
//! post-copy migration behave the same.

use std::fs::{self, File};
use std::io;
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};

use crate::case::{
    Context, During, Stop, TIMEOUT, Verdict, eventually, expect_bytes, expect_errno,
};
use crate::fixtures::driver::{appears, expect_working};
use crate::pattern;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, PAGE, Region, Ring, Task, UringOperation, UserFaults,
};
use crate::{check, check_eq};

/// More readers than a queue has entries.
const READERS: usize = 300;

/// Stack size of a reader thread.
const STACK: usize = 64 << 10;

/// A call that pins pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Pread,
    Aio,
    Uring,
}

impl Call {
    pub(super) const ALL: [Self; 3] = [Self::Pread, Self::Aio, Self::Uring];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pread => "pread",
            Self::Aio => "aio",
            Self::Uring => "io_uring",
        }
    }

    fn make(self, file: &File, memory: &Region) -> io::Result<usize> {
        let buffer = memory.buffer(0, PAGE);
        match self {
            Self::Pread => sys::pread(file, buffer, 0),
            Self::Aio => AioContext::new(1)?.run(AioOperation::pread(file, buffer, 0)),
            Self::Uring => Ring::new(1)?.run(&UringOperation::read(file, Buffers::One(buffer), 0)),
        }
    }
}

/// Whether a thread waits in a page fault.
fn waits_for_a_page(task: Task) -> Verdict<bool> {
    let function = task
        .kernel_function()
        .during(|| format!("looking where {task:?} waits"))?;
    Ok(function == "handle_userfault")
}

/// The first CPU.
fn first_cpu() -> Verdict<usize> {
    let first = sys::cpus()?.first().copied();
    first.ok_or_else(|| Stop::Failed("there is no CPU".into()))
}

/// Reads test data on the current CPU, and so by the queue of the blocked readers.
fn read_elsewhere(file: &File, bar: &Region, memory: &Region) -> Verdict {
    let data = pattern::bytes(31, PAGE);
    bar.store(8 * PAGE, data);
    memory.fill(0, PAGE, 0);
    let read = sys::pread(file, memory.buffer(0, PAGE), 8 * PAGE as u64)?;
    check_eq!(read, PAGE, "bytes of another reader");
    expect_bytes(&memory.load(0, PAGE), data, "what another has read")
}

/// A thread that reads a page.
type Reader<'scope> = ScopedJoinHandle<'scope, io::Result<usize>>;

/// Starts readers of one page each, all on one CPU.
fn start_readers<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    file: &'scope File,
    missing: &'scope Region,
    cpu: usize,
) -> Verdict<(Vec<Task>, Vec<Reader<'scope>>)> {
    let (sender, receiver) = mpsc::channel();
    let mut threads = Vec::new();
    for i in 0..READERS {
        let sender = sender.clone();
        let thread = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                let _pinned = sys::pin_to_cpu(cpu)?;
                // The receiver waits for it.
                let _ = sender.send(Task::current());
                sys::pread(file, missing.buffer(i * PAGE, PAGE), (i * PAGE) as u64)
            })?;
        threads.push(thread);
    }
    let tasks: Vec<_> = receiver.iter().take(READERS).collect();
    check_eq!(tasks.len(), READERS, "readers started");
    Ok((tasks, threads))
}

/// Waits for the readers, each of which reads its page.
fn expect_read(threads: Vec<Reader<'_>>) -> Verdict {
    for thread in threads {
        let read = thread
            .join()
            .map_err(|_| Stop::Failed("a reader panicked".into()))?;
        check_eq!(read?, PAGE, "bytes of a reader");
    }
    Ok(())
}

pub(super) fn blocked_readers(context: &Context) -> Verdict {
    let file = context.open()?;
    let bar = context.map()?;
    let memory = Region::anonymous(PAGE)?;
    let missing = Region::anonymous(READERS * PAGE)?;
    let data = pattern::bytes(30, READERS * PAGE);
    bar.store(0, data);
    let cpu = first_cpu()?;
    let faults = UserFaults::of(&missing)?;
    thread::scope(|scope| {
        let registered = faults.unregister_on_drop();
        let (tasks, threads) = start_readers(scope, &file, &missing, cpu)?;
        let blocked = eventually("the wait of all readers for their pages", || {
            for &task in &tasks {
                if !waits_for_a_page(task)? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        // In a thread of its own, so that the faults are handled even if it hangs.
        let other = scope.spawn(|| {
            let _pinned = sys::pin_to_cpu(cpu)?;
            read_elsewhere(&file, &bar, &memory)
        });
        let ended = eventually("the read of another", || Ok(other.is_finished()));
        drop(registered);
        expect_read(threads)?;
        blocked?;
        ended?;
        other
            .join()
            .map_err(|_| Stop::Failed("the other reader panicked".into()))?
    })?;
    bar.store(0, data);
    expect_bytes(
        &missing.load(PAGE * 9, PAGE),
        &data[PAGE * 9..PAGE * 10],
        "a page",
    )
}

pub(super) fn handler_reads_the_device(context: &Context) -> Verdict {
    let file = context.open()?;
    let bar = context.map()?;
    let memory = Region::anonymous(PAGE)?;
    let missing = Region::anonymous(READERS * PAGE)?;
    let cpu = first_cpu()?;
    let faults = UserFaults::of(&missing)?;
    thread::scope(|scope| {
        let registered = faults.unregister_on_drop();
        let (_, threads) = start_readers(scope, &file, &missing, cpu)?;
        let handler = scope.spawn(|| {
            let _pinned = sys::pin_to_cpu(cpu)?;
            for _ in 0..READERS {
                let page = faults.wait_for_fault(TIMEOUT)?;
                // Like a file system on the device.
                read_elsewhere(&file, &bar, &memory)?;
                faults.zero_pages(page, PAGE)?;
            }
            Ok(())
        });
        let ended = eventually("the end of the handler", || Ok(handler.is_finished()));
        // Handle the remaining faults, so that the threads end.
        drop(registered);
        let handled: Verdict = handler
            .join()
            .map_err(|_| Stop::Failed("the handler panicked".into()))?;
        expect_read(threads)?;
        ended?;
        handled
    })
}

pub(super) fn unbind(context: &Context, call: Call) -> Verdict {
    let address = context.pci_address()?;
    let switch = |name: &str| {
        let path = format!("/sys/bus/pci/drivers/ringbar/{name}");
        fs::write(&path, &address).during(|| format!("writing {path}"))
    };
    let file = context.open()?;
    let missing = Region::anonymous(PAGE)?;
    let faults = UserFaults::of(&missing)?;
    let result = thread::scope(|scope| {
        let _registered = faults.unregister_on_drop();
        let (sender, receiver) = mpsc::channel();
        let reader = scope.spawn(|| {
            let sender = sender;
            // The receiver waits for it.
            let _ = sender.send(Task::current());
            call.make(&file, &missing)
        });
        let task = receiver
            .recv()
            .map_err(|_| Stop::Failed("the reader did not start".into()))?;
        let waits = eventually("the wait of the reader for its page", || {
            waits_for_a_page(task)
        });
        let unbound = scope.spawn(|| switch("unbind"));
        let ended = eventually("unbind", || Ok(unbound.is_finished()));
        let still_waits = waits_for_a_page(task);
        faults.zero_pages(missing.address(), PAGE)?;
        let result = reader
            .join()
            .map_err(|_| Stop::Failed("the reader panicked".into()))?;
        unbound
            .join()
            .map_err(|_| Stop::Failed("unbind panicked".into()))??;
        waits?;
        ended?;
        check!(still_waits?, "the reader has its page already");
        Ok(result)
    });
    switch("bind")?;
    appears(context)?;
    expect_errno(
        result?,
        &[libc::ENODEV],
        "a call that was overtaken by unbind",
    )?;
    expect_working(context, 3)
}
