// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A stalled device: the host stops its process, so requests stay in flight as long as a
//! test needs.

mod bounced;
mod cancel;
mod full;
mod in_flight;
mod ioctl;
mod leave;
mod lent;
mod provided;
mod synchronous;
mod waiters;

use std::fs::File;
use std::thread::{Scope, ScopedJoinHandle};

use crate::case::{Case, Context, During, Stop, Suite, Verdict, eventually, expect_bytes};
use crate::host::Host;
use crate::needs::Needs;
use crate::pattern;
use crate::pins::Pins;
use crate::sys::{self, Child, IoVec, Region, SleepState, Task};
use crate::{check, check_eq};
use leave::{Engine, ProcessEnd};

/// Bytes of a request.
const BLOCK: usize = 16 << 10;

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
        needs: Needs::default(),
        cases,
    }
}

/// A test for a machine with few bounce buffers.
pub(super) fn bounced() -> Case {
    Case::new(
        "dr10_call_without_a_bounce_buffer_waits_for_one",
        bounced::all_in_use,
    )
}

/// The device, its host, and buffers.
struct Fixture {
    host: Host,
    file: File,
    bar: Region,
    memory: Region,
}

impl Fixture {
    /// Creates memory for `blocks` blocks.
    fn new(context: &Context, blocks: usize) -> Verdict<Self> {
        let fixture = Self {
            host: Host::connect()?,
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(blocks * BLOCK)?,
        };
        all_released()?;
        Ok(fixture)
    }

    /// Buffer number `i`.
    fn block(&self, i: usize) -> IoVec {
        self.memory.buffer(i * BLOCK, BLOCK)
    }

    /// Offset of block `i` in the device: not aligned.
    fn place(i: usize) -> u64 {
        i as u64 * (BLOCK as u64 + 513) + 3
    }

    /// Prepares block `i` to be written: test data in memory, other bytes in the
    /// device.
    fn prepare_write(&self, i: usize) {
        self.memory.store(i * BLOCK, data(i));
        self.bar.fill(Self::place(i) as usize, BLOCK, 0xaa);
    }

    /// Prepares block `i` to be read: test data in the device, other bytes in memory.
    fn prepare_read(&self, i: usize) {
        self.bar.store(Self::place(i) as usize, data(i));
        self.memory.fill(i * BLOCK, BLOCK, 0xbb);
    }

    /// Checks the test data of block `i` in the device.
    fn expect_written(&self, i: usize) -> Verdict {
        let seen = self.bar.load(Self::place(i) as usize, BLOCK);
        expect_bytes(&seen, data(i), &format!("block {i} in the device"))
    }

    /// Checks the test data of block `i` in memory.
    fn expect_read(&self, i: usize) -> Verdict {
        let seen = self.memory.load(i * BLOCK, BLOCK);
        expect_bytes(&seen, data(i), &format!("block {i} in memory"))
    }

    /// Checks that ordinary I/O works on every CPU, and no page is pinned.
    fn finish(&self) -> Verdict {
        all_released()?;
        for cpu in sys::cpus()? {
            let _pinned = sys::pin_to_cpu(cpu)?;
            self.prepare_write(0);
            let written = sys::pwrite(&self.file, self.block(0), Self::place(0))?;
            check_eq!(written, BLOCK, "bytes written afterwards on CPU {cpu}");
            self.expect_written(0)?;
            self.prepare_read(0);
            let read = sys::pread(&self.file, self.block(0), Self::place(0))?;
            check_eq!(read, BLOCK, "bytes read afterwards on CPU {cpu}");
            self.expect_read(0)?;
        }
        Ok(())
    }
}

/// Test data of block `i`.
fn data(i: usize) -> &'static [u8] {
    pattern::bytes(500 + i as u64, BLOCK)
}

/// Waits until no page is pinned. io_uring unpins pages some time after the ring was
/// closed.
fn all_released() -> Verdict {
    eventually("the release of all pages", || Ok(Pins::read()?.balanced()))
}

/// Starts a child process. Errors in it go to standard error, and its exit status reports
/// them.
fn process(work: impl FnOnce() -> Verdict) -> Verdict<Child> {
    Ok(sys::fork(|| match work() {
        Ok(()) => 0,
        Err(stop) => {
            eprintln!("the process: {stop:?}");
            1
        }
    })?)
}

/// Waits until a thread is in this sleep state in the system call.
fn expect_asleep(task: Task, call: i64, how: SleepState) -> Verdict {
    eventually(&format!("{how:?} sleep in system call {call}"), || {
        Ok(task.sleep_state_in(call).during(|| "the caller".into())? == Some(how))
    })
}

/// A thread with a result.
struct Caller<'scope, T> {
    task: Task,
    thread: ScopedJoinHandle<'scope, T>,
}

impl<'scope, T: Send + 'scope> Caller<'scope, T> {
    /// Starts a thread that makes a call.
    fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        call: impl FnOnce() -> T + Send + 'scope,
    ) -> Verdict<Self> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = scope.spawn(move || {
            // The receiver waits for it.
            let _ = sender.send(Task::current());
            call()
        });
        let task = receiver
            .recv()
            .map_err(|_| Stop::Failed("a thread did not start".into()))?;
        Ok(Self { task, thread })
    }

    fn expect_asleep(&self, call: i64, how: SleepState) -> Verdict {
        expect_asleep(self.task, call, how)
    }

    fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread; its result.
    fn join(self) -> Verdict<T> {
        eventually("the end of a thread", || Ok(self.thread.is_finished()))?;
        self.thread
            .join()
            .map_err(|_| Stop::Failed("a thread panicked".into()))
    }
}

/// Checks that a transfer is complete.
fn expect_whole(result: std::io::Result<usize>, what: &str) -> Verdict {
    let moved = result.during(|| what.to_owned())?;
    check_eq!(moved, BLOCK, "bytes of {what}");
    Ok(())
}

/// Checks that each tag below `count` has one result, with a whole block.
fn expect_results(results: Vec<(u64, std::io::Result<usize>)>, count: usize) -> Verdict {
    let mut seen = vec![false; count];
    check_eq!(results.len(), count, "number of results");
    for (tag, result) in results {
        expect_whole(result, &format!("request {tag}"))?;
        let first = seen
            .get_mut(tag as usize)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        check!(first, "request {tag} ended twice or was never made");
    }
    Ok(())
}
