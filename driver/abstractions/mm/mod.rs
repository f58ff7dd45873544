// SPDX-License-Identifier: GPL-2.0

//! Memory of user space: address spaces, maps, memory that is shared with programs.

pub(crate) mod address_space;
pub(crate) mod caching;
pub(crate) mod shared_memory;
pub(crate) mod vma;
