// SPDX-License-Identifier: GPL-2.0

//! Control blocks of reads and writes.

use crate::abstractions::fs::kiocb::{
    AsyncKiocb,
    IoReturn,
    Kiocb, //
};
use kernel::prelude::*;

fn answer_of_another_call<'one, 'other>(one: Kiocb<'one>, other: Kiocb<'other>) -> IoReturn<'one> {
    let _answer = one.done(Ok(0));
    other.done(Ok(0)) //~ lifetime may not live long enough
}

fn answer_of_a_longer_call<'short, 'long: 'short>(
    short: Kiocb<'short>,
    long: Kiocb<'long>,
) -> IoReturn<'short> {
    let _answer = short.done(Ok(0));
    long.done(Ok(0)) //~ lifetime may not live long enough
}

fn answers_swapped<'one, 'other>(mine: &mut IoReturn<'one>, theirs: &mut IoReturn<'other>) {
    core::mem::swap(mine, theirs) //~ lifetime may not live long enough
}

fn answer_kept_for_later<'call>(kiocb: Kiocb<'call>, place: &mut KVec<IoReturn<'static>>) {
    let _ = place.push_within_capacity(kiocb.done(Ok(0))); //~ borrowed data escapes
}

fn answer_made_up<'call>(kiocb: Kiocb<'call>) -> IoReturn<'call> {
    drop(kiocb);
    IoReturn::new(0) //~ associated function `new` is private
}

fn no_answer<'call>(kiocb: Kiocb<'call>) -> IoReturn<'call> {
    drop(kiocb) //~ mismatched types
}

fn is_send<T: Send>(_: &T) {}

fn answer_for_another_thread(answer: &IoReturn<'_>) {
    is_send(answer) //~ cannot be sent between threads safely
}

fn control_block_for_another_thread(kiocb: &AsyncKiocb<'_>) {
    is_send(kiocb) //~ cannot be sent between threads safely
}

fn synchronous_one_queued(kiocb: Kiocb<'_>) {
    let _ = kiocb.queue(); //~ no method named `queue` found
}

fn completed_twice<'call>(kiocb: AsyncKiocb<'call>) -> IoReturn<'call> {
    let (queued, answer) = kiocb.queue();
    queued.complete(Ok(0));
    queued.complete(Ok(0)); //~ use of moved value: `queued`
    answer
}

fn ended_in_the_call_after_it_was_queued<'call>(kiocb: AsyncKiocb<'call>) -> IoReturn<'call> {
    let (queued, _answer) = kiocb.queue();
    queued.complete(Ok(0));
    kiocb.done(Ok(0)) //~ use of moved value: `kiocb`
}

fn queued_one_taken_back<'call>(kiocb: AsyncKiocb<'call>) -> IoReturn<'call> {
    let (queued, answer) = kiocb.queue();
    queued.withdraw(answer).done(Ok(0)) //~ no method named `withdraw` found
}
