// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pipes, `splice` and `sendfile`.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::ptr;

use super::result::check;

/// A pipe with room for this many bytes.
pub fn pipe_of(bytes: usize) -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    let size = i32::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the call touches no memory.
    let got = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    if check(got as isize)? < bytes {
        return Err(io::Error::other(format!("the pipe has only {got} bytes")));
    }
    Ok((reader, writer))
}

/// `splice` from an offset of a file to a pipe.
pub fn splice_to_pipe(
    file: &File,
    offset: u64,
    pipe: &PipeWriter,
    length: usize,
) -> io::Result<usize> {
    let mut offset = offset.cast_signed();
    // SAFETY: the kernel reads and writes the offset.
    check(unsafe {
        libc::splice(
            file.as_raw_fd(),
            &raw mut offset,
            pipe.as_raw_fd(),
            ptr::null_mut(),
            length,
            0,
        )
    })
}

/// `splice` from a pipe to an offset of a file.
pub fn splice_from_pipe(
    pipe: &PipeReader,
    file: &File,
    offset: u64,
    length: usize,
) -> io::Result<usize> {
    let mut offset = offset.cast_signed();
    // SAFETY: the kernel reads and writes the offset.
    check(unsafe {
        libc::splice(
            pipe.as_raw_fd(),
            ptr::null_mut(),
            file.as_raw_fd(),
            &raw mut offset,
            length,
            0,
        )
    })
}

/// `sendfile` from an offset of a file to a pipe.
pub fn sendfile(file: &File, offset: u64, pipe: &PipeWriter, length: usize) -> io::Result<usize> {
    let mut offset = offset.cast_signed();
    // SAFETY: the kernel reads and writes the offset.
    check(unsafe { libc::sendfile(pipe.as_raw_fd(), file.as_raw_fd(), &raw mut offset, length) })
}
