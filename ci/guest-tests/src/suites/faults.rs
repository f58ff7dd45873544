// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fails every allocation on every path into the driver, one after the other.
//!
//! The kernel's fault injection fails the n-th attempt of a thread to allocate memory or
//! to copy from or to user space (`Documentation/fault-injection/fault-injection.rst`).
//! Each operation is repeated with the first attempt failing, then the second, and so on,
//! until it completes without a failure.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ringbar_uapi::{self as uapi, Command};

use crate::case::{Case, Context, During, Stop, Suite, Verdict};
use crate::fixtures::driver::{appears, expect_working};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs};
use crate::pattern;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, CommandEntry, CommandRing, PAGE, Region, Ring,
    UringOperation,
};
use crate::{check, check_eq};

/// Upper limit for the number of attempts of an operation.
const LIMIT: u32 = 20_000;

/// The kernel's message when it cannot allocate the stack of a new process or thread, which
/// may be a worker of io_uring.
const NO_STACK: &str = "ringbar-guest-t: vmalloc error: ";

/// Stops the C library from registering restartable sequences. The kernel writes to their
/// area when it migrates a thread; after a fork that write copies the page, and the
/// kernel kills the thread if the allocation fails.
const NO_RSEQ: (&str, &str) = ("GLIBC_TUNABLES", "glibc.pthread.rseq=0");

/// The kernel's warning after a failed allocation: `register_irq_proc` ignores that a
/// file in /proc/irq could not be created, and the kernel misses the file when the
/// interrupt is freed.
const IRQ_PROC_WARNING: &[&str] = &["at remove_proc_entry+", " unregister_irq_proc+"];

/// Timeout for the end of a process.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "faults",
        about: "each allocation on each path fails once; nothing leaks, the next call works",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                // Probe allocates memory for each entry, and the suite fails each
                // allocation once. Few entries still cover every line of the driver.
                queues: Some(1),
                queue_size: Some(8),
                ..Daemon::default()
            }),
            // A failed allocation disables the DMA API checker with a warning, and ACPI
            // methods have a hundred allocations of their own in each probe.
            kernel_args: vec!["dma_debug=off".into(), "pci=noacpi".into()],
            environment: &[NO_RSEQ],
            kernels: Kernels::DebugOnly,
            expected_traces: &[IRQ_PROC_WARNING],
            ..Needs::default()
        },
        cases: vec![
            Case::new("b1_faults_in_read", |context| read(context, 3 * PAGE)),
            Case::new("b1_faults_in_write", |context| write(context, 3 * PAGE)),
            Case::new("b13_faults_in_read_of_several_requests", |context| {
                read(context, 64 * PAGE)
            }),
            Case::new("b13_faults_in_write_of_several_requests", |context| {
                write(context, 64 * PAGE)
            }),
            Case::new("b1_faults_in_vectored_calls", vectored),
            Case::new("b6_faults_in_aio", aio),
            Case::new("b8_faults_in_io_uring", io_uring).may_provoke(NO_STACK),
            Case::new(
                "dr11_faults_in_registered_buffers_of_several_requests",
                registered,
            )
            .may_provoke(NO_STACK),
            Case::new("b7_faults_in_fsync", fsync),
            Case::new("b12_faults_in_open", open),
            Case::new("b14_faults_in_ioctl", ioctl),
            Case::new("b14_faults_in_io_uring_commands", uring_commands).may_provoke(NO_STACK),
            Case::new("a2_faults_in_mmap", mmap),
            Case::new("a4_faults_in_fork_and_split_of_a_map", fork_and_split).may_provoke(NO_STACK),
            Case::new("d2_faults_in_probe", probe)
                // It fails some 400 allocations, one after the other.
                .left_to_test_all()
                .provokes("probe with driver ringbar failed with error -12")
                // Further messages depend on the failed allocation.
                .may_provoke("probe with driver ringbar failed with error ")
                .may_provoke("driver_sysfs_add failed")
                .may_provoke(": can't reserve [mem ")
                .may_provoke("ioremap memtype_reserve failed")
                .may_provoke("kobject_add_internal failed for ")
                .may_provoke("kobject: can not set name properly!")
                .may_provoke("Failed to add kobject for irq ")
                .may_provoke("debugfs: out of free dentries")
                .may_provoke(NO_STACK),
        ],
    }
}

/// Fault injection for this thread.
struct Injector(File);

