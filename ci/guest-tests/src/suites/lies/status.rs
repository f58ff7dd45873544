// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies about the status of a request. The request fails if the driver can detect the
//! lie. The device stays in service.

use std::io;

use ringbar_agent_protocol::host::UsedLie::{self, Length, Status, StatusUnwritten};
use ringbar_uapi::{self as uapi, Command};

use super::device::{BLOCK, Engine, LyingDevice};
use crate::case::{Case, Context, Verdict, expect_bytes, expect_errno};
use crate::pattern;
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// Status codes (`StatusCode`).
const OK: u32 = 0;
const IO_ERROR: u32 = 1;
const UNSUPPORTED: u32 = 2;
const INVALID: u32 = 3;
const OUT_OF_RANGE: u32 = 4;
const NO_SPACE: u32 = 5;
const LAST: u32 = 6;

/// Expected result of a request: bytes or an error.
type Expected = Result<usize, i32>;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("c7_status_that_no_device_wrote", |context| {
            transfers(
                context,
                &[(StatusUnwritten, Err(libc::EIO), Err(libc::EIO))],
            )
        }),
        Case::new("c7_status_with_an_unknown_code", |context| {
            let rows = [LAST + 1, 77, u32::MAX].map(|code| {
                let lie = Status {
                    code,
                    result: BLOCK as u64,
                };
                (lie, Err(libc::EIO), Err(libc::EIO))
            });
            transfers(context, &rows)
        }),
        Case::new(
            "c7_status_with_a_result_that_is_not_the_length",
            |context| {
                let rows = [
                    0,
                    BLOCK as u64 - 1,
                    BLOCK as u64 + 1,
                    BLOCK as u64 | 1 << 32,
                    u64::MAX,
                ]
                .map(|result| {
                    let lie = Status { code: OK, result };
                    (lie, Err(libc::EIO), Err(libc::EIO))
                });
                transfers(context, &rows)
            },
        ),
        Case::new(
            "c7_error_status_with_more_bytes_than_the_request",
            |context| {
                let rows = [BLOCK as u64 + 1, u64::MAX].map(|result| {
                    let lie = Status {
                        code: NO_SPACE,
                        result,
                    };
                    (lie, Err(libc::EIO), Err(libc::EIO))
                });
                transfers(context, &rows)
            },
        ),
        Case::new("c7_error_status_is_the_callers_error", |context| {
            let rows = [
                (IO_ERROR, libc::EIO),
                (INVALID, libc::EINVAL),
                (OUT_OF_RANGE, libc::ENXIO),
                (NO_SPACE, libc::ENOSPC),
            ]
            .map(|(code, errno)| (Status { code, result: 0 }, Err(errno), Err(errno)));
            transfers(context, &rows)
        }),
        Case::new("c7_unsupported_request_is_the_callers_error", |context| {
            let lie = Status {
                code: UNSUPPORTED,
                result: 0,
            };
            let expected = Err(libc::EOPNOTSUPP);
            // io_uring takes this error for one of IOCB_NOWAIT, and retries (`io_write`).
            let engines = [Engine::Synchronous, Engine::Aio];
            transfers_by(context, &engines, &[(lie, expected, expected)])
        }),
        Case::new(
            "c7_error_status_after_some_bytes_is_a_short_transfer",
            |context| {
                let lie = Status {
                    code: IO_ERROR,
                    result: 100,
                };
                transfers(context, &[(lie, Ok(100), Ok(100))])
            },
        ),
        Case::new("c7_used_length_below_the_result_of_a_read", |context| {
            // The device writes only the status of a write, and the driver checks
            // that length.
            let rows = [0, 1, BLOCK as u32 - 1]
                .map(|written| (Length(written), Err(libc::EIO), Ok(BLOCK)));
            transfers(context, &rows)
        }),
        Case::new(
            "c7_written_length_beyond_the_request_does_no_harm",
            |context| transfers(context, &[(Length(u32::MAX), Ok(BLOCK), Ok(BLOCK))]),
        ),
        Case::new("c7_lie_about_one_request_of_a_split_transfer", large),
        Case::new("c7_lies_about_commands", commands),
    ]
}

