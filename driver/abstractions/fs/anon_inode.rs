// SPDX-License-Identifier: GPL-2.0

//! Inodes without a name, for an address space that belongs to no file.
//!
//! Each inode is in a file system of its own, which is mounted within the kernel only, like those
//! of `drm_fs_inode_new` (`drivers/gpu/drm/drm_drv.c`). An inode of tmpfs would not do: the kernel
//! takes every file with its address space for a file of tmpfs. `anon_inode_create_getfile` would
//! not do either: it asks the security module whether the current task may make such files, and any
//! task may bind a driver.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pseudo_fs.h`](srctree/include/linux/pseudo_fs.h)

use crate::abstractions::helpers::init_pseudo;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*,
    str::as_char_ptr_in_const_context,
    types::Opaque, //
};

/// Number of the kind of file system, as `statfs` would show it.
const MAGIC: c_ulong = u32::from_be_bytes(*b"ring") as c_ulong;

/// A kind of file system that cannot be mounted by name, because it is not registered.
struct FileSystemType(Opaque<bindings::file_system_type>);

// SAFETY: Only the VFS accesses it, and serialises its accesses.
unsafe impl Sync for FileSystemType {}

static FILE_SYSTEM: FileSystemType = FileSystemType(Opaque::new(bindings::file_system_type {
    name: as_char_ptr_in_const_context(c"ringbar"),
    init_fs_context: Some(init_fs_context),
    kill_sb: Some(bindings::kill_anon_super),
    // Without an owner, a mount has no reference to the module. With such a reference the module
    // could not be unloaded while a device is bound. The module stays loaded as long as there is an
    // `AnonInode`, because that is a value of one of its types.
    owner: core::ptr::null_mut(),
    ..pin_init::zeroed()
}));

/// # Safety
///
/// To be called by the VFS, to set up a context for [`FILE_SYSTEM`].
unsafe extern "C" fn init_fs_context(context: *mut bindings::fs_context) -> c_int {
    // SAFETY: The context is valid and being set up.
    if unsafe { init_pseudo(context, MAGIC) }.is_null() {
        return ENOMEM.to_errno();
    }
    0
}

/// A mount of [`FILE_SYSTEM`].
///
/// # Invariants
///
/// Made by `kern_mount`, and not yet unmounted.
struct Mount(NonNull<bindings::vfsmount>);

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::kern_unmount(self.0.as_ptr()) };
    }
}

/// An inode without a name, with an address space of its own.
///
/// # Invariants
///
/// `inode` is a reference to an inode in the file system of `_mount`.
pub(in crate::abstractions) struct AnonInode {
    inode: NonNull<bindings::inode>,
    /// Dropped after the inode: fields are dropped after `drop` has run.
    _mount: Mount,
}

// SAFETY: Any thread may use and release an inode and a mount.
unsafe impl Send for AnonInode {}
// SAFETY: As above.
unsafe impl Sync for AnonInode {}

impl AnonInode {
    /// A new inode. Sleeps, as dropping it does.
    pub(in crate::abstractions) fn new() -> Result<Self> {
        // SAFETY: The file system is static, and all fields that the VFS needs are set.
        let mount = from_err_ptr(unsafe { bindings::kern_mount(FILE_SYSTEM.0.get()) })?;
        // INVARIANT: Just mounted.
        let mount = Mount(NonNull::new(mount).ok_or(ENOMEM)?);
        // SAFETY: The mount is valid, and so is its superblock.
        let inode = unsafe { bindings::alloc_anon_inode((*mount.0.as_ptr()).mnt_sb) };
        let inode = from_err_ptr(inode)?;
        // INVARIANT: `alloc_anon_inode` has returned the reference.
        Ok(Self {
            inode: NonNull::new(inode).ok_or(ENOMEM)?,
            _mount: mount,
        })
    }

    /// The C object, which is valid as long as `self` is.
    pub(in crate::abstractions) fn as_ptr(&self) -> *mut bindings::inode {
        self.inode.as_ptr()
    }
}

impl Drop for AnonInode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::iput(self.inode.as_ptr()) };
    }
}