impl Injector {
    /// Enables failures for all allocations: of any order, also those that may sleep.
    fn new() -> Verdict<Self> {
        let root = Path::new("/sys/kernel/debug");
        for (file, value) in [
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
            ("fail_usercopy/verbose", "0"),
        ] {
            let path = root.join(file);
            fs::write(&path, value).during(|| format!("writing {}", path.display()))?;
        }
        let path = Path::new("/proc/thread-self/fail-nth");
        let file =
            sys::open(path, libc::O_RDWR).during(|| format!("opening {}", path.display()))?;
        Ok(Self(file))
    }

    /// Runs `operation` with the `n`-th attempt failing. Returns whether there was an
    /// `n`-th attempt, and the operation's result.
    fn with<T>(
        &self,
        n: u32,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> Verdict<(bool, io::Result<T>)> {
        let number = n.to_string();
        self.0
            .write_at(number.as_bytes(), 0)
            .during(|| "arming".into())?;
        let result = operation();
        // Read the remaining count. If the count reaches 0 only in this call, the call
        // fails, and the operation has met no failure.
        let mut left = [0; 16];
        let met = self.0.read_at(&mut left, 0).is_ok() && left.starts_with(b"0\n");
        // While the count is not 0, this call itself may be the one that fails.
        while let Err(error) = self.0.write_at(b"0", 0) {
            let failed = error.raw_os_error() == Some(libc::EFAULT);
            check!(failed, "disarming: {error}");
        }
        Ok((met, result))
    }
}

/// Errors of a failed allocation: no memory, an unreachable user page, no room for a
/// mapping, try again.
const ALLOWED: [i32; 4] = [libc::ENOMEM, libc::EFAULT, libc::EIO, libc::EAGAIN];

/// Fails each attempt within `operation` once; `prepare` creates the input of one run,
/// which is dropped without failures. The device must work after each run. Returns the
/// number of failures.
fn attempts<T, U>(
    context: &Context,
    what: &str,
    mut prepare: impl FnMut() -> Verdict<T>,
    mut operation: impl FnMut(&mut T) -> io::Result<U>,
) -> Verdict<u32> {
    let injector = Injector::new()?;
    for n in 1..LIMIT {
        let mut prepared = prepare()?;
        let (met, result) = injector.with(n, || operation(&mut prepared))?;
        let result = result.map(drop);
        drop(prepared);
        if !met {
            result.during(|| format!("{what} without a failure"))?;
            eprintln!("{what}: {} failures", n - 1);
            expect_working(context, 1)?;
            return Ok(n - 1);
        }
        if let Err(error) = result {
            let known = error.raw_os_error().is_some_and(|e| ALLOWED.contains(&e));
            check!(known, "{what}, failure {n}: {error}");
        }
        small_transfer(context).during(|| format!("{what}: after failure {n}"))?;
    }
    Err(Stop::Failed(format!("{what}: no end of failures")))
}

/// As [`attempts`]; at least one failure must occur.
fn sweep<T, U>(
    context: &Context,
    what: &str,
    prepare: impl FnMut() -> Verdict<T>,
    operation: impl FnMut(&mut T) -> io::Result<U>,
) -> Verdict {
    check!(
        attempts(context, what, prepare, operation)? > 0,
        "{what}: nothing failed"
    );
    Ok(())
}

/// Writes and reads back a little.
fn small_transfer(context: &Context) -> Verdict {
    const LENGTH: usize = 5000;
    let file = context.open()?;
    let memory = Region::anonymous(2 * LENGTH)?;
    memory.store(0, pattern::bytes(5, LENGTH));
    check_eq!(
        sys::pwrite(&file, memory.buffer(0, LENGTH), 77)?,
        LENGTH,
        "bytes written"
    );
    check_eq!(
        sys::pread(&file, memory.buffer(LENGTH, LENGTH), 77)?,
        LENGTH,
        "bytes read"
    );
    check_eq!(
        pattern::difference(&memory.load(LENGTH, LENGTH), pattern::bytes(5, LENGTH)),
        None,
        "what was read"
    );
    Ok(())
}

/// A file, and memory without any pages.
fn fresh(context: &Context, length: usize) -> Verdict<(File, Region)> {
    Ok((context.open()?, Region::shared_anonymous(length)?))
}

fn moved(result: io::Result<usize>) -> io::Result<()> {
    // A short transfer is a valid result.
    match result? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn read(context: &Context, length: usize) -> Verdict {
    let prepare = || fresh(context, length);
    sweep(context, "read", prepare, |(file, memory)| {
        moved(sys::pread(file, memory.buffer(0, length), 1))
    })
}

fn write(context: &Context, length: usize) -> Verdict {
    let prepare = || fresh(context, length);
    sweep(context, "write", prepare, |(file, memory)| {
        moved(sys::pwrite(file, memory.buffer(0, length), 1))
    })
}

fn vectored(context: &Context) -> Verdict {
    const PIECES: usize = 40;
    let prepare = || {
        let (file, memory) = fresh(context, 2 * PIECES * PAGE)?;
        // Every second page, so that no two pages are merged into a segment.
        let list: Vec<_> = (0..PIECES)
            .map(|i| memory.buffer(2 * i * PAGE + 100, 700))
            .collect();
        Ok((file, memory, list))
    };
    sweep(context, "readv", prepare, |(file, _memory, list)| {
        moved(sys::preadv(file, list, 3))
    })?;
    sweep(context, "writev", prepare, |(file, _memory, list)| {
        moved(sys::pwritev(file, list, 3))
    })
}

fn aio(context: &Context) -> Verdict {
    let prepare = || {
        let (file, memory) = fresh(context, 4 * PAGE)?;
        Ok((AioContext::new(4)?, file, memory))
    };
    sweep(context, "AIO read", prepare, |(aio, file, memory)| {
        let buffer = memory.buffer(0, 4 * PAGE);
        moved(aio.run(AioOperation::pread(file, buffer, 5)))
    })?;
    sweep(context, "AIO write", prepare, |(aio, file, memory)| {
        let buffer = memory.buffer(0, 4 * PAGE);
        moved(aio.run(AioOperation::pwrite(file, buffer, 5)))
    })
}

/// io_uring passes a request that may wait to a worker, for example because of a
/// contended lock, and cancels it if it has no memory for the first worker
/// (`io_wq_enqueue` in `io_uring/io-wq.c`).
fn as_no_worker<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::ECANCELED) => io::Error::from_raw_os_error(libc::ENOMEM),
        _ => error,
    })
}

