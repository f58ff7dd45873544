// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio's I/O engines and access orders.

/// fio's I/O engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// `pread` and `pwrite`, one at a time.
    Psync,
    /// Linux AIO.
    Libaio,
    /// Linux AIO. fio reads available events from the ring in user space.
    LibaioUserReap,
    /// io_uring.
    IoUring,
    /// io_uring with registered buffers.
    IoUringFixed,
}

impl Engine {
    /// fio's name of the engine.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psync => "psync",
            Self::Libaio | Self::LibaioUserReap => "libaio",
            Self::IoUring | Self::IoUringFixed => "io_uring",
        }
    }

    /// Suffix that distinguishes engines with the same fio name in names of jobs.
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
                // fio enters the kernel while it waits for a minimum of events, so the
                // minimum is 0.
                &["--userspace_reap", "--iodepth_batch_complete_min=0"]
            }
            Self::IoUringFixed => &["--fixedbufs=1"],
            Self::Psync | Self::Libaio | Self::IoUring => &[],
        }
    }
}

/// Direction and order of the transfers.
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
    /// One block after the other is discarded.
    Trim,
    /// Blocks in random order are discarded.
    RandTrim,
}

impl Access {
    /// Those that transfer data.
    pub const TRANSFERS: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::RandRead,
        Self::RandWrite,
        Self::ReadWrite,
        Self::RandReadWrite,
    ];

    /// fio's name, for its option `rw`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::ReadWrite => "rw",
            Self::RandReadWrite => "randrw",
            Self::Trim => "trim",
            Self::RandTrim => "randtrim",
        }
    }

    /// The same order, with all data written to the device.
    pub fn written(self) -> Self {
        match self {
            Self::Read | Self::Write | Self::ReadWrite | Self::Trim => Self::Write,
            Self::RandRead | Self::RandWrite | Self::RandReadWrite | Self::RandTrim => {
                Self::RandWrite
            }
        }
    }

    /// Whether the job only reads, so that its data must be written first.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::RandRead)
    }
}
