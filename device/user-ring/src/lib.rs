// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rings between a process and the device: the protocol of queues in user space.
//!
//! A queue is a pair of rings. The process writes submission entries, the device writes
//! completion entries. Each area of memory has one writer:
//!
//! | area | writer | others | contents |
//! |---|---|---|---|
//! | user | process | device reads | header, submission entries of 64 bytes |
//! | device | device; the driver after a reset | process and driver read | header, completion entries of 16 bytes |
//! | kernel | driver | device reads | `armed` |
//!
//! No side trusts an index of the other. A [`Position`](layout::Position) is private to its
//! side; the slot is the position modulo the number of entries, so it is in range by
//! construction. An entry is valid if its lap is the expected one. A lap is the number of
//! the pass through the ring, as the phase bit of NVMe, but with 32 bits in a submission
//! entry and 16 in a completion entry. The rings begin as zeros and the first lap is 1. A lap
//! may wrap, because the slot then holds the lap before.
//!
//! | module | holds |
//! |---|---|
//! | [`process`] | the side of the process: push, submit, reap |
//! | [`device`] | the side of the device: take, complete, end of a turn, sleep |
//! | [`driver`] | the side of the driver: whether a kick is needed, and the wait for completions |
//! | [`entry`] | the two kinds of entries |
//! | [`layout`] | sizes, positions, and where each word is |
//! | [`words`] | access to an area |
//! | `sync` | every ordering and fence, with the reason for each |
//!
//! ```text
//!  process                          device
//!  push:  words 1..8, word 0 ─────► take:     word 0, words 1..8
//!  reap:  word 1, word 0     ◄───── complete: word 0, word 1
//!  submit: fence, need_wakeup ◄───► fall_asleep: need_wakeup = 1, fence, word 0
//!  driver
//!  wait: armed, fence, completed ◄► end_turn: completed, fence, armed
//! ```
//!
//! The flow rule: at most as many requests as the ring has entries are neither completed nor
//! reaped. [`process::Queue`] keeps it. [`device::Queue`] does not rely on it: a process that
//! breaks it overwrites its own entries, and the device takes no more requests than it has
//! entries before it has completed some.
//!
//! # A restart of the device is not designed yet
//!
//! A queue begins at position 0, on areas that contain zeros, and ends with the device that serves
//! it: [`device::Queue::new`] refuses an area in which a device has served a queue before. No
//! word says where the next device could go on. `completed` is written once for each turn, so
//! within a turn it is behind the completions that a process has reaped. A restart needs:
//!
//! - the position from the laps in the completion ring, which are written with each completion;
//! - completions in the order of the submissions, or a record of the requests that were taken and
//!   not completed: the number of completions does not say which requests they are;
//! - one [`device::fall_asleep`] and one [`device::Queue::end_turn`] before the first wait, because
//!   a process may have seen that the old device polls, and a driver may wait for completions that
//!   the old device has not announced;
//! - a model in which the device ends at each of its stores.
//!
//! # Models
//!
//! `models` checks the protocol with loom: `make test` runs it, or
//!
//! ```text
//! guest-image/toolbox/cargo.sh --config 'target.x86_64-unknown-linux-gnu.rustflags=["--cfg=loom"]' \
//!     test --release --target-dir build/loom -p ringbar-user-ring --lib models
//! ```
//!
//! `models::mutations` removes each ordering and each fence of `sync` once, and expects that a
//! model fails with the message that shows what the ordering is for. Loom explores no load buffering
//! (a load that returns a value stored later in the execution), so no model shows that the device's
//! loads of a submission entry come before the process uses its slot again: that follows from the
//! release of the completion and the acquire of `reap`.
//!
//! These checks were removed by hand, and the named test failed:
//!
//! | check | test |
//! |---|---|
//! | `push`: the ring is full | `models::the_flow_rule_protects_each_slot` |
//! | `push`: the lap is the one of the position (was 1) | `models::the_flow_rule_protects_each_slot` |
//! | `reap`: a request is in flight | `tests::hostile::a_device_that_lies_cannot_end_more_than_was_pushed` |
//! | `take`: an entry is free for the completion | `tests::hostile::a_process_cannot_make_the_device_take_without_end` |
//! | `fall_asleep`: looks again after the fence | `models::a_device_is_kicked` |
//! | `fall_asleep`: one fence after all stores (was one before the last store) | `models::a_device_with_two_queues_is_kicked` |
//! | `fall_asleep`: all completions are announced | `tests::a_device_does_not_sleep_before_it_has_announced_its_completions` |
//! | `complete`: the request is of this queue | `tests::a_request_is_completed_on_its_queue_only` |
//! | `new`: no device has served a queue in the areas | `tests::a_device_that_is_started_again_is_refused_the_areas` |
//! | `end_turn`: `signalled` is stored | `models::a_waiter_is_interrupted_once` |
//! | `wait`: the difference of positions is signed | `tests::a_driver_that_lags_behind_the_process_waits` |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom))]
extern crate std;

pub mod device;
pub mod driver;
pub mod entry;
pub mod layout;
pub mod process;
mod sync;
pub mod words;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