fn expect(result: io::Result<usize>, expected: Expected, what: &str) -> Verdict {
    match expected {
        Ok(bytes) => {
            check!(
                result.as_ref().is_ok_and(|n| *n == bytes),
                "{what}: {result:?} instead of {bytes}"
            );
            Ok(())
        }
        Err(errno) => expect_errno(result, &[errno], what),
    }
}

/// Makes a read and a write with each engine for each lie, and a correct one of each
/// after it. The rows have the lie and the expected results of a read and a write.
fn transfers(context: &Context, rows: &[(UsedLie, Expected, Expected)]) -> Verdict {
    transfers_by(context, &Engine::ALL, rows)
}

/// As [`transfers`], with some engines only.
fn transfers_by(
    context: &Context,
    engines: &[Engine],
    rows: &[(UsedLie, Expected, Expected)],
) -> Verdict {
    const AT: u64 = 5000;
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let memory = Region::anonymous(BLOCK)?;
    let data = pattern::bytes(40, BLOCK);
    let mut told = 0;
    for &(lie, read, write) in rows {
        for &engine in engines {
            let what = |verb: &str| format!("{verb} by {engine:?} with {lie:?}");
            memory.store(0, data);
            liar.lie(lie)?;
            expect(
                engine.write(&file, &memory, BLOCK, AT),
                write,
                &what("write"),
            )?;
            let good = engine.write(&file, &memory, BLOCK, AT);
            expect(good, Ok(BLOCK), &what("write after one"))?;
            memory.fill(0, BLOCK, 0xee);
            liar.lie(lie)?;
            expect(engine.read(&file, &memory, BLOCK, AT), read, &what("read"))?;
            if let Ok(bytes) = read {
                expect_bytes(&memory.load(0, bytes), &data[..bytes], &what("read"))?;
            }
            memory.fill(0, BLOCK, 0xee);
            let good = engine.read(&file, &memory, BLOCK, AT);
            expect(good, Ok(BLOCK), &what("read after one"))?;
            expect_bytes(&memory.load(0, BLOCK), data, &what("read after one"))?;
            told += 2;
            check_eq!(liar.host.lies_told()? - liar.told, told, "lies");
        }
    }
    liar.expect_no_line()?;
    liar.expect_in_order()
}

/// A call of several requests, one of which ends with a lie.
fn large(context: &Context) -> Verdict {
    const LENGTH: usize = 12 << 20;
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let memory = Region::anonymous(LENGTH)?;
    for lie in [
        StatusUnwritten,
        Length(1),
        Status {
            code: OK,
            result: u64::MAX,
        },
    ] {
        for engine in Engine::ALL {
            liar.lie(lie)?;
            let result = engine.read(&file, &memory, LENGTH, 0);
            // The device may end the requests in any order.
            match result {
                Ok(bytes) => check!(bytes < LENGTH, "{lie:?} by {engine:?}: the whole of it"),
                other => expect_errno(other, &[libc::EIO], &format!("{lie:?} by {engine:?}"))?,
            }
            let good = engine.read(&file, &memory, LENGTH, 0);
            expect(good, Ok(LENGTH), "the next call")?;
        }
    }
    liar.expect_no_line()?;
    liar.expect_in_order()
}

fn commands(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let command = |opcode| Command {
        opcode,
        length: 4096,
        argument: 1 << 20,
        ..Command::default()
    };
    for lie in [
        StatusUnwritten,
        Status {
            code: LAST + 1,
            result: 4096,
        },
    ] {
        liar.lie(lie)?;
        expect_errno(
            sys::fsync(&file),
            &[libc::EIO],
            &format!("fsync with {lie:?}"),
        )?;
        sys::fsync(&file)?;
        for opcode in [uapi::OP_COPY, uapi::OP_COMPARE] {
            liar.lie(lie)?;
            let ended = sys::execute(&file, &mut command(opcode));
            expect_errno(ended, &[libc::EIO], &format!("{opcode} with {lie:?}"))?;
            sys::execute(&file, &mut command(opcode))?;
        }
    }
    // A result larger than the request is invalid.
    liar.lie(Status {
        code: OK,
        result: u64::MAX,
    })?;
    let mut compare = command(uapi::OP_COMPARE);
    let ended = sys::execute(&file, &mut compare);
    check!(
        ended.is_err() || compare.result <= compare.length,
        "{} of {} bytes are equal",
        compare.result,
        compare.length
    );
    liar.expect_no_line()?;
    liar.expect_in_order()
}
