// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Transfers of a pipe's pages, which the driver borrows without a pin. They are returned
//! when the call returns, so no call may return before the device has finished with them,
//! not even when its process is killed.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::Duration;

use super::fixture::Fixture;
use crate::case::{Context, During, TIMEOUT, Verdict, eventually, expect_bytes};
use crate::fixtures::device::all_released;
use crate::fixtures::processes::process;
use crate::pattern;
use crate::sys::{self, Child, Region, Ring, Task, UringOperation};
use crate::{check, check_eq};

/// System call of the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    SpliceToPipe,
    SpliceFromPipe,
    Sendfile,
    UringSplice,
}

impl Call {
    pub(super) const ALL: [Self; 4] = [
        Self::SpliceToPipe,
        Self::SpliceFromPipe,
        Self::Sendfile,
        Self::UringSplice,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SpliceToPipe => "splice_to_a_pipe",
            Self::SpliceFromPipe => "splice_from_a_pipe",
            Self::Sendfile => "sendfile",
            Self::UringSplice => "uring_splice",
        }
    }

    fn writes(self) -> bool {
        self == Self::SpliceFromPipe
    }
}

/// Size of the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// One request.
    Single,
    /// More than one request can carry.
    Split,
}

impl Size {
    pub(super) const ALL: [Self; 2] = [Self::Single, Self::Split];

    fn bytes(self) -> usize {
        match self {
            Self::Single => 64 << 10,
            Self::Split => 8 << 20,
        }
    }
}

/// Name of the test.
pub(super) fn name(call: Call, size: Size) -> String {
    let size = match size {
        Size::Single => "",
        Size::Split => "_of_several_requests",
    };
    format!(
        "dr1_killed_{}{size}_stays_until_the_device_is_done",
        call.name()
    )
}

/// Offset in the device, after the range that [`Fixture::finish`] writes.
const PLACE: u64 = (32 << 20) + 3;

/// Time after which a caller must still wait.
const EXIT_TIME: Duration = Duration::from_millis(500);

/// Size of another process's memory, which reuses pages that the caller releases.
const OTHER_MEMORY: usize = 64 << 20;
const OTHER_MEMORY_BYTE: u8 = 0xcc;

/// Body of the process that is killed.
fn move_data(
    call: Call,
    length: usize,
    file: &File,
    (reader, mut writer): (PipeReader, PipeWriter),
    data: &[u8],
) -> Verdict {
    match call {
        Call::SpliceToPipe => {
            sys::splice_to_pipe(file, PLACE, &writer, length)?;
        }
        Call::Sendfile => {
            sys::sendfile(file, PLACE, &writer, length)?;
        }
        Call::SpliceFromPipe => {
            writer.write_all(data)?;
            drop(writer);
            sys::splice_from_pipe(&reader, file, PLACE, length)?;
        }
        Call::UringSplice => {
            let mut ring = Ring::new(1)?;
            ring.run(&UringOperation::splice(file, PLACE, &writer, length))?;
        }
    }
    Ok(())
}

/// Whether some thread of the child waits for the device.
fn waits_for_the_device(child: &Child) -> Verdict<bool> {
    for task in Task::all_of(child)? {
        // A thread may have ended.
        if task.waits_in_module("ringbar").unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn killed(context: &Context, call: Call, size: Size) -> Verdict {
    let length = size.bytes();
    let b = Fixture::new(context, 1)?;
    let data = pattern::bytes(4000 + length as u64, length);
    if call.writes() {
        b.bar.fill(PLACE as usize, length, 0xaa);
    } else {
        b.bar.store(PLACE as usize, data);
    }
    let stall = b.host.stall()?;
    let child = process(0, || {
        // The pipe must not be the parent's as well: closing its ends would wait for the
        // pipe's lock.
        let pipe = sys::pipe_of(length)?;
        move_data(call, length, &context.open()?, pipe, data)
    })?;
    eventually("the wait for the device", || waits_for_the_device(&child))
        .during(|| format!("{call:?}"))?;
    child.kill(libc::SIGKILL)?;

    let left = child.ends_within(EXIT_TIME)?;
    // Pages that were released too early are reused here.
    let others = Region::anonymous(OTHER_MEMORY)?;
    others.fill(0, OTHER_MEMORY, OTHER_MEMORY_BYTE);
    stall.resume()?;
    let end = child.wait(TIMEOUT).during(|| "the process".into())?;
    check_eq!(end, Err(libc::SIGKILL), "end of the process");
    all_released()?;
    // Earlier requests on all queues complete before this.
    b.finish()?;
    let seen = others.load(0, OTHER_MEMORY);
    expect_bytes(
        &seen,
        &vec![OTHER_MEMORY_BYTE; OTHER_MEMORY],
        "memory of another",
    )?;
    if call.writes() {
        let seen = b.bar.load(PLACE as usize, length);
        expect_bytes(&seen, data, "what the device got")?;
    }
    check!(!left, "the caller left while the device had its pages");
    Ok(())
}

/// The same calls without a kill.
pub(super) fn undisturbed(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    for call in Call::ALL {
        for size in Size::ALL {
            let during = || format!("{call:?} {size:?}");
            let length = size.bytes();
            let data = pattern::bytes(5000 + length as u64, length);
            let (mut reader, mut writer) = sys::pipe_of(length)?;
            let moved = match call {
                Call::SpliceFromPipe => {
                    b.bar.fill(PLACE as usize, length, 0xaa);
                    writer.write_all(data)?;
                    sys::splice_from_pipe(&reader, &b.file, PLACE, length)
                }
                _ => {
                    b.bar.store(PLACE as usize, data);
                    match call {
                        Call::SpliceToPipe => sys::splice_to_pipe(&b.file, PLACE, &writer, length),
                        Call::Sendfile => sys::sendfile(&b.file, PLACE, &writer, length),
                        _ => splice_by_uring(&b.file, &writer, length),
                    }
                }
            };
            check_eq!(moved.during(during)?, length, "bytes of {call:?} {size:?}");
            let seen = if call.writes() {
                b.bar.load(PLACE as usize, length)
            } else {
                let mut seen = vec![0; length];
                reader.read_exact(&mut seen)?;
                seen
            };
            expect_bytes(&seen, data, "the data").during(during)?;
        }
    }
    b.finish()
}

fn splice_by_uring(file: &File, pipe: &PipeWriter, length: usize) -> io::Result<usize> {
    Ring::new(1)?.run(&UringOperation::splice(file, PLACE, pipe, length))
}