fn io_uring(context: &Context) -> Verdict {
    let prepare = || {
        let (file, memory) = fresh(context, 4 * PAGE)?;
        Ok((Ring::new(4)?, file, memory))
    };
    sweep(context, "io_uring read", prepare, |(ring, file, memory)| {
        let buffer = Buffers::One(memory.buffer(0, 4 * PAGE));
        moved(as_no_worker(
            ring.run(&UringOperation::read(file, buffer, 5)),
        ))
    })?;
    sweep(
        context,
        "io_uring write",
        prepare,
        |(ring, file, memory)| {
            let buffer = Buffers::One(memory.buffer(0, 4 * PAGE));
            moved(as_no_worker(
                ring.run(&UringOperation::write(file, buffer, 5)),
            ))
        },
    )
}

/// io_uring keeps registered pages until a request is completed, and not longer.
fn registered(context: &Context) -> Verdict {
    const LENGTH: usize = 64 * PAGE;
    for write in [false, true] {
        let prepare = || {
            let (file, memory) = fresh(context, LENGTH)?;
            memory.fill(0, LENGTH, 1);
            let ring = Ring::new(4)?;
            ring.register_buffers(&[&memory])?;
            Ok((ring, file, memory))
        };
        sweep(
            context,
            "io_uring with a registered buffer",
            prepare,
            |(ring, file, memory)| {
                let buffer = Buffers::Registered(memory.buffer(0, LENGTH), 0);
                moved(as_no_worker(ring.run(&if write {
                    UringOperation::write(file, buffer, 5)
                } else {
                    UringOperation::read(file, buffer, 5)
                })))
            },
        )?;
    }
    Ok(())
}

fn fsync(context: &Context) -> Verdict {
    let injector = Injector::new()?;
    // A flush allocates nothing, so nothing can fail.
    let file = context.open()?;
    let (met, result) = injector.with(1, || sys::fsync(&file))?;
    result.during(|| "fsync".into())?;
    check!(!met, "fsync allocates memory");
    Ok(())
}

fn open(context: &Context) -> Verdict {
    sweep(
        context,
        "open",
        || Ok(()),
        |()| sys::open(context.path(), libc::O_RDWR),
    )
}

/// A command whose effect does not matter.
const COMMAND: Command = Command {
    opcode: uapi::OP_FILL,
    flags: 0,
    offset: 1000,
    length: 5000,
    argument: 0,
    result: 0,
};

