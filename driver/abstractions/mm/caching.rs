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

/// The caching of device memory: how the CPU executes accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Each access is executed separately, in order.
    Uncached = 1,
    /// Writes may be merged and delayed; reads are not cached.
    WriteCombining,
    /// Like RAM. Only for memory that really is RAM, as in a virtual machine.
    Cached,
}

impl Caching {
    /// The value for `vm_private_data`, in which null means no caching.
    pub(super) fn into_raw(this: Option<Self>) -> *mut c_void {
        ptr::without_provenance_mut(this.map_or(0, |caching| caching as usize))
    }

    /// The inverse of [`Self::into_raw`].
    fn from_raw(raw: *const c_void) -> Option<Self> {
        [Self::Uncached, Self::WriteCombining, Self::Cached]
            .into_iter()
            .find(|&caching| caching as usize == raw.addr())
    }

    /// The caching of `area`, which must be a map of ours; `None` if it shows no device memory.
    pub(in crate::abstractions) fn of(area: &VmaRef) -> Option<Self> {
        // SAFETY: The area is valid; the field is set once, before the area is linked.
        Self::from_raw(unsafe { (*area.as_ptr()).vm_private_data })
    }

    /// `prot` with this caching.
    pub(super) fn apply(self, prot: bindings::pgprot_t) -> bindings::pgprot_t {
        match self {
            // SAFETY: Only computes.
            Self::Uncached => unsafe { ringbar_pgprot_noncached(prot) },
            // SAFETY: Only computes.
            Self::WriteCombining => unsafe { ringbar_pgprot_writecombine(prot) },
            Self::Cached => prot,
        }
    }

    /// Whether `prot` has this caching, so that [`Self::apply`] would change nothing.
    pub(super) fn is_in(self, prot: bindings::pgprot_t) -> bool {
        let unchanged = |caching: Self| caching.apply(prot).pgprot == prot.pgprot;
        match self {
            Self::Cached => !unchanged(Self::Uncached) && !unchanged(Self::WriteCombining),
            _ => unchanged(self),
        }
    }
}
