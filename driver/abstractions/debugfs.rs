// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs, each of which shows a number.
//!
//! An open file of [`kernel::debugfs`] has no reference to the module that has made it, and debugfs
//! reads its operations once more when it is closed. The operations here name the module as their
//! owner, so it cannot be unloaded before.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use super::pci::device::address;
use kernel::{
    bindings,
    device::Bound,
    devres,
    pci,
    prelude::*,
    sync::Arc, //
};
#[cfg(CONFIG_DEBUG_FS)]
use kernel::{
    module::this_module,
    seq_file::SeqFile,
    seq_print, //
};

/// The value that a file shows.
pub(crate) trait Number: Send + Sync + 'static {
    /// The current number. May sleep.
    fn number(&self) -> u64;
}

/// A directory. Dropping it removes the directory and its files; sleeps then.
///
/// # Invariants
///
/// A directory of debugfs that belongs to this value, an error pointer, or null.
struct Entry(*mut bindings::dentry);

// SAFETY: debugfs does its own locking.
unsafe impl Send for Entry {}
// SAFETY: As above.
unsafe impl Sync for Entry {}

#[cfg(CONFIG_DEBUG_FS)]
impl Entry {
    fn new(name: &CStr, parent: Option<&Self>) -> Self {
        let parent = parent.map_or(core::ptr::null_mut(), |parent| parent.0);
        // INVARIANT: Just made.
        // SAFETY: The name is copied. By the type invariant the parent is a directory, or a value
        // for which debugfs returns an error pointer or null.
        Self(unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) })
    }

    /// Creates a file in the directory.
    ///
    /// # Safety
    ///
    /// `shown` must be valid until the directory has been removed.
    unsafe fn add<T: Number>(&self, name: &CStr, shown: *const T) {
        // SAFETY: The name is copied, and for the directory see `new`. The operations match the
        // type of `shown`, which by the requirement is valid until the file is removed with its
        // directory; the removal waits for calls in progress, and no call but `release` follows.
        unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                self.0,
                shown.cast_mut().cast(),
                core::ptr::null(),
                &Files::<T>::OPERATIONS,
            )
        };
    }
}

/// Without debugfs there are no files.
#[cfg(not(CONFIG_DEBUG_FS))]
impl Entry {
    fn new(_name: &CStr, _parent: Option<&Self>) -> Self {
        // INVARIANT: Null.
        Self(core::ptr::null_mut())
    }

    /// # Safety
    ///
    /// None.
    unsafe fn add<T: Number>(&self, _name: &CStr, _shown: *const T) {}
}

#[cfg(CONFIG_DEBUG_FS)]
impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the directory is ours, or a value that debugfs ignores.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// The directory of a module.
pub(crate) struct Dir(Entry);

impl Dir {
    /// Creates the directory. Sleeps; never fails. Without debugfs there is no directory.
    pub(crate) fn new(name: &CStr) -> Self {
        Self(Entry::new(name, None))
    }
}

/// The files of a device.
struct Files<T: Number> {
    // Fields are dropped in this order: first the files are removed.
    dir: Entry,
    shown: KVec<(&'static CStr, T)>,
    _parent: Arc<Dir>,
}

/// Creates a directory in `parent` for `device`, with a file of each name. It is removed when the
/// device is unbound. Sleeps.
pub(crate) fn show<T: Number>(
    device: &pci::Device<Bound>,
    parent: Arc<Dir>,
    shown: KVec<(&'static CStr, T)>,
) -> Result {
    let files = Files {
        dir: Entry::new(&address(device)?, Some(&parent.0)),
        shown,
        _parent: parent,
    };
    for (name, shown) in &files.shown {
        // SAFETY: The vector is never changed, and is dropped after the directory.
        unsafe { files.dir.add(name, shown) };
    }
    devres::register(device.as_ref(), files, GFP_KERNEL)
}

#[cfg(CONFIG_DEBUG_FS)]
impl<T: Number> Files<T> {
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// To be called by debugfs, for a file that [`Entry::add`] has made.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: By the requirement both are valid; `i_private` is the value that the file shows.
        unsafe { bindings::single_open(file, Some(Self::print), (*inode).i_private) }
    }

    /// # Safety
    ///
    /// To be called by a read of a file that [`Self::open`] has opened.
    unsafe extern "C" fn print(file: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: debugfs allows no read of a file that was removed, so the value that it shows is
        // valid.
        let shown = unsafe { &*(*file).private.cast_const().cast::<T>() };
        // SAFETY: Valid during the call, and locked by the read.
        let file = unsafe { SeqFile::from_raw(file) };
        seq_print!(file, "{}\n", shown.number());
        0
    }
}
