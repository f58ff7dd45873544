// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many requests at once, by Linux AIO and io_uring.

mod aio;
mod batch;
mod in_flight;
mod uring;
mod window;

use std::fs::File;
use std::time::Duration;

use super::provided;
use crate::case::{Case, Context, During, Suite, Verdict, expect_bytes};
use crate::needs::{Daemon, DeviceKind, Needs};
use crate::pattern;
use crate::sys::{IoVec, Region};
use crate::{check, check_eq};
pub(super) use uring::workers;

/// Requests in flight.
const DEPTH: usize = 32;

/// Bytes of each request in the plain depth tests.
const BLOCK: usize = 4096;

/// Timeout for results.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "async",
        about: "many requests at once, by Linux AIO and io_uring",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                // The suite counts doorbells, and a busy-polling device needs few.
                arguments: &["--poll-us=0"],
                ..Daemon::default()
            }),
            ..Needs::default()
        },
        cases: vec![
            Case::new("b6_aio_depth_32", aio::aio_depth),
            Case::new("b6_aio_random_window", aio::aio_window),
            Case::new("b6_aio_vectored_depth_32", aio::aio_vectored),
            Case::new("b6_aio_eventfd", aio::aio_eventfd),
            Case::new("b6_aio_more_than_the_ring_holds", aio::aio_many),
            Case::new("b6_aio_ring_read_in_user_space", aio::aio_user_space),
            Case::new("b5_aio_errors_come_as_events", aio::aio_errors),
            Case::new("b8_uring_depth_32", uring::uring_depth),
            Case::new("b8_uring_registered_buffers_depth_32", uring::uring_fixed),
            Case::new("b8_uring_registered_file", uring::uring_registered_file),
            Case::new("b8_uring_on_worker_threads", uring::uring_workers),
            Case::new("b8_uring_submits_inline", uring::uring_inline),
            Case::new("b8_uring_linked_write_and_read", uring::uring_linked),
            Case::new("b8_uring_errors_come_as_results", uring::uring_errors),
            Case::new("b8_uring_random_window", uring::uring_window),
            Case::new("c4_one_doorbell_for_a_batch_of_aio", batch::aio),
            Case::new("c4_one_doorbell_for_a_batch_of_io_uring", batch::uring),
            Case::new("b9_uring_polled_without_interrupts", uring::uring_polled),
            Case::new(
                "dr8_abandoned_polled_requests_block_no_other_caller",
                uring::uring_polled_by_nobody,
            ),
            Case::new("dr12_provided_buffers", provided::plain),
            Case::new("dr12_provided_buffers_sqpoll", provided::sqpoll),
            Case::new(
                "dr12_provided_buffers_defer_taskrun",
                provided::defer_taskrun,
            ),
            Case::new("dr12_provided_buffers_iopoll", provided::iopoll),
            Case::new("dr12_provided_buffers_o_nonblock", provided::nonblock),
            Case::new("dr12_multishot_reads", provided::multishot),
            Case::new("b10_exit_with_aio_in_flight", in_flight::exit_with_aio),
            Case::new("b10_exit_with_uring_in_flight", in_flight::exit_with_uring),
            Case::new("b10_unmap_with_io_in_flight", in_flight::unmap_in_flight),
        ],
    }
}

/// The device and buffers of a test.
struct Fixture {
    file: File,
    bar: Region,
    memory: Region,
}

impl Fixture {
    /// Creates buffers of `length` bytes in all.
    fn new(context: &Context, length: usize) -> Verdict<Self> {
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(length)?,
        })
    }

    /// Buffer number `i`.
    fn block(&self, i: usize) -> IoVec {
        self.memory.buffer(i * BLOCK, BLOCK)
    }

    /// Fills each buffer with its own test data.
    fn fill_blocks(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.memory.store(i * BLOCK, data);
        }
    }

    /// Offset of buffer `i` in the device: neither in order nor aligned.
    fn place(i: usize) -> u64 {
        ((i * 7) % DEPTH) as u64 * (BLOCK as u64 + 513) + 3
    }

    /// Checks the data of each buffer in the device.
    fn expect_in_device(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.bar.load(Self::place(i) as usize, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in the device"))?;
        }
        Ok(())
    }

    /// Stores test data in the device and clears the buffers.
    fn fill_device(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.bar.store(Self::place(i) as usize, data);
        }
        self.memory.fill(0, DEPTH * BLOCK, 0);
    }

    /// Checks the device's data in each buffer.
    fn expect_in_memory(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.memory.load(i * BLOCK, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in memory"))?;
        }
        Ok(())
    }
}

/// Checks that each tag below `count` has one result, with `bytes` bytes.
fn expect_results(
    results: Vec<(u64, std::io::Result<usize>)>,
    count: usize,
    bytes: usize,
) -> Verdict {
    let mut seen = vec![false; count];
    check_eq!(results.len(), count, "number of results");
    for (tag, result) in results {
        let moved = result.during(|| format!("request {tag}"))?;
        check_eq!(moved, bytes, "bytes of request {tag}");
        let first = seen
            .get_mut(tag as usize)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        check!(first, "request {tag} ended twice or was never made");
    }
    Ok(())
}
