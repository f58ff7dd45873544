// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver is bound, unbound, loaded and unloaded, with I/O running.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::process::Command;
use std::time::Duration;

use ringbar_uapi as uapi;

use super::recovery;
use crate::case::{Case, Context, During, Stop, Suite, TIMEOUT, Verdict, eventually, expect_errno};
use crate::fixtures::driver::{bind, expect_working, load, modprobe, remove, rounds, unbind};
use crate::fixtures::processes::{SharedProgress, expect_good_end, process};
use crate::fixtures::requests::Transfers;
use crate::needs::{Kernels, Needs};
use crate::sys::{
    self, AioContext, AioOperation, Buffers, CommandEntry, CommandRing, Epoll, PAGE, Region, Ring,
    UringOperation,
};
use crate::{check, check_eq};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "lifecycle",
        about: "driver and device are reset, unbound, removed and loaded again, with I/O running",
        needs: Needs::each_transport(),
        cases: [
            Case::new("d2_rmmod_and_modprobe_20_times", reload),
            Case::new("d2_rmmod_and_modprobe_20_times_with_io", reload_with_io),
            Case::new(
                "d2_rmmod_is_refused_while_a_file_is_open",
                rmmod_with_open_file,
            ),
            Case::new(
                "d2_open_file_gets_enodev_after_unbind",
                open_file_after_unbind,
            ),
            Case::new("d2_unbind_20_times_with_io", |context| {
                unbind_with_io(context, rounds())
            }),
            Case::new("b12_poll_of_a_removed_device_hangs_up", poll_after_unbind),
            Case::new("a10_map_of_a_removed_device_gets_sigbus", map_after_unbind),
            Case::new(
                "dr2_map_of_another_node_is_removed_with_the_device",
                super::nodes::map_of_another_node,
            ),
            Case::new("d2_unbind_while_mapped_then_reload", reload_after_mapped),
            Case::new(
                "dr2_unbind_ends_while_processes_with_maps_fork",
                unbind_while_forking,
            )
            // There a fork of that much memory takes longer than the test waits for.
            .not_on_debug_kernel(),
            Case::new(
                "d2_rmmod_is_refused_while_a_counter_is_open",
                rmmod_with_open_counter,
            ),
        ]
        .into_iter()
        .chain(recovery::cases())
        .collect(),
    }
}

/// The same more often.
pub fn long_suite() -> Suite {
    Suite {
        name: "lifecycle_long",
        about: "the driver is unbound and bound many times, with I/O running",
        needs: Needs {
            kernels: Kernels::TestAllOnly,
            ..Needs::each_transport()
        },
        cases: vec![Case::new("d2_unbind_50_times_with_io", |context| {
            unbind_with_io(context, 50)
        })],
    }
}

fn reload(context: &Context) -> Verdict {
    for round in 0..rounds() {
        remove()?;
        check!(
            !context.path().exists(),
            "the device node is there without driver in round {round}"
        );
        load(context)?;
        expect_working(context, round).during(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Whether an error says that there is no device now.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)
    )
}

/// Opens the device and moves data until the device is gone, repeatedly, until told to
/// stop.
fn use_whenever_there(context: &Context, progress: &SharedProgress, number: usize) -> Verdict {
    const LENGTH: usize = 64 << 10;

    let memory = Region::anonymous(LENGTH)?;
    let buffer = memory.buffer(0, LENGTH);
    let aio = AioContext::new(4)?;
    while !progress.signalled() {
        let file = match sys::open(context.path(), libc::O_RDWR) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => {
                // Leaves the CPU to whoever loads the driver.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let offset = ((8 + number) << 20) as u64 + 1;
        while !progress.signalled() {
            let result = sys::pwrite(&file, buffer, offset)
                .and_then(|_| aio.run(AioOperation::pread(&file, buffer, offset)));
            match result {
                Ok(n) => check_eq!(n, LENGTH, "bytes moved"),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => break,
                Err(error) => return Err(error.into()),
            }
            progress.count(number);
        }
    }
    Ok(())
}

fn reload_with_io(context: &Context) -> Verdict {
    const PROCESSES: usize = 3;

    let address = context.pci_address()?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        children.push(process(number, || {
            use_whenever_there(context, &progress, number)
        })?);
    }
    for round in 0..rounds() {
        let during = || format!("round {round}");
        for number in 0..PROCESSES {
            let more = progress.done(number) + 2;
            progress.expect_done(number, more).during(during)?;
        }
        // Open files hold the module. Their owners get ENODEV and close them.
        unbind(&address).during(during)?;
        remove().during(during)?;
        load(context).during(during)?;
    }
    progress.signal();
    for (number, child) in children.into_iter().enumerate() {
        expect_good_end(number, child)?;
    }
    expect_working(context, 77)
}