fn ioctl(context: &Context) -> Verdict {
    let prepare = || context.open();
    sweep(context, "ioctl: info", prepare, |file| sys::info(file))?;
    sweep(context, "ioctl: command", prepare, |file| {
        sys::execute(file, &mut { COMMAND })
    })
}

fn uring_commands(context: &Context) -> Verdict {
    let prepare = || Ok((CommandRing::new(4)?, context.open()?));
    sweep(context, "io_uring command", prepare, |(ring, file)| {
        as_no_worker(ring.run(&CommandEntry::new(file, &COMMAND))?.result)
    })
}

/// The maps: selector and length.
const MAPS: [(u64, usize); 4] = [
    (uapi::MAP_MEMORY, 64 * PAGE),
    (uapi::MAP_STATISTICS, PAGE),
    (uapi::MAP_EVENTS, uapi::EVENT_LOG_PAGES * PAGE),
    (uapi::MAP_USED_RINGS, PAGE),
];

fn map(file: &File, selector: u64, length: usize) -> io::Result<Region> {
    let offset = selector << uapi::MAP_SHIFT;
    Region::of_file(file, offset, length, libc::PROT_READ, libc::MAP_SHARED)
}

/// Converts an error of mapping the device memory: if the kernel has no memory to record
/// the memory type of the range, `remap_pfn_range` returns EINVAL
/// (`pfnmap_track_ctx_alloc` in `mm/memory.c`).
fn as_no_memory(selector: u64, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) if selector == uapi::MAP_MEMORY => {
            io::Error::from_raw_os_error(libc::ENOMEM)
        }
        _ => error,
    }
}

fn mmap(context: &Context) -> Verdict {
    for (selector, length) in MAPS {
        sweep(
            context,
            &format!("mmap of {selector}"),
            || context.open(),
            |file| map(file, selector, length).map_err(|error| as_no_memory(selector, error)),
        )?;
        check_eq!(context.counter("maps")?, 0, "maps of {selector} left");
    }
    // Page by page through a fault handler, which needs no memory itself, except perhaps
    // for a page table.
    for (selector, length) in [MAPS[1], MAPS[2]] {
        attempts(
            context,
            &format!("page faults in {selector}"),
            || Ok(map(&context.open()?, selector, length)?),
            |region| region.advise(libc::MADV_POPULATE_READ),
        )?;
    }
    Ok(())
}

fn fork_and_split(context: &Context) -> Verdict {
    let prepare = || Ok(map(&context.open()?, uapi::MAP_MEMORY, 64 * PAGE)?);
    sweep(context, "fork", prepare, |_region| {
        match sys::fork(|| 0)?.wait(TIMEOUT)? {
            Ok(0) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    })?;
    check_eq!(context.counter("maps")?, 0, "maps left by fork");
    sweep(context, "split", prepare, |region| {
        // The kernel makes two areas of one before it takes the second away.
        region.truncate(32 * PAGE)
    })?;
    check_eq!(context.counter("maps")?, 0, "maps left by a split");
    Ok(())
}

fn probe(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let driver = Path::new("/sys/bus/pci/drivers/ringbar");
    let open = |name: &str| {
        let path = driver.join(name);
        sys::open(&path, libc::O_WRONLY).during(|| format!("opening {}", path.display()))
    };
    let (bind, unbind) = (open("bind")?, open("unbind")?);
    let injector = Injector::new()?;
    let mut failed = 0;
    for n in 1..LIMIT {
        unbind
            .write_at(address.as_bytes(), 0)
            .during(|| format!("unbinding before failure {n}"))?;
        let (met, result) = injector.with(n, || bind.write_at(address.as_bytes(), 0))?;
        if !met {
            result.during(|| "binding without a failure".into())?;
            check!(failed > 0, "probe never failed");
            eprintln!("probe: {} failures, {failed} of them fatal", n - 1);
            appears(context)?;
            return expect_working(context, 2);
        }
        // Parts of the kernel return other errors, for example EBUSY for a resource.
        if result.is_err() {
            failed += 1;
            bind.write_at(address.as_bytes(), 0)
                .during(|| format!("binding after failure {n}"))?;
        }
        appears(context)?;
        small_transfer(context).during(|| format!("after failure {n} of probe"))?;
    }
    Err(Stop::Failed("no end of failures in probe".into()))
}
