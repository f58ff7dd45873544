// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that end while their requests are in flight.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::fixture::{BLOCK, Fixture, data};
use crate::case::{Context, During, Stop, TIMEOUT, Verdict, eventually, expect_bytes};
use crate::fixtures::device::all_released;
use crate::fixtures::processes::process;
use crate::pins::Pins;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, Child, PAGE, Region, Ring, Task, UringOperation,
};
use crate::{check, check_eq};

/// I/O engine of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Aio,
    Uring,
}

/// The way in which a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessEnd {
    Exit,
    Killed,
    Exec,
}

/// Requests in flight: half of them writes, half of them reads.
const REQUESTS: usize = 8;

/// Name of the test.
pub(super) fn name(engine: Engine, way: ProcessEnd) -> String {
    let engine = match engine {
        Engine::Aio => "aio",
        Engine::Uring => "uring",
    };
    let way = match way {
        ProcessEnd::Exit => "exit",
        ProcessEnd::Killed => "sigkill",
        ProcessEnd::Exec => "exec",
    };
    format!("b10_{way}_with_{engine}_in_flight_while_the_device_stalls")
}

/// Body of the process: submits, notifies the parent, and ends.
fn submit_and_leave(
    context: &Context,
    engine: Engine,
    way: ProcessEnd,
    mut submitted: impl Write,
) -> Verdict {
    // The process's own file and memory, released with the process.
    let file = context.open()?;
    let memory = Region::anonymous(REQUESTS * BLOCK)?;
    let buffer = |i: usize| memory.buffer(i * BLOCK, BLOCK);
    for i in 0..REQUESTS {
        memory.store(i * BLOCK, data(i));
    }
    let aio = AioContext::new(REQUESTS as u32)?;
    let mut ring = Ring::new(REQUESTS as u32)?;
    let taken = match engine {
        Engine::Aio => {
            let operations: Vec<_> = (0..REQUESTS)
                .map(|i| match i % 2 {
                    0 => AioOperation::pwrite(&file, buffer(i), Fixture::place(i)),
                    _ => AioOperation::pread(&file, buffer(i), Fixture::place(i)),
                })
                .collect();
            aio.submit(&operations)?
        }
        Engine::Uring => {
            let operations: Vec<_> = (0..REQUESTS)
                .map(|i| match i % 2 {
                    0 => UringOperation::write(&file, Buffers::One(buffer(i)), Fixture::place(i)),
                    _ => UringOperation::read(&file, Buffers::One(buffer(i)), Fixture::place(i)),
                })
                .collect();
            ring.submit(&operations)?
        }
    };
    check_eq!(taken, REQUESTS, "requests taken");
    submitted.write_all(b"x")?;
    match way {
        ProcessEnd::Exit => sys::exit_now(0),
        ProcessEnd::Killed => loop {
            std::thread::park();
        },
        ProcessEnd::Exec => {
            let error = Command::new("true").exec();
            Err(error).during(|| "exec".into())
        }
    }
}

/// Checks that an ending process waits for its requests. AIO waits as the process
/// releases its memory; io_uring leaves the wait to a kernel worker.
fn expect_waiting(child: &Child, engine: Engine) -> Verdict {
    if engine == Engine::Aio {
        eventually("the wait of the process for its requests", || {
            let function = Task::of(child).kernel_function();
            Ok(function.during(|| "the process".into())? == "exit_aio")
        })?;
        check!(!child.has_ended()?, "the process ended before its requests");
    }
    Ok(())
}

pub(super) fn with_requests_in_flight(
    context: &Context,
    engine: Engine,
    way: ProcessEnd,
) -> Verdict {
    /// Number of pages that all requests together pin.
    const PINNED: u64 = (REQUESTS * BLOCK / PAGE) as u64;

    let b = Fixture::new(context, REQUESTS)?;
    for i in 0..REQUESTS {
        b.bar.fill(Fixture::place(i) as usize, BLOCK, 0xaa);
    }
    let stall = b.host.stall()?;
    let (mut submitted, notify) = io::pipe()?;
    let child = process(0, || submit_and_leave(context, engine, way, notify))?;
    if submitted.read(&mut [0])? != 1 {
        return Err(Stop::Failed("the process made no requests".into()));
    }
    if way == ProcessEnd::Killed {
        child.kill(libc::SIGKILL)?;
    }
    expect_waiting(&child, engine)?;
    check_eq!(Pins::read()?.pinned(), PINNED, "pages pinned");

    // All memory of the process is free except for the pages in flight.
    let others = Region::anonymous(4 << 20)?;
    others.fill(0, others.len(), 0xcc);
    stall.resume()?;
    let end = child.wait(TIMEOUT).during(|| "the process".into())?;
    let expected = match way {
        ProcessEnd::Exit | ProcessEnd::Exec => Ok(0),
        ProcessEnd::Killed => Err(libc::SIGKILL),
    };
    check_eq!(end, expected, "end of the process");
    all_released()?;
    for i in (0..REQUESTS).step_by(2) {
        b.expect_written(i)?;
    }
    let seen = others.load(0, others.len());
    expect_bytes(&seen, &vec![0xcc; others.len()], "memory of another")?;
    b.finish()
}
