// SPDX-License-Identifier: GPL-2.0

//! Commands of io_uring.

use crate::abstractions::io_uring::command::{
    UringCommand, //
    UringReturn,
};
use kernel::prelude::*;

fn answer_of_another_call<'one, 'other>(
    one: UringCommand<'one>,
    other: UringCommand<'other>,
) -> UringReturn<'one> {
    let _answer = one.done(Ok(0));
    other.done(Ok(0)) //~ lifetime may not live long enough
}

fn answers_swapped<'one, 'other>(mine: &mut UringReturn<'one>, theirs: &mut UringReturn<'other>) {
    core::mem::swap(mine, theirs) //~ lifetime may not live long enough
}

fn answer_kept_for_later<'call>(
    command: UringCommand<'call>,
    place: &mut KVec<UringReturn<'static>>,
) {
    let _ = place.push_within_capacity(command.done(Ok(0))); //~ borrowed data escapes
}

fn is_send<T: Send>(_: &T) {}

fn answer_for_another_thread(answer: &UringReturn<'_>) {
    is_send(answer) //~ cannot be sent between threads safely
}

fn completed_twice<'call>(command: UringCommand<'call>) -> UringReturn<'call> {
    let (queued, answer) = command.queue();
    queued.complete(Ok(0));
    queued.complete(Ok(0)); //~ use of moved value: `queued`
    answer
}

fn failed_with_the_answer_of_another<'call>(
    one: UringCommand<'call>,
    other: UringCommand<'_>,
) -> UringReturn<'call> {
    let (queued, answer) = one.queue();
    let (_other, other) = other.queue();
    let _ = queued.fail(other, EIO); //~ no method named `fail` found
    answer
}
