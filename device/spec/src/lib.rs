//! The one description of what the Ringbar device and its driver say to each
//! other: identifiers, device configuration space, requests, events.
//!
//! The driver compiles the very same [`layout`] file into the kernel module, so
//! it uses nothing but `core` and stays within the kernel's Rust version.

#![no_std]

pub mod layout;

pub use layout::*;