fn rmmod_with_open_file(context: &Context) -> Verdict {
    let file = context.open()?;
    check!(
        !modprobe(&["-r", "ringbar"])?,
        "the module could be removed while a file was open"
    );
    let memory = Region::anonymous(PAGE)?;
    let read = sys::pread(&file, memory.buffer(0, PAGE), 0)
        .during(|| "reading after the attempt".into())?;
    check_eq!(read, PAGE, "bytes read after the attempt");
    drop(file);
    remove()?;
    load(context)
}

fn open_file_after_unbind(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let file = context.open()?;
    let memory = Region::anonymous(PAGE)?;
    unbind(&address)?;
    let result = expect_enodev(&file, &memory);
    bind(context, &address)?;
    result?;
    // The old file stays invalid after the device is bound again.
    expect_enodev(&file, &memory).during(|| "after binding again".into())?;
    expect_working(context, 78)?;
    drop(file);
    expect_working(context, 79)
}

/// Every kind of new I/O on the file of a removed device fails alike.
fn expect_enodev(file: &File, memory: &Region) -> Verdict {
    const ENODEV: &[i32] = &[libc::ENODEV];

    let buffer = memory.buffer(0, PAGE);
    let list = [buffer];
    expect_errno(sys::pread(file, buffer, 0), ENODEV, "pread")?;
    expect_errno(sys::pwrite(file, buffer, 0), ENODEV, "pwrite")?;
    expect_errno(sys::preadv(file, &list, 0), ENODEV, "preadv")?;
    expect_errno(sys::pwritev(file, &list, 0), ENODEV, "pwritev")?;
    expect_errno(sys::fsync(file), ENODEV, "fsync")?;
    expect_errno(Region::shared(file, 0, PAGE), ENODEV, "mmap")?;

    expect_errno(sys::info(file), ENODEV, "ioctl for information")?;
    let mut flush = uapi::Command {
        opcode: uapi::OP_FLUSH,
        ..uapi::Command::default()
    };
    expect_errno(sys::execute(file, &mut flush), ENODEV, "ioctl")?;
    let completed = CommandRing::new(2)?.run(&CommandEntry::new(file, &flush))?;
    expect_errno(completed.result, ENODEV, "io_uring command")?;

    let aio = AioContext::new(2)?;
    expect_errno(
        aio.run(AioOperation::pread(file, buffer, 0)),
        ENODEV,
        "aio pread",
    )?;
    expect_errno(
        aio.run(AioOperation::pwrite(file, buffer, 0)),
        ENODEV,
        "aio pwrite",
    )?;
    let mut ring = Ring::new(2)?;
    let read = UringOperation::read(file, Buffers::One(buffer), 0);
    expect_errno(ring.run(&read), ENODEV, "io_uring read")?;
    let write = UringOperation::write(file, Buffers::One(buffer), 0);
    expect_errno(ring.run(&write), ENODEV, "io_uring write")
}

