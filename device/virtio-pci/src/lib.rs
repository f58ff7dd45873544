// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A VIRTIO function on the PCI bus (VIRTIO 1.3, 4.1): register accesses in, actions out.
//!
//! A virtual machine monitor that leaves a whole PCI function to another process forwards each
//! access to its configuration space and its registers. A [`Function`] is the state behind those
//! accesses: it answers reads, and translates writes into [`Action`]s for the device that processes
//! the queues. It knows no memory, threads, sockets or device type. Every byte that the driver
//! writes is hostile: no access causes a panic, and an action has only indices, sizes and vectors
//! that its [`Description`] allows.
//!
//! | module | holds |
//! |---|---|
//! | `function` | [`Function`]: which register an access is for, start and reset |
//! | `action` | [`Action`], [`Actions`], [`Queue`]: the effects of an access |
//! | `description` | [`Description`]: the constant properties, and their limits |
//! | `common` | the registers of the common configuration |
//! | `device_config` | the device configuration and its generation |
//! | `config_space` | configuration space: header, BARs, access to registers through it |
//! | `capability` | the capabilities in configuration space |
//! | `msix` | the memory of MSI-X |
//! | `layout` | where the parts of the BARs are |
//!
//! # BARs
//!
//! | BAR | bytes | kind | contents |
//! |---|---|---|---|
//! | 1 | 4096, more beyond 128 vectors | 32 bits | MSI-X table at 0, pending bits at 0x800 or behind the table; absent without MSI-X |
//! | 2 | 16384 | 32 bits | registers |
//! | 4 | [`Description::shared_region`] | 64 bits, prefetchable | shared memory region with id 0, accessed without the function; absent without a region |
//!
//! | registers at | bytes | VIRTIO 1.3 | reads | writes |
//! |---|---|---|---|---|
//! | 0 | 56 | 4.1.4.3 common configuration | of any width | of a whole register, or of a half of 64 bits |
//! | 0x1000 | 1 | 4.1.4.5 interrupt status | clear it | ignored |
//! | 0x2000 | [`Description::config_bytes`] | 4.1.4.6 device configuration | of any width | ignored |
//! | 0x3000 | 4 for each queue | 4.1.4.4 notifications | 0 | 2 or 4 bytes, of any value |
//!
//! # Capabilities
//!
//! | capability | properties |
//! |---|---|
//! | PCI Express, version 2 | endpoint, function level reset |
//! | MSI-X or MSI, or neither | MSI has 64-bit addresses and no masks |
//! | VIRTIO types 1 to 5 | all registers, and access to them through configuration space (type 5) |
//! | VIRTIO type 8 | the shared memory region |
//!
//! Power management and extended capabilities are absent. The function delivers no interrupts: the
//! monitor tells the transport in messages of its own which vectors are enabled. So the interrupt
//! status bit of the PCI status register and the pending bits of MSI-X read 0.
//!
//! # States
//!
//! ```text
//!              DRIVER_OK and bus mastering: Start
//!   Stopped ───────────────────────────────────────► Started ◄─┐ Pause, Resume, StartQueue,
//!      ▲                                              │      └─┘ Notify
//!      │ reset_done()                                 │
//!      └──────────── Resetting ◄──────────────────────┘
//!                    status 0 written, function level reset, or reset(): Reset
//! ```
//!
//! In the state Resetting the status keeps its value, which is not 0. A driver waits for the status
//! 0 (4.1.4.3.2), so it waits for the device, and no access blocks. The other registers of the
//! common configuration have their values after reset already, and ignore writes. `Reset` also
//! occurs in the state Stopped if the status is not 0. With status 0, a reset takes effect at once
//! and `Reset` does not occur.

#![forbid(unsafe_code)]

mod action;
mod capability;
mod common;
mod config_space;
mod description;
mod device_config;
mod function;
mod layout;
mod msix;

pub use action::{Action, Actions, Queue};
pub use description::{Description, DescriptionError, Identity, Interrupts};
pub use function::{AccessError, Function, Space, Surroundings};
pub use layout::{MSIX_BAR, REGISTER_BAR, SHARED_BAR};
