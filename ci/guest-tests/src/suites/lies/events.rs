// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies on the event queue, and interrupts without a cause.

use ringbar_agent_protocol::host::{Lie, LieQueue, UsedLie};
use ringbar_spec::{Event, QueueFault};

use super::device::LyingDevice;
use crate::case::{Case, Context, Verdict, eventually};
use crate::check;
use crate::check_eq;
use crate::fixtures::device::info;
use crate::fixtures::driver::expect_working;

/// Bytes that are not a valid event.
const GARBAGE: [u8; Event::SIZE] = [0xa5; Event::SIZE];

/// Messages of the driver. It reports unknown events only once.
const BROKEN: &str = "the device broke the event queue";
const UNKNOWN: &str = "unknown event in buffer";

/// Entries of the event queue.
const SIZE: u16 = 16;

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = [
        ("event_index_one_too_far", UsedLie::IndexAhead(SIZE)),
        ("event_id_beyond_the_ring", UsedLie::Id(SIZE.into())),
        ("event_id_that_comes_twice", UsedLie::Twice),
    ]
    .map(|(name, lie)| {
        Case::new(format!("c7_{name}"), move |context| broken(context, lie))
            .provokes(BROKEN)
            .may_provoke(UNKNOWN)
    })
    .into();
    cases.extend([
        Case::new("c7_invalid_events_are_ignored", garbage).may_provoke(UNKNOWN),
        Case::new(
            "c7_event_of_a_broken_queue_that_does_not_exist",
            unknown_queue,
        )
        .provokes("the device has given up queue 65534"),
        Case::new("c7_too_many_events", flood)
            .provokes(BROKEN)
            .may_provoke(UNKNOWN),
        Case::new("c7_interrupts_without_work", storm),
    ]);
    cases
}

fn broken(context: &Context, lie: UsedLie) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    liar.tell(Lie::Used(LieQueue::Event, lie))?;
    liar.expect_told(1)?;
    eventually("the end of service", || out_of_service(context))?;
    liar.expect_out_of_service()?;
    expect_broken(&mut liar)?;
    liar.bring_back()
}

/// Checks that one line reports the broken event queue.
fn expect_broken(liar: &mut LyingDevice<'_>) -> Verdict {
    let mut lines = liar.log.of_driver()?;
    lines.retain(|line| !line.contains("unknown event"));
    check_eq!(lines.len(), 1, "lines, which are {lines:?}");
    check!(
        lines[0].contains("the device broke the event queue"),
        "{lines:?}"
    );
    Ok(())
}

/// Whether new requests are refused.
fn out_of_service(context: &Context) -> Verdict<bool> {
    let file = context.open()?;
    Ok(crate::sys::fsync(&file).is_err())
}

fn garbage(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    // Bytes 8 and following hold invalid sizes.
    let mut none = Event::CapacityChanged { capacity: 1 }.to_bytes();
    none[8..16].fill(0);
    let mut huge = none;
    huge[8..16].fill(0xff);
    let mut fault = Event::QueueBroken {
        queue: 2,
        fault: QueueFault::Ring,
    }
    .to_bytes();
    fault[4] = 0x7f;
    let interrupts = context.interrupts()?;
    let events = [GARBAGE, [0; Event::SIZE], none, huge, fault];
    for (count, bytes) in (1..).zip(events) {
        liar.tell(Lie::Event(bytes))?;
        liar.expect_told(count)?;
        eventually("an interrupt", || Ok(context.interrupts()? > interrupts))?;
        expect_working(context, count)?;
        check_eq!(info(&file)?.capacity, context.size(), "bytes of the device");
    }
    // One line, however many unknown events there are.
    let lines = liar.log.of_driver()?;
    check!(lines.len() <= 1, "the driver said {lines:?}");
    liar.expect_in_order()
}

fn unknown_queue(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let event = Event::QueueBroken {
        queue: 0xfffe,
        fault: QueueFault::Chain,
    };
    liar.tell(Lie::Event(event.to_bytes()))?;
    liar.expect_told(1)?;
    // The driver believes that the device has given up a queue, even one that does not
    // exist.
    eventually("the end of service", || out_of_service(context))?;
    liar.expect_out_of_service()?;
    liar.expect_line(&["the device has given up queue 65534"])?;
    liar.bring_back()
}

fn flood(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    liar.tell(Lie::EventFlood(u32::MAX, GARBAGE))?;
    // The rate of events makes the driver give the device up. Until then the guest must
    // respond.
    eventually("the end of service", || out_of_service(context))?;
    liar.host.end_lies()?;
    liar.expect_out_of_service()?;
    let told = liar.host.lies_told()? - liar.told;
    check!(told >= 256, "only {told} events");
    expect_broken(&mut liar)?;
    liar.bring_back()
}

fn storm(context: &Context) -> Verdict {
    const MILLISECONDS: u32 = 1500;
    let mut liar = LyingDevice::new(context)?;
    let before = context.interrupts()?;
    let requests = context.counter("requests")?;
    let mut rounds = 0;
    liar.tell(Lie::InterruptStorm(MILLISECONDS))?;
    loop {
        let told = liar.host.lies_told()?;
        expect_working(context, 50 + rounds)?;
        rounds += 1;
        if liar.host.lies_told()? == told {
            break;
        }
    }
    let interrupts = context.interrupts()? - before;
    let requests = context.counter("requests")? - requests;
    check!(
        interrupts > 2 * requests,
        "{interrupts} interrupts for {requests} requests are no storm"
    );
    check!(rounds > 1, "the storm was over at once");
    liar.expect_no_line()?;
    liar.expect_in_order()
}
