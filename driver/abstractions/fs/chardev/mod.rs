// SPDX-License-Identifier: GPL-2.0

//! Character devices with the file operations that asynchronous direct I/O needs.
//!
//! [`kernel::miscdevice`] has no `llseek`, no `fsync`, no way to set the file's mode, and no names
//! that are chosen at run time; its `read_iter` cannot return `EIOCBQUEUED`.
//!
//! # Files that can be polled
//!
//! A file either completes reads of io_uring later, or can be polled; `O_NONBLOCK` at `open`
//! decides which.
//!
//! io_uring expects that reads of a file with `f_op->poll` never return `EIOCBQUEUED`: they copy
//! the available data, or return `EAGAIN` and are retried when `poll` reports data. So with a ring
//! of provided buffers (`IOSQE_BUFFER_SELECT`) io_uring counts a buffer as used only when the read
//! has returned its bytes. If a read returns `EIOCBQUEUED`, io_uring takes its buffer back, uses it
//! for the next read too, and names no buffer in the completion (`io_should_commit` in
//! `io_uring/kbuf.c`, `io_read` in `io_uring/rw.c`). For a file without `poll`, such as a block
//! device, it counts the buffer as used when the read begins.
//!
//! | opened | `poll`, `epoll` | reads of io_uring | polled I/O |
//! |---|---|---|---|
//! | without `O_NONBLOCK` | as for a block device: always ready, `EPERM` | complete later | yes |
//! | with `O_NONBLOCK` | [`FileOperations::readiness`] | end within the call | `EOPNOTSUPP` |
//!
//! `fcntl` may change `O_NONBLOCK` afterwards, but not the kind of the file: the flag then only
//! decides whether calls wait for a slot. Writes, and Linux AIO, complete later on both kinds.
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
