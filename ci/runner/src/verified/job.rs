// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A job that verifies its data.

use std::fmt;

use ringbar_fio::{Access, Engine, Verification};
use ringbar_vm::vm::DEVICE_NODE;

/// One job on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Engine.
    pub engine: Engine,
    /// Direction and order.
    pub access: Access,
    /// Size of each transfer.
    pub block: u64,
    /// Transfers in flight.
    pub depth: u32,
    /// Bytes to transfer in all.
    pub size: u64,
    /// Offset of the first block in the device, and of the buffers in their page, in
    /// bytes. It is odd for unaligned jobs.
    pub skew: u64,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ringbar_fio::name(self.access, self.block, self.depth, self.engine);
        f.write_str(&name)?;
        if self.skew != 0 {
            f.write_str("-unaligned")?;
        }
        Ok(())
    }
}

impl Job {
    /// An aligned job.
    pub(super) const fn new(
        engine: Engine,
        access: Access,
        block: u64,
        depth: u32,
        size: u64,
    ) -> Self {
        Self {
            engine,
            access,
            block,
            depth,
            size,
            skew: 0,
        }
    }

    /// The same job with this skew.
    pub(super) const fn skewed(self, skew: u64) -> Self {
        Self { skew, ..self }
    }

    /// Offset in the device of a byte that the job reads, in the middle of a block's
    /// data.
    pub fn corruption_offset(&self) -> u64 {
        self.skew + self.block + self.block / 2
    }

    /// Bytes of all whole blocks.
    pub(super) fn whole_blocks(&self) -> u64 {
        self.size / self.block * self.block
    }

    /// The job for fio.
    pub(super) fn fio(&self) -> ringbar_fio::Job {
        ringbar_fio::Job {
            access: self.access,
            block: self.block,
            depth: self.depth,
            skew: self.skew,
            verification: Verification::All,
            ..ringbar_fio::Job::new(self.to_string(), DEVICE_NODE, self.engine, self.size)
        }
    }

    /// The job that writes the data which this one reads and verifies.
    pub(super) fn layout(&self) -> ringbar_fio::Job {
        ringbar_fio::Job {
            engine: Engine::Libaio,
            access: Access::Write,
            depth: 32,
            verification: Verification::Layout,
            ..self.fio()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_written_without_verification() {
        let job = Job::new(Engine::IoUringFixed, Access::RandRead, 4097, 8, 1 << 20).skewed(3);
        assert_eq!(
            job.to_string(),
            "randread-4097-qd8-io_uring-fixed-unaligned"
        );
        let (layout, fio) = (job.layout(), job.fio());
        assert_eq!(
            (layout.access, fio.access),
            (Access::Write, Access::RandRead)
        );
        assert_eq!(
            (layout.engine, fio.engine),
            (Engine::Libaio, Engine::IoUringFixed)
        );
        assert_eq!(layout.verification, Verification::Layout);
        assert_eq!(fio.verification, Verification::All);
        for job in [layout, fio] {
            assert_eq!((job.block, job.skew, job.size), (4097, 3, 1 << 20));
        }
    }
}
