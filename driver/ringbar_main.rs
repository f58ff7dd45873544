// SPDX-License-Identifier: GPL-2.0

//! Driver of the Ringbar PCI DMA device.
//!
//! | folder or file | contents |
//! |---|---|
//! | `abstractions` | safe interfaces to the kernel; all `unsafe` code |
//! | `virtio` | capabilities, registers, rings |
//! | `queue` | slots, requests, queues |
//! | `events` | the event queue |
//! | `queues` | the request queues and their users |
//! | `vectors` | the plan of the interrupt vectors, pure |
//! | `interrupts` | the interrupts: allocation, handlers, CPUs |
//! | `recovery` | the handling of faults |
//! | `hardware` | the bound device: transport, queues, aperture |
//! | `device` | the device for files, interrupts and work items |
//! | `lifecycle` | start, suspend, reset and removal of the device |
//! | `map_layout` | the contents of a file's pages in a map |
//! | `mappable` | the part of the device memory that may be mapped |
//! | `file` | the operations of an open file |
//! | `driver` | ID table, probe, unbind |
//! | `timeout` | the time that a request may take |
//! | `stats`, `event_log` | counters and events, which user space can read |
//! | `uapi` | the interface to user space, also a crate for programs |
//! | `misuse` | programs that must not compile; not part of the module |
//! | `simple` | for the drivers of other cards (docs/own-card.md); not part of the module |
//! | `supported` | the kernels for which the driver can be built |
//! | `layout` | the protocol, the same file that the device compiles |

mod abstractions;
mod device;
mod driver;
mod event_log;
mod events;
mod file;
mod hardware;
mod interrupts;
#[forbid(unsafe_code)]
#[path = "../device/spec/src/layout.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a crate of its own in the device, with more than the driver needs"
)]
mod layout;
mod lifecycle;
mod map_layout;
mod mappable;
#[cfg(ringbar_misuse)]
mod misuse;
mod queue;
mod queues;
mod recovery;
mod stats;
mod supported;
mod timeout;
#[forbid(unsafe_code)]
#[path = "uapi/src/ringbar.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a crate of its own for programs in user space, which need both directions"
)]
mod uapi;
mod vectors;
mod virtio;

use kernel::{
    prelude::*,
    ModuleMetadata, //
};

/// Name of the module, the driver and its claimed BAR, and the first part of those of its interrupts.
const NAME: &CStr = <LocalModule as ModuleMetadata>::NAME;

type RingbarModule = abstractions::module::PciModule<driver::RingbarDriver>;

module! {
    type: RingbarModule,
    name: "ringbar",
    authors: ["The Ringbar developers"],
    description: "Driver of the Ringbar PCI DMA device",
    license: "GPL v2",
    params: {
        poll_us: u32 {
            default: 100,
            description: "Busy-poll time per request in microseconds before waiting for the interrupt, added once more per 128 KiB of data; requests above 1 MiB never poll. At most 1000; 0 disables busy-polling",
        },
        timeout_s: u32 {
            default: 0,
            description: "Time in seconds that a request may be in flight before the driver resets the device and the request ends with EIO; four times as long while other requests of its queue complete. 0, the default, for no limit; at most 65535. The file timeout_s of a device in sysfs changes it",
        },
    },
}
