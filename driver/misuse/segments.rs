// SPDX-License-Identifier: GPL-2.0

//! The memory of a request, and the slot that it goes to.

use crate::{
    abstractions::dma::segments::{
        Borrowed,
        Extracted,
        InlineSegments,
        Mapped,
        Pages,
        Room, //
    },
    layout::RequestHeader,
    queue::{
        request::{
            AcquiredSlot,
            Command,
            Transfer, //
        },
        state::QueueRef, //
    },
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    time::msecs_to_jiffies, //
};

fn pages_mapped_twice(
    device: &pci::Device<Bound>,
    pages: Extracted<'_, Borrowed>,
    room: &mut Room,
) {
    let _ = pages.map(device, room);
    let _ = pages.map(device, room); //~ use of moved value: `pages`
}

fn pages_without_the_end_of_the_mapping(mapped: Mapped) -> Pages {
    mapped.pages //~ field `pages` of struct
}

fn pages_unmapped_twice(device: &pci::Device<Bound>, mapped: Mapped) {
    let _pages = mapped.unmap(device);
    let _pages = mapped.unmap(device); //~ use of moved value: `mapped`
}

fn room_of_another_call<'s>(pages: Extracted<'s, Borrowed>) -> Extracted<'static, Borrowed> {
    let _room = InlineSegments::new();
    pages //~ lifetime may not live long enough
}

/// A thread may stop waiting for a command after a time, but not for borrowed pages.
fn transfer_left_to_itself(transfer: Transfer<'_, Borrowed>, command: Command<'_>) {
    let timeout = Some(msecs_to_jiffies(1));
    let _ = command.execute(timeout);
    let _ = transfer.execute(timeout); //~ mismatched types
}

fn slot_submitted_without_a_request(queue: QueueRef<'_>, slot: AcquiredSlot<'_>) {
    let mut requests = KVec::new();
    let _ = requests.push(slot, GFP_KERNEL);
    let _ = queue.submit_all(&mut requests); //~ mismatched types
}

fn slot_for_two_requests(slot: AcquiredSlot<'_>, header: RequestHeader) {
    let _command = slot.prepare_command(header);
    let _command = slot.prepare_command(header); //~ use of moved value: `slot`
}
