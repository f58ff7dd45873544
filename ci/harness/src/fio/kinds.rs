// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What fio does the I/O with, and in which order.

/// fio's I/O engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// `pread` and `pwrite`, one at a time.
    Psync,
    /// Linux AIO.
    Libaio,
    /// Linux AIO, its events read from the ring in user space where they are
    /// there.
    LibaioUserReap,
    /// io_uring.
    IoUring,
    /// io_uring with registered buffers.
    IoUringFixed,
}

impl Engine {
    /// Name for fio.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psync => "psync",
            Self::Libaio | Self::LibaioUserReap => "libaio",
            Self::IoUring | Self::IoUringFixed => "io_uring",
        }
    }

    /// What distinguishes it in names of jobs from others of that name.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::LibaioUserReap => "-userreap",
            Self::IoUringFixed => "-fixed",
            Self::Psync | Self::Libaio | Self::IoUring => "",
        }
    }

    /// Options of fio's engine.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::LibaioUserReap => {
                // While it waits for an event fio calls the kernel, so it must not.
                &["--userspace_reap", "--iodepth_batch_complete_min=0"]
            }
            Self::IoUringFixed => &["--fixedbufs=1"],
            Self::Psync | Self::Libaio | Self::IoUring => &[],
        }
    }
}

/// Which way data goes, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// One block after the other, from the device.
    Read,
    /// One block after the other, to the device.
    Write,
    /// Blocks in random order, from the device.
    RandRead,
    /// Blocks in random order, to the device.
    RandWrite,
    /// One block after the other, half of them each way.
    ReadWrite,
    /// Blocks in random order, half of them each way.
    RandReadWrite,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::RandRead,
        Self::RandWrite,
        Self::ReadWrite,
        Self::RandReadWrite,
    ];

    /// Name for fio's `rw`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::ReadWrite => "rw",
            Self::RandReadWrite => "randrw",
        }
    }

    /// The same order, with all data going to the device.
    pub fn written(self) -> Self {
        match self {
            Self::Read | Self::Write | Self::ReadWrite => Self::Write,
            Self::RandRead | Self::RandWrite | Self::RandReadWrite => Self::RandWrite,
        }
    }

    /// Whether all data comes from the device, so that it must be there first.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::RandRead)
    }
}
