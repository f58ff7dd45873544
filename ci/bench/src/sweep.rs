// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The jobs of the sweep.

use ringbar_fio::{Access, Engine};

use crate::job::{Job, MAX_IN_FLIGHT};

/// The sweep: all sizes at depths 1 and 32, all depths, and all numbers of jobs.
pub fn sweep() -> Vec<Job> {
    const SIZES: [u64; 9] = [
        512,
        4 << 10,
        16 << 10,
        64 << 10,
        256 << 10,
        1 << 20,
        4 << 20,
        8 << 20,
        16 << 20,
    ];
    let mut jobs = Vec::new();
    for access in [Access::Read, Access::Write, Access::RandReadWrite] {
        let job = |block, depth, jobs| Job {
            access,
            block,
            depth,
            engine: Engine::IoUring,
            polled: false,
            batch: None,
            jobs,
            lean: false,
        };
        for depth in [1, 32] {
            jobs.extend(SIZES.map(|block| job(block, depth, 1)));
        }
        for (block, depth, number) in [
            (4 << 10, 8, 1),
            (4 << 10, 256, 1),
            (128 << 10, 8, 1),
            (128 << 10, 256, 1),
            (4 << 10, 1, 4),
            (4 << 10, 32, 2),
            (4 << 10, 32, 4),
            (128 << 10, 8, 4),
            (1 << 20, 4, 4),
        ] {
            jobs.push(job(block, depth, number));
        }
    }
    jobs.retain(|job| job.in_flight() <= MAX_IN_FLIGHT);
    jobs
}
