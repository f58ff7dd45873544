// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Compares Ringbar with the other virtual disks of the same machine.
//!
//! All devices are in one guest, and all keep their data in memory. A job is run on one
//! after the other, in rounds; what counts is the ratio of two devices in the same round,
//! because a machine that others use too varies far more between moments than devices do
//! from each other.
//!
//! | module | what it does |
//! |---|---|
//! | [`job`] | jobs and their names |
//! | [`jobs`] | lists of jobs |
//! | [`column`] | devices, and ways of using them |
//! | [`peers`] | the other devices on the host |
//! | [`guest`] | the devices in the guest |
//! | [`measure`] | runs one job on one device |
//! | [`usage`] | what processes on the host use |
//! | [`rounds`] | runs a job on all devices |
//! | [`statistics`] | medians and ratios |
//! | [`idle`] | looks on while nothing is done |
//! | [`targets`] | what is to be reached |
//! | [`report`] | the result |
//! | `text` | the result as tables |
//! | [`plot`] | the result as a picture |

pub mod column;
pub mod guest;
pub mod idle;
pub mod job;
pub mod jobs;
pub mod measure;
pub mod peers;
pub mod plot;
pub mod report;
pub mod rounds;
pub mod statistics;
pub mod targets;
mod text;
pub mod usage;
