// SPDX-License-Identifier: GPL-2.0

//! Driver of the card grabber.
//!
//! | file or folder | contents |
//! |---|---|
//! | `driver` | ID table, probe, unbind, system sleep |
//! | `file` | the calls of `/dev/grabberN` |
//! | `protocol` | the bytes of requests, the same file that the device compiles |
//! | `uapi` | the calls in numbers, the same file that programs compile |
//! | `abstractions` | of Ringbar: safe interfaces to the kernel, with all `unsafe` code |
//! | `virtio` | of Ringbar: VIRTIO over PCI |
//! | `simple` | of Ringbar: a device from probe to unbind, and its queue |
//! | `posted` | of Ringbar: buffers that the device fills by itself |
//! | `supported` | of Ringbar: the kernels that it works with |

#[path = "../ringbar/driver/abstractions/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "a library, with more than this driver needs"
)]
mod abstractions;
mod driver;
mod file;
#[path = "../ringbar/driver/posted/mod.rs"]
mod posted;
#[forbid(unsafe_code)]
#[path = "../protocol.rs"]
#[allow(dead_code, unreachable_pub, reason = "the device needs the rest")]
mod protocol;
#[path = "../ringbar/driver/simple/mod.rs"]
#[allow(dead_code, reason = "a library, with more than this driver needs")]
mod simple;
#[path = "../ringbar/driver/supported.rs"]
mod supported;
#[forbid(unsafe_code)]
#[path = "../uapi/grabber.rs"]
#[allow(dead_code, unreachable_pub, reason = "programs need the rest")]
mod uapi;
#[path = "../ringbar/driver/virtio/mod.rs"]
#[allow(dead_code, reason = "a library, with more than this driver needs")]
mod virtio;

use kernel::prelude::*;

type GrabberModule = abstractions::module::PciModule<driver::GrabberDriver>;

module! {
    type: GrabberModule,
    name: "grabber",
    authors: ["The authors of grabber"],
    description: "Driver of the card grabber",
    license: "GPL v2",
}
