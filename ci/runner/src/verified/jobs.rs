// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The list of jobs.

use ringbar_fio::{Access, Engine};

use super::job::Job;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// The jobs of `run`: each engine, sequential and random, reads and writes,
/// 512 bytes to 1 MiB, aligned and not, depth 1 and 32. Sizes are such that each
/// takes a few seconds at most under TCG.
pub const JOBS: &[Job] = {
    use Access::{RandRead, RandWrite, Read, Write};
    use Engine::{IoUring, IoUringFixed, Libaio, LibaioUserReap, Psync};
    &[
        Job::new(Psync, Write, 512, 1, 512 * K),
        Job::new(Psync, RandRead, 512, 1, 512 * K),
        Job::new(Psync, RandWrite, 4 * K, 1, 4 * M),
        Job::new(Psync, Read, 64 * K, 1, 16 * M),
        Job::new(Psync, Write, M, 1, 32 * M),
        Job::new(Psync, RandRead, 4097, 1, 4 * M).skewed(1),
        Job::new(Libaio, RandWrite, 512, 32, M),
        Job::new(Libaio, RandRead, 4 * K, 1, 4 * M),
        Job::new(Libaio, RandWrite, 4 * K, 32, 8 * M),
        Job::new(Libaio, RandRead, 4 * K, 32, 8 * M),
        Job::new(Libaio, Read, 64 * K, 32, 32 * M),
        Job::new(Libaio, Write, M, 32, 64 * M),
        Job::new(LibaioUserReap, RandRead, 4 * K, 32, 8 * M),
        Job::new(LibaioUserReap, RandWrite, 4 * K, 32, 8 * M),
        Job::new(Libaio, RandWrite, 4097, 32, 4 * M).skewed(1),
        Job::new(Libaio, Read, 100_003, 32, 16 * M).skewed(511),
        Job::new(IoUring, RandRead, 512, 32, M),
        Job::new(IoUring, RandWrite, 4 * K, 1, 4 * M),
        Job::new(IoUring, RandRead, 4 * K, 1, 4 * M),
        Job::new(IoUring, RandWrite, 4 * K, 32, 8 * M),
        Job::new(IoUring, RandRead, 4 * K, 32, 8 * M),
        Job::new(IoUringFixed, RandWrite, 4 * K, 32, 8 * M),
        Job::new(IoUringFixed, RandRead, 4 * K, 32, 8 * M),
        Job::new(IoUring, Write, 64 * K, 1, 16 * M),
        Job::new(IoUring, Read, M, 32, 64 * M),
        Job::new(IoUring, Write, M, 1, 32 * M),
        Job::new(IoUring, RandRead, 4097, 32, 4 * M).skewed(3),
        Job::new(IoUring, RandWrite, 65_537, 32, 16 * M).skewed(4095),
    ]
};
