// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A stalled device: the host stops its process, so requests stay in flight as long as a
//! test needs.

mod bounced;
mod cancel;
mod fixture;
mod full;
mod in_flight;
mod ioctl;
mod leave;
mod lent;
mod provided;
mod synchronous;
mod waiters;

use ringbar_agent_protocol::machine::Transport;

use crate::case::{Case, Suite};
use crate::needs::{Daemon, DeviceKind, Needs, Transports};
use leave::{Engine, ProcessEnd};

/// Reason for which a test that stalls the device does not run over vfio-user: QEMU 11.1 waits
/// at each doorbell for the device, for 5 s at most, and the guest waits for QEMU.
pub(super) const DOORBELLS_WAIT: &str = "a doorbell waits for the process that the test stops";

/// The suite.
pub fn suite() -> Suite {
    let mut cases = vec![
        Case::new(
            "b5_aio_submit_returns_while_the_device_stalls",
            in_flight::aio,
        ),
        Case::new(
            "b5_uring_submit_returns_while_the_device_stalls",
            in_flight::uring,
        ),
        Case::new(
            "b5_aio_eventfd_is_silent_while_the_device_stalls",
            in_flight::aio_eventfd,
        ),
        Case::new(
            "b5_uring_eventfd_is_silent_while_the_device_stalls",
            in_flight::uring_eventfd,
        ),
        Case::new(
            "b8_uring_cancel_leaves_a_request_in_flight_alone",
            cancel::uring_cancel,
        ),
        Case::new(
            "b8_uring_link_timeout_leaves_a_request_in_flight_alone",
            cancel::uring_link_timeout,
        ),
        Case::new(
            "b8_uring_request_linked_behind_a_short_one_is_cancelled",
            cancel::uring_broken_link,
        ),
        Case::new(
            "b10_io_cancel_leaves_a_request_in_flight_alone",
            cancel::io_cancel,
        ),
        Case::new(
            "b4_killed_callers_leave_nothing_behind",
            synchronous::killed,
        ),
        Case::new(
            "b4_signals_do_not_interrupt_a_transfer",
            synchronous::signals,
        ),
        Case::new(
            "b2_pages_cleaned_during_a_read_are_released",
            synchronous::cleaned,
        ),
        Case::new(
            "b12_vectored_transfers_outlast_a_stall",
            synchronous::vectored,
        ),
        Case::new(
            "dr12_provided_buffers_in_flight_while_the_device_stalls",
            provided::in_flight,
        ),
        Case::new(
            "dr12_provided_buffers_o_nonblock_while_the_device_stalls",
            provided::nonblock,
        ),
        Case::new(
            "dr7_unbind_does_not_wait_for_the_page_of_a_result",
            ioctl::result_without_page,
        ),
        Case::new("b11_nowait_on_a_full_queue", full::nowait),
        Case::new("b11_nonblock_on_a_full_queue", full::nonblock),
        Case::new("b11_uring_on_a_full_queue", full::uring),
        Case::new("b11_waiters_get_slots_in_order", waiters::in_order),
        Case::new("b11_newcomers_do_not_overtake_waiters", waiters::newcomer),
        Case::new("b11_waiters_can_be_interrupted", waiters::interrupted),
        Case::new(
            "b6_signals_do_not_end_asynchronous_waiters",
            waiters::asynchronous,
        ),
    ];
    cases.push(Case::new("b1_pages_of_pipes_both_ways", lent::undisturbed));
    for call in lent::Call::ALL {
        for size in lent::Size::ALL {
            cases.push(Case::new(lent::name(call, size), move |context| {
                lent::killed(context, call, size)
            }));
        }
    }
    for engine in [Engine::Aio, Engine::Uring] {
        for way in [ProcessEnd::Exit, ProcessEnd::Killed, ProcessEnd::Exec] {
            cases.push(Case::new(leave::name(engine, way), move |context| {
                leave::with_requests_in_flight(context, engine, way)
            }));
        }
    }
    Suite {
        name: "stall",
        about: "requests to a device that does not answer for a while",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                transports: Transports::Only(Transport::VhostUser, DOORBELLS_WAIT),
                ..Daemon::default()
            }),
            ..Needs::default()
        },
        cases,
    }
}

/// A test for a machine with few bounce buffers.
pub(super) fn bounced() -> Case {
    Case::new(
        "dr10_call_without_a_bounce_buffer_waits_for_one",
        bounced::all_in_use,
    )
    .only_over(Transport::VhostUser, DOORBELLS_WAIT)
}
