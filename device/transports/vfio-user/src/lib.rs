// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device over vfio-user: the whole PCI function outside the virtual machine monitor.

pub mod dma;
pub mod server;
