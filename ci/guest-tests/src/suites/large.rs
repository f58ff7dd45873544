// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Calls of 1 GiB, on a larger device.

use std::time::Duration;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes};
use crate::check_eq;
use crate::method::{Direction, Method, Segments};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs};
use crate::pattern;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, IoVec, PAGE, Region, Ring, UringOperation,
};

/// Bytes of the device.
const DEVICE: u64 = (1 << 30) + (64 << 20);

/// Bytes of each call.
const LENGTH: usize = 1 << 30;

/// Bytes of each buffer. The buffers overlap, each one page after the previous one: so
/// their content differs, and yet a read stores the same bytes where buffers overlap.
const BUFFER: usize = 16 << 20;

/// Buffers of a call.
const COUNT: usize = LENGTH / BUFFER;

/// Size of the memory of the buffers, and offset of the first one.
const MEMORY: usize = START + BUFFER + COUNT * PAGE;
const START: usize = 1;

/// Offset of the range in the device.
const OFFSET: u64 = 4099;

/// Bytes compared at a time.
const STEP: usize = 4 << 20;

/// Timeout for a call.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The suite.
pub fn suite() -> Suite {
    let methods = [
        (
            "b13_one_gib_synchronous",
            Method::VectoredAtOffset(Segments::Three),
        ),
        ("b13_one_gib_by_aio", Method::AioVectored(Segments::Three)),
        (
            "b13_one_gib_by_io_uring",
            Method::UringVectored(Segments::Three),
        ),
    ];
    Suite {
        name: "large",
        about: "calls for a gibibyte, on a device that is larger than that",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(DEVICE),
                ..Daemon::default()
            }),
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: methods
            .into_iter()
            .enumerate()
            .map(|(seed, (name, method))| {
                Case::new(name, move |context| one_gib(context, method, seed as u64))
            })
            .chain([Case::new(
                "a9_memory_above_4_gib_can_be_cached",
                super::selectors::cached,
            )])
            .collect(),
    }
}

fn transfer(
    context: &Context,
    method: Method,
    direction: Direction,
    buffers: &[IoVec],
) -> Verdict<usize> {
    use Direction::{Read, Write};

    let file = context.open()?;
    let moved = match (method, direction) {
        (Method::AioVectored(_), direction) => {
            let aio = AioContext::new(1)?;
            let operation = match direction {
                Read => AioOperation::preadv(&file, buffers, OFFSET),
                Write => AioOperation::pwritev(&file, buffers, OFFSET),
            };
            check_eq!(aio.submit(&[operation])?, 1, "operations taken");
            let mut results = aio.results(1, 1, TIMEOUT)?;
            results.pop().map(|(_, result)| result)
        }
        (Method::UringVectored(_), direction) => {
            let mut ring = Ring::new(1)?;
            let list = Buffers::List(buffers);
            let operation = match direction {
                Read => UringOperation::read(&file, list, OFFSET),
                Write => UringOperation::write(&file, list, OFFSET),
            };
            check_eq!(ring.submit(&[operation])?, 1, "operations taken");
            let mut results = ring.results(1, TIMEOUT)?;
            results.pop().map(|(_, result)| result)
        }
        (_, Read) => Some(sys::preadv(&file, buffers, OFFSET)),
        (_, Write) => Some(sys::pwritev(&file, buffers, OFFSET)),
    };
    let result = moved.ok_or_else(|| Stop::Failed(format!("no result within {TIMEOUT:?}")))?;
    result.during(|| format!("{direction:?}"))
}

fn one_gib(context: &Context, method: Method, seed: u64) -> Verdict {
    if context.size() < OFFSET + LENGTH as u64 {
        return Err(Stop::Skipped(format!(
            "the device has {} bytes",
            context.size()
        )));
    }
    let bar = context.map()?;
    let memory = Region::anonymous(MEMORY)?;
    memory.advise(libc::MADV_HUGEPAGE)?;
    let mut data = Vec::with_capacity(MEMORY);
    while data.len() < MEMORY {
        let length = STEP.min(MEMORY - data.len());
        let piece = seed << 32 | data.len() as u64;
        data.extend_from_slice(pattern::bytes(piece, length));
    }
    memory.store(0, &data);
    let starts = (0..COUNT).map(|i| START + i * PAGE);
    let buffers: Vec<_> = starts
        .clone()
        .map(|start| memory.buffer(start, BUFFER))
        .collect();

    let written = transfer(context, method, Direction::Write, &buffers)?;
    check_eq!(written, LENGTH, "bytes written");
    let mut seen = vec![0; STEP];
    for (i, start) in starts.enumerate() {
        for at in (0..BUFFER).step_by(STEP) {
            bar.load_into(OFFSET as usize + i * BUFFER + at, &mut seen);
            let expected = &data[start + at..start + at + STEP];
            expect_bytes(&seen, expected, &format!("byte {at} of buffer {i}"))?;
        }
    }

    memory.fill(0, MEMORY, 0xee);
    let read = transfer(context, method, Direction::Read, &buffers)?;
    check_eq!(read, LENGTH, "bytes read");
    let end = START + (COUNT - 1) * PAGE + BUFFER;
    let seen = memory.load(START, end - START);
    expect_bytes(&seen, &data[START..end], "what was read")?;
    let around = [memory.load(0, START), memory.load(end, MEMORY - end)].concat();
    expect_bytes(&around, &vec![0xee; around.len()], "around it")
}
