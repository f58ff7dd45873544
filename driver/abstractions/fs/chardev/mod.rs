// SPDX-License-Identifier: GPL-2.0

//! Character devices with the file operations that asynchronous direct I/O
//! needs.
//!
//! [`kernel::miscdevice`] has no `llseek`, `fsync` or way to set the file's mode,
//! hands out names at compile time only, and its `read_iter` cannot say "queued".
//!
//! # Files that can be polled
//!
//! A file either completes reads of io_uring later, or can be polled; `O_NONBLOCK` at
//! `open` decides which.
//!
//! io_uring takes a file with `f_op->poll` for one whose reads never answer
//! `EIOCBQUEUED`: they move what is there, or say `EAGAIN` and are asked again once
//! `poll` tells. So with a ring of provided buffers (`IOSQE_BUFFER_SELECT`) it counts
//! the buffer as used only when the read has returned its bytes. After `EIOCBQUEUED`
//! it takes the buffer back, gives it to the next read as well, and names none in the
//! completion (`io_should_commit` in `io_uring/kbuf.c`, `io_read` in `io_uring/rw.c`).
//! For a file without `poll`, as a block device is, it counts the buffer as used when
//! the read begins.
//!
//! | opened | `poll`, `epoll` | reads of io_uring | polled I/O |
//! |---|---|---|---|
//! | without `O_NONBLOCK` | as for a block device: always ready, `EPERM` | complete later | yes |
//! | with `O_NONBLOCK` | [`FileOperations::readiness`] | end within the call | `EOPNOTSUPP` |
//!
//! `fcntl` may change `O_NONBLOCK` afterwards, but not what the file is: the flag then
//! only says whether calls wait for their turn. Writes, and Linux AIO, complete later on
//! both.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

mod device;
mod maps;
mod open_file;
mod operations;

pub(crate) use device::CharDevice;
pub(crate) use operations::{
    Access,
    FileOperations,
    Ioctl, //
};
