// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note

//! The structures of Linux AIO (`include/uapi/linux/aio_abi.h`) on little-endian machines, for
//! programs that use the driver by its system calls. The kernel never changes them.

/// `IOCB_CMD_PREAD`: read into one buffer.
pub const IOCB_CMD_PREAD: u16 = 0;
/// `IOCB_CMD_PWRITE`: write one buffer.
pub const IOCB_CMD_PWRITE: u16 = 1;
/// `IOCB_CMD_FSYNC`: make data and metadata durable.
pub const IOCB_CMD_FSYNC: u16 = 2;
/// `IOCB_CMD_FDSYNC`: make the data durable.
pub const IOCB_CMD_FDSYNC: u16 = 3;
/// `IOCB_CMD_PREADV`: read into a list of buffers.
pub const IOCB_CMD_PREADV: u16 = 7;
/// `IOCB_CMD_PWRITEV`: write a list of buffers.
pub const IOCB_CMD_PWRITEV: u16 = 8;
/// `IOCB_FLAG_RESFD`: signal the eventfd [`Iocb::resfd`] at the end.
pub const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb`: one operation. The fields have its names, without `aio_`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Iocb {
    /// Any number; [`IoEvent::data`] has it.
    pub data: u64,
    /// Written by the kernel.
    pub key: u32,
    /// `RWF_` flags.
    pub rw_flags: i32,
    /// `IOCB_CMD_` number.
    pub opcode: u16,
    /// Priority, with a flag that is not used here.
    pub reqprio: i16,
    /// File descriptor.
    pub fildes: u32,
    /// Address of the buffer, or of the list of buffers.
    pub buf: u64,
    /// Length of the buffer in bytes, or number of buffers.
    pub nbytes: u64,
    /// Position in the file in bytes.
    pub offset: i64,
    /// 0.
    pub reserved2: u64,
    /// `IOCB_FLAG_` bits.
    pub flags: u32,
    /// An eventfd.
    pub resfd: u32,
}

/// `struct io_event`: the end of an operation.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct IoEvent {
    /// [`Iocb::data`] of the operation.
    pub data: u64,
    /// Address of the operation.
    pub obj: u64,
    /// Number of bytes, or a negative errno.
    pub res: i64,
    /// 0.
    pub res2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);
