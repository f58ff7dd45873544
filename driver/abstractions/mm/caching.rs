// SPDX-License-Identifier: GPL-2.0

//! Caching of device memory that is mapped to user space.
//!
//! C header: [`include/linux/pgtable.h`](srctree/include/linux/pgtable.h)

use crate::abstractions::helpers::{
    ringbar_pgprot_noncached,
    ringbar_pgprot_writecombine, //
};
use core::ptr;
use kernel::{
    bindings,
    mm::virt::VmaRef,
    prelude::*, //
};

/// How the CPU treats accesses to device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Each access by itself, in order.
    Uncached = 1,
    /// Writes may be joined and come late; reads are not cached.
    WriteCombining,
    /// As RAM. Only for memory that is RAM in truth, as in a virtual machine.
    Cached,
}

impl Caching {
    /// As it is kept in `vm_private_data`, where null stands for none.
    pub(super) fn into_raw(this: Option<Self>) -> *mut c_void {
        ptr::without_provenance_mut(this.map_or(0, |caching| caching as usize))
    }

    /// The other way round.
    fn from_raw(raw: *const c_void) -> Option<Self> {
        [Self::Uncached, Self::WriteCombining, Self::Cached]
            .into_iter()
            .find(|&caching| caching as usize == raw.addr())
    }

    /// The caching of `area`, which must be a map of ours, if it is one of device
    /// memory.
    pub(in crate::abstractions) fn of(area: &VmaRef) -> Option<Self> {
        // SAFETY: The area is valid; the field is set once, before the area is linked.
        Self::from_raw(unsafe { (*area.as_ptr()).vm_private_data })
    }

    /// `prot` with this caching, and otherwise as it is.
    pub(super) fn apply(self, prot: bindings::pgprot_t) -> bindings::pgprot_t {
        match self {
            // SAFETY: Only computes.
            Self::Uncached => unsafe { ringbar_pgprot_noncached(prot) },
            // SAFETY: Only computes.
            Self::WriteCombining => unsafe { ringbar_pgprot_writecombine(prot) },
            Self::Cached => prot,
        }
    }

    /// Whether `prot` has this caching: to apply it would change nothing.
    pub(super) fn is_in(self, prot: bindings::pgprot_t) -> bool {
        let unchanged = |caching: Self| caching.apply(prot).pgprot == prot.pgprot;
        match self {
            Self::Cached => !unchanged(Self::Uncached) && !unchanged(Self::WriteCombining),
            _ => unchanged(self),
        }
    }
}
