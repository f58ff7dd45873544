// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the driver in virtual machines, and fio jobs that verify their data: the
//! library of `ringbar-ci`.
//!
//! | module | what it does |
//! |---|---|
//! | [`suite`] | runs a suite of the guest's tests |
//! | [`book`] | the experiments in docs/, and their expected output |
//! | [`kit`] | writes a card of your own from the template, and tests that it works |
//! | [`ktap`] | reads test results |
//! | [`steps`] | runs tests that share a virtual machine, and lines in its shell |
//! | [`refusal`] | tests that the driver refuses an unusable device |
//! | [`binding`] | tests that the driver binds its devices and no others |
//! | [`several`] | tests of a machine with several devices |
//! | [`reboot`] | tests that the guest can reboot |
//! | [`unplug`] | tests that the device can be unplugged |
//! | [`verified`] | fio jobs that verify their data |
//! | [`report`] | report of `run` |

pub mod binding;
pub mod book;
pub mod kit;
pub mod ktap;
pub mod reboot;
pub mod refusal;
pub mod report;
pub mod several;
pub mod steps;
pub mod suite;
pub mod unplug;
pub mod verified;
