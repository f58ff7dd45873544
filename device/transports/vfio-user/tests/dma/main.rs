// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The DMA table and the memory that it gives to the workers.

mod files;
mod memory;
mod oracle;
mod support;
mod table;
