//! The protocol between the Ringbar device and its driver: identifiers, device configuration
//! space, requests, events.
//!
//! The driver compiles the same [`layout`] file into the kernel module, so the file uses only
//! `core`, in the kernel's Rust version.

#![forbid(unsafe_code)]
#![no_std]

pub mod layout;

pub use layout::*;
