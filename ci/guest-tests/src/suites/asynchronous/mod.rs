// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many requests at once, by Linux AIO and io_uring.

mod aio;
mod batch;
mod fixture;
mod in_flight;
mod uring;
mod window;

use super::provided;
use crate::case::{Case, Suite};
use crate::needs::{Daemon, DeviceKind, Needs, Transports};
pub(super) use uring::workers;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "async",
        about: "many requests at once, by Linux AIO and io_uring",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                // The suite counts doorbells, and a busy-polling device needs few.
                arguments: &["--poll-us=0"],
                transports: Transports::Each,
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
            Case::new("dr12_provided_buffers_sqpoll", provided::sqpoll).left_to_test_all(),
            Case::new(
                "dr12_provided_buffers_defer_taskrun",
                provided::defer_taskrun,
            ),
            Case::new("dr12_provided_buffers_iopoll", provided::iopoll),
            Case::new("dr12_provided_buffers_o_nonblock", provided::nonblock).left_to_test_all(),
            Case::new("dr12_multishot_reads", provided::multishot),
            Case::new("b10_exit_with_aio_in_flight", in_flight::exit_with_aio),
            Case::new("b10_exit_with_uring_in_flight", in_flight::exit_with_uring),
            Case::new("b10_unmap_with_io_in_flight", in_flight::unmap_in_flight),
        ],
    }
}
