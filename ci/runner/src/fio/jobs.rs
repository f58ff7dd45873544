// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The list of jobs.

use ringbar_bench::fio::{Access, Engine};

use super::Job;

const K: u64 = 1 << 10;
pub(super) const M: u64 = 1 << 20;

pub(super) const fn job(engine: Engine, access: Access, block: u64, depth: u32, size: u64) -> Job {
    Job {
        engine,
        access,
        block,
        depth,
        size,
        skew: 0,
    }
}

pub(super) const fn skewed(mut job: Job, skew: u64) -> Job {
    job.skew = skew;
    job
}

/// The jobs of `run`: each engine, sequential and random, reads and writes,
/// 512 bytes to 1 MiB, aligned and not, depth 1 and 32. Sizes are such that each
/// takes a few seconds at most under TCG.
pub const JOBS: &[Job] = {
    use Access::{RandRead, RandWrite, Read, Write};
    use Engine::{IoUring, IoUringFixed, Libaio, LibaioUserReap, Psync};
    &[
        job(Psync, Write, 512, 1, 512 * K),
        job(Psync, RandRead, 512, 1, 512 * K),
        job(Psync, RandWrite, 4 * K, 1, 4 * M),
        job(Psync, Read, 64 * K, 1, 16 * M),
        job(Psync, Write, M, 1, 32 * M),
        skewed(job(Psync, RandRead, 4097, 1, 4 * M), 1),
        job(Libaio, RandWrite, 512, 32, M),
        job(Libaio, RandRead, 4 * K, 1, 4 * M),
        job(Libaio, RandWrite, 4 * K, 32, 8 * M),
        job(Libaio, RandRead, 4 * K, 32, 8 * M),
        job(Libaio, Read, 64 * K, 32, 32 * M),
        job(Libaio, Write, M, 32, 64 * M),
        job(LibaioUserReap, RandRead, 4 * K, 32, 8 * M),
        job(LibaioUserReap, RandWrite, 4 * K, 32, 8 * M),
        skewed(job(Libaio, RandWrite, 4097, 32, 4 * M), 1),
        skewed(job(Libaio, Read, 100_003, 32, 16 * M), 511),
        job(IoUring, RandRead, 512, 32, M),
        job(IoUring, RandWrite, 4 * K, 1, 4 * M),
        job(IoUring, RandRead, 4 * K, 1, 4 * M),
        job(IoUring, RandWrite, 4 * K, 32, 8 * M),
        job(IoUring, RandRead, 4 * K, 32, 8 * M),
        job(IoUringFixed, RandWrite, 4 * K, 32, 8 * M),
        job(IoUringFixed, RandRead, 4 * K, 32, 8 * M),
        job(IoUring, Write, 64 * K, 1, 16 * M),
        job(IoUring, Read, M, 32, 64 * M),
        job(IoUring, Write, M, 1, 32 * M),
        skewed(job(IoUring, RandRead, 4097, 32, 4 * M), 3),
        skewed(job(IoUring, RandWrite, 65_537, 32, 16 * M), 4095),
    ]
};
