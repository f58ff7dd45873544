// SPDX-License-Identifier: GPL-2.0

//! Driver of the Ringbar PCI DMA device.
//!
//! | folder or file | what is in it |
//! |---|---|
//! | `abstractions` | safe interfaces to the kernel; all `unsafe` code |
//! | `virtio` | capabilities, registers, rings |
//! | `request` | slots, queues, operations, events |
//! | `hardware` | the bound device: transport, queues, aperture |
//! | `device` | the device as files and interrupts see it, with its end |
//! | `lifecycle` | how the device is started, put to sleep, reset and removed |
//! | `mappable` | how much of the device memory may be mapped |
//! | `file` | what an open file does |
//! | `driver` | ID table, probe, unbind |
//! | `stats`, `event_log` | what user space can see of it |
//! | `uapi` | what user space relies on, a crate for programs as well |
//! | `misuse` | what must not compile; not part of the module |
//! | `supported` | the kernels that it can be built for |
//! | `layout` | the protocol, the very file that the device is built from |

mod abstractions;
mod device;
mod driver;
mod event_log;
mod file;
mod hardware;
#[path = "../device/spec/src/layout.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a crate of its own in the device, with more than the driver needs"
)]
mod layout;
mod lifecycle;
mod mappable;
#[cfg(ringbar_misuse)]
mod misuse;
mod request;
mod stats;
mod supported;
#[path = "uapi/src/ringbar.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "a crate of its own for programs in user space, which need both directions"
)]
mod uapi;
mod virtio;

use kernel::{
    prelude::*,
    ModuleMetadata, //
};

/// Name of the module, the driver, and what it claims.
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
            description: "Microseconds for which a submitter looks for the end of its requests before it relies on the interrupt, and as long again for each 128 KiB of data; those of more than 1 MiB are not looked for (0: not at all, at most 1000)",
        },
        timeout_s: u32 {
            default: 120,
            description: "Seconds that a request may take before the device is reset and the request ends with EIO; four times as long while other requests of its queue end (0: for ever)",
        },
    },
}
