// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Durable writes by different methods. Each test asks the host at once whether the pages
//! are on its disk. At the end, the host compares the file behind the device with
//! [`ranges`].

use std::fs::File;

use crate::case::{Case, Context, During, Stop, Suite, Verdict};
use crate::check_eq;
use crate::host::Host;
use crate::needs::{Daemon, DeviceKind, End, HostStorage, Kernels, Needs, StoredRange};
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, Buffers, IoVec, Region, Ring, UringOperation};

pub(super) type Write = fn(&Context, IoVec, u64) -> Verdict<usize>;

/// The tests and their write functions.
pub(super) const TESTS: [(&str, Write); 9] = [
    ("b7_fsync", |context, buffer, offset| {
        let file = context.open()?;
        let written = sys::pwrite(&file, buffer, offset)?;
        sys::fsync(&file)?;
        Ok(written)
    }),
    ("b7_fdatasync", |context, buffer, offset| {
        let file = context.open()?;
        let written = sys::pwrite(&file, buffer, offset)?;
        sys::fdatasync(&file)?;
        Ok(written)
    }),
    ("b7_o_dsync", |context, buffer, offset| {
        let file = context.open_with(libc::O_RDWR | libc::O_DSYNC)?;
        Ok(sys::pwrite(&file, buffer, offset)?)
    }),
    ("b7_o_sync", |context, buffer, offset| {
        let file = context.open_with(libc::O_RDWR | libc::O_SYNC)?;
        Ok(sys::pwrite(&file, buffer, offset)?)
    }),
    ("b7_rwf_dsync", |context, buffer, offset| {
        let file = context.open()?;
        Ok(sys::pwritev2(
            &file,
            &[buffer],
            Some(offset),
            libc::RWF_DSYNC,
        )?)
    }),
    ("b7_aio_fsync", |context, buffer, offset| {
        aio_sync(&context.open()?, buffer, offset, false)
    }),
    ("b7_aio_fdsync", |context, buffer, offset| {
        aio_sync(&context.open()?, buffer, offset, true)
    }),
    ("b7_aio_write_rwf_dsync", |context, buffer, offset| {
        let file = context.open()?;
        let operation = AioOperation::pwrite(&file, buffer, offset).flags(libc::RWF_DSYNC);
        Ok(AioContext::new(1)?.run(operation)?)
    }),
    ("b7_uring_fsync", |context, buffer, offset| {
        let file = context.open()?;
        let mut ring = Ring::new(2)?;
        let written = ring.run(&UringOperation::write(&file, Buffers::One(buffer), offset))?;
        ring.run(&UringOperation::fsync(&file, false))?;
        Ok(written)
    }),
];

/// The data that the tests leave in the device, one range per test.
pub(super) fn ranges() -> Vec<StoredRange> {
    TESTS
        .iter()
        .enumerate()
        .map(|(i, (test, _))| StoredRange {
            test,
            // Unaligned offsets.
            offset: (i as u64 + 1) * 3_000_017,
            length: 100_003 + 4096 * i,
            seed: 500 + i as u64,
        })
        .collect()
}

/// The suite.
pub fn suite() -> Suite {
    let mut cases: Vec<_> = TESTS
        .iter()
        .zip(ranges())
        .map(|(&(name, write), range)| {
            Case::new(name, move |context| {
                let memory = Region::anonymous(range.length + 3)?;
                memory.store(3, pattern::bytes(range.seed, range.length));
                let written = write(context, memory.buffer(3, range.length), range.offset)?;
                check_eq!(written, range.length, "bytes written");
                // Before another test can cause the pages to be written.
                check_eq!(
                    host()?.unwritten(range.offset, range.length as u64)?,
                    0,
                    "pages that are not on the host's disk"
                );
                Ok(())
            })
        })
        .collect();
    cases.insert(
        0,
        Case::new("b7_host_sees_what_is_not_durable", not_durable),
    );
    cases.push(Case::new("b7_fsync_is_a_request", fsync_is_a_request));
    Suite {
        name: "durability",
        about: "writes made durable, looked for in the file behind the device",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(64 << 20),
                storage: HostStorage::File,
                ..Daemon::default()
            }),
            kernels: Kernels::OwnInTestAll,
            end: End::Killed(ranges()),
            ..Needs::default()
        },
        cases,
    }
}

/// The connection to the host, without which no test of this suite is meaningful.
fn host() -> Verdict<Host> {
    Host::connect().map_err(|stop| match stop {
        Stop::Skipped(why) | Stop::Failed(why) => Stop::Failed(why),
    })
}

/// Pages of ordinary writes are not on the disk; otherwise the absence of unwritten pages
/// would prove nothing.
fn not_durable(context: &Context) -> Verdict {
    // After the other tests' ranges.
    const OFFSET: u64 = 40 << 20;
    const LENGTH: usize = 100_003;
    let (file, host) = (context.open()?, host()?);
    let memory = Region::anonymous(LENGTH)?;
    for _ in 0..100 {
        sys::pwrite(&file, memory.buffer(0, LENGTH), OFFSET)?;
        // The host's kernel may write the pages at any time, but not in each round.
        if host.unwritten(OFFSET, LENGTH as u64)? > 0 {
            return Ok(());
        }
    }
    Err(Stop::Failed(
        "what is written is never dirty on the host: the file behind the device is on a file \
         system in memory, or on a stacked one. These tests need the build folder on a disk"
            .into(),
    ))
}

fn aio_sync(file: &File, buffer: IoVec, offset: u64, data_only: bool) -> Verdict<usize> {
    let aio = AioContext::new(1)?;
    let written = aio.run(AioOperation::pwrite(file, buffer, offset))?;
    aio.run(AioOperation::fsync(file, data_only))
        .during(|| "the operation that makes it durable".into())?;
    Ok(written)
}

/// An `fsync` that never reached the device would have no visible effect unless the host
/// crashes.
fn fsync_is_a_request(context: &Context) -> Verdict {
    let file = context.open()?;
    let before = context.counter("requests")?;
    sys::fsync(&file)?;
    sys::fdatasync(&file)?;
    check_eq!(
        context.counter("requests")? - before,
        2,
        "requests for an fsync and an fdatasync"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lie_apart_and_within_a_small_device() {
        let ranges = ranges();
        for pair in ranges.windows(2) {
            assert!(pair[0].offset + (pair[0].length as u64) < pair[1].offset);
        }
        let last = ranges.last().unwrap();
        assert!(last.offset + last.length as u64 <= 32 << 20);
    }
}
