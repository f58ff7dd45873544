// SPDX-License-Identifier: GPL-2.0

//! All user maps of one device in one place, so that they can be taken away.
//!
//! The maps of a file hang off `file->f_mapping`. For a character device that is
//! by default the address space of whichever device node was opened, and there
//! may be several. So each device has an address space of its own, the one of
//! an unlinked tmpfs file, and every opened file is made to use it.
//!
//! C headers: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::helpers::shmem_file_setup;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    fs::File,
    prelude::*, //
};

/// The address space that holds all user maps of a device.
///
/// # Invariants
///
/// Owns a reference to a tmpfs file of this device's own.
pub(crate) struct AddressSpace(NonNull<bindings::file>);

// SAFETY: Reference counts and `unmap_mapping_range` may be used from any thread.
unsafe impl Send for AddressSpace {}
// SAFETY: As above.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    /// A new, empty one. May sleep.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The name is a string that is copied; no flags are set.
        let file = from_err_ptr(unsafe {
            shmem_file_setup(
                c"ringbar".as_char_ptr(),
                0,
                bindings::vma_flags_t::default(),
            )
        })?;
        // INVARIANT: The reference is the one just made.
        Ok(Self(NonNull::new(file).ok_or(ENOMEM)?))
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The file is valid, and its mapping is set once, when it is made.
        unsafe { (*self.0.as_ptr()).f_mapping }
    }

    /// Makes the maps of `file` belong here.
    ///
    /// # Safety
    ///
    /// Must be called in the file's `open` callback, before anybody can map it;
    /// `self` must outlive the file.
    pub(super) unsafe fn adopt(&self, file: &File) {
        // SAFETY: In `open` nobody else uses the file yet.
        unsafe { (*file.as_ptr()).f_mapping = self.mapping() };
    }

    /// Takes all maps away. Who touches one afterwards gets `SIGBUS`, unless a
    /// fault handler puts something back. Sleeps.
    pub(crate) fn unmap_all(&self) {
        // SAFETY: The address space is valid; a length of 0 means all of it.
        unsafe { bindings::unmap_mapping_range(self.mapping(), 0, 0, 1) };
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}