/// Moves data until the device is gone, by a method that depends on the process's number.
fn until_gone(context: &Context, progress: &SharedProgress, number: usize) -> Verdict {
    let mut transfers = Transfers::new(context, number)?;
    loop {
        for result in transfers.make()? {
            match result {
                Ok(n) => check_eq!(n, Transfers::LENGTH, "bytes moved"),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        progress.count(number);
    }
}

fn unbind_with_io(context: &Context, rounds: u64) -> Verdict {
    for round in 0..rounds {
        unbind_once_with_io(context).during(|| format!("round {round}"))?;
        expect_working(context, round).during(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Unbinds the device while processes use it, and binds it again.
pub(super) fn unbind_once_with_io(context: &Context) -> Verdict {
    const PROCESSES: usize = 4;

    let address = context.pci_address()?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        children.push(process(number, || until_gone(context, &progress, number))?);
    }
    for number in 0..PROCESSES {
        progress.expect_done(number, 2)?;
    }
    unbind(&address)?;
    for (number, child) in children.into_iter().enumerate() {
        expect_good_end(number, child)?;
    }
    bind(context, &address)
}

/// A poll that waits during the removal, and polls after it.
fn poll_after_unbind(context: &Context) -> Verdict {
    const GONE: i16 = libc::POLLERR | libc::POLLHUP;

    let address = context.pci_address()?;
    let progress = SharedProgress::new()?;
    // Only nonblocking files support poll.
    let open = || context.open_with(libc::O_RDWR | libc::O_NONBLOCK);
    // An idle device has no other events.
    let waiter = process(0, || {
        let file = open()?;
        progress.count(0);
        let events = sys::poll(&file, 0, TIMEOUT)?;
        check_eq!(events, GONE, "events of a waiter");
        Ok(())
    })?;
    let file = open()?;
    let epoll = Epoll::new()?;
    let ready = libc::EPOLLIN | libc::EPOLLOUT;
    epoll.add(&file, ready | libc::EPOLLET, 1)?;
    check_eq!(epoll.wait(TIMEOUT)?, Some((ready, 1)), "while it is there");
    check_eq!(epoll.wait(Duration::ZERO)?, None, "without a change");
    progress.expect_done(0, 1)?;
    eventually("the waiter to sleep", || asleep(waiter.id()))?;

    unbind(&address)?;
    let edge = epoll.wait(TIMEOUT);
    let late = sys::poll(&file, libc::POLLIN | libc::POLLOUT, Duration::ZERO);
    bind(context, &address)?;
    let gone = ready | libc::EPOLLERR | libc::EPOLLHUP;
    check_eq!(edge?, Some((gone, 1)), "events by epoll");
    // A read or write returns at once, so the file is ready.
    check_eq!(late?, GONE | libc::POLLIN | libc::POLLOUT, "events by poll");
    expect_good_end(0, waiter)?;
    expect_working(context, 82)
}

/// Whether a process sleeps (`/proc/PID/stat`).
fn asleep(process: i32) -> Verdict<bool> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    Ok(stat
        .rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('S')))
}

fn map_after_unbind(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let progress = SharedProgress::new()?;
    let child = process(0, || {
        let map = context.map()?;
        map.store(12345, b"mapped");
        progress.count(0);
        while !progress.signalled() {
            std::thread::yield_now();
        }
        let seen = map.load(12345, 6);
        Err(Stop::Failed(format!(
            "the map of the removed device shows {seen:?}"
        )))
    })?;
    progress.expect_done(0, 1)?;
    unbind(&address)?;
    progress.signal();
    let end = child.wait(TIMEOUT)?;
    bind(context, &address)?;
    check!(
        matches!(end, Err(libc::SIGBUS | libc::SIGSEGV)),
        "the process ended with {end:?}, not SIGBUS"
    );
    expect_working(context, 80)
}

/// Forks repeatedly, with a map and much other memory, so that a fork is nearly always in
/// progress.
fn fork_all_the_time(context: &Context, progress: &SharedProgress, number: usize) -> Verdict {
    const LENGTH: usize = 96 << 20;
    const CHILDREN: usize = 4;

    let memory = Region::anonymous(LENGTH)?;
    memory.advise(libc::MADV_NOHUGEPAGE)?;
    memory.fill(0, LENGTH, 1);
    // At an address below the memory, so that a child gets the map long before its fork
    // is complete.
    let _map = context.map()?;
    let mut children = VecDeque::new();
    while !progress.signalled() {
        if children.len() == CHILDREN {
            children.pop_front();
        }
        children.push_back(sys::fork(|| 0)?);
        progress.count(number);
    }
    Ok(())
}

/// Each child is another process with maps, whose memory lock the fork holds.
fn unbind_while_forking(context: &Context) -> Verdict {
    const PROCESSES: usize = 4;

    let address = context.pci_address()?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        children.push(process(number, || {
            fork_all_the_time(context, &progress, number)
        })?);
    }
    for number in 0..PROCESSES {
        progress.expect_done(number, 1)?;
    }
    let unbinder = process(PROCESSES, || unbind(&address))?;
    let ended = unbinder.ends_within(TIMEOUT);
    progress.signal();
    expect_good_end(PROCESSES, unbinder)?;
    for (number, child) in children.into_iter().enumerate() {
        expect_good_end(number, child)?;
    }
    bind(context, &address)?;
    check!(ended?, "unbind did not end while processes were forking");
    expect_working(context, 83)
}

/// An open debugfs file uses the module's code.
fn rmmod_with_open_counter(context: &Context) -> Verdict {
    let mut counter = File::open(context.counter_path("requests")?)?;
    let rmmod = Command::new("rmmod").arg("ringbar").output()?;
    check!(
        !rmmod.status.success(),
        "the module could be removed while one of its counters was open"
    );
    let mut text = String::new();
    counter.read_to_string(&mut text)?;
    check!(
        text.trim_end().parse::<u64>().is_ok(),
        "the counter shows {text:?}"
    );

    // Without the device it shows nothing, but the module stays loaded.
    let address = context.pci_address()?;
    unbind(&address)?;
    counter
        .rewind()
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EIO) => Ok(()),
            _ => Err(error),
        })?;
    expect_errno(
        counter.read(&mut [0; 8]),
        &[libc::EIO],
        "reading the counter of a device that is gone",
    )?;
    check!(
        !modprobe(&["-r", "ringbar"])?,
        "the module could be removed while a counter of a device that is gone was open"
    );
    drop(counter);
    remove()?;
    load(context)?;
    expect_working(context, 84)
}

fn reload_after_mapped(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let file = context.open()?;
    let map = context.map()?;
    map.store(0, b"mapped");
    unbind(&address)?;
    drop(map);
    drop(file);
    remove()?;
    load(context)?;
    expect_working(context, 81)
}
