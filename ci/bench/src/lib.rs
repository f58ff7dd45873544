// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Compares Ringbar with the other virtual disks of the same machine.
//!
//! All devices are in one guest and keep their data in memory. The jobs run on one device
//! after the other, in rounds. The result is the ratio of two devices within a round,
//! because the speed of a shared machine varies far more over time than the devices
//! differ.
//!
//! | module | what it does |
//! |---|---|
//! | [`job`] | jobs and their names |
//! | `sweep` | the jobs of the sweep |
//! | [`jobs`] | selects the jobs to run |
//! | [`fio`] | runs fio in the guest |
//! | `perf` | runs `ringbar-perf` in the guest |
//! | [`counters`] | counters of kernel and driver |
//! | [`mod@column`] | devices, and ways of using them |
//! | [`machine`] | the virtual machine with all devices |
//! | `peers` | the other devices on the host |
//! | `guest` | the devices in the guest |
//! | [`measure`] | runs one job on one device |
//! | `usage` | CPU time of processes on the host |
//! | [`instructions`] | counts the guest's instructions |
//! | [`module`] | the addresses of the driver's code |
//! | [`rounds`] | runs a job on all devices |
//! | `statistics` | medians and ratios |
//! | [`idle`] | measures idle devices |
//! | [`targets`] | minimum and maximum values to reach |
//! | [`results`] | the measurements and ratios of all jobs |
//! | [`report`] | the complete result |
//! | `text` | the result as tables |
//! | [`plot`] | the result as a bar chart |
//! | [`table`] | tables as text |

#![forbid(unsafe_code)]

pub mod column;
pub mod counters;
pub mod fio;
mod guest;
pub mod idle;
pub mod instructions;
pub mod job;
pub mod jobs;
pub mod machine;
pub mod measure;
pub mod module;
mod peers;
mod perf;
pub mod plot;
pub mod report;
pub mod results;
pub mod rounds;
mod statistics;
mod sweep;
pub mod table;
pub mod targets;
mod text;
mod usage;
