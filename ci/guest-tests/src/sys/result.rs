// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results of calls.

use std::io;

/// Converts the result of a C library call.
pub(super) fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Converts the result of a kernel operation, a count or a negated error number.
pub(super) fn check_result(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| {
        i32::try_from(-result).map_or_else(
            |_| io::Error::other(format!("result {result} is no error number")),
            io::Error::from_raw_os_error,
        )
    })
}
