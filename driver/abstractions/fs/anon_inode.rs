// SPDX-License-Identifier: GPL-2.0

//! Inodes without a name, for an address space that is no file's.
//!
//! Each lives in a file system of its own, mounted within the kernel only, as
//! `drm_fs_inode_new` has them (`drivers/gpu/drm/drm_drv.c`). An inode of tmpfs would
//! not do: the kernel takes every file with its address space for a file of tmpfs.
//! `anon_inode_create_getfile` asks the security module whether the current task may
//! make such files, and the task that binds a driver may be any.
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

/// Number that tells the kind of file system, as `statfs` would show it.
const MAGIC: c_ulong = u32::from_be_bytes(*b"ring") as c_ulong;

/// A kind of file system that nobody can mount by name, because it is not registered.
struct FileSystemType(Opaque<bindings::file_system_type>);

// SAFETY: Only the VFS looks into it, which serialises what it does there.
unsafe impl Sync for FileSystemType {}

static FILE_SYSTEM: FileSystemType = FileSystemType(Opaque::new(bindings::file_system_type {
    name: as_char_ptr_in_const_context(c"ringbar"),
    init_fs_context: Some(init_fs_context),
    kill_sb: Some(bindings::kill_anon_super),
    // Without an owner a mount does not hold the module, which could not be removed while a device
    // is bound. The module stays as long as there is an `AnonInode`, a value of a type of its own.
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
    /// Goes after the inode: fields are dropped after `drop` has run.
    _mount: Mount,
}

// SAFETY: An inode and a mount may be used and given back by any thread.
unsafe impl Send for AnonInode {}
// SAFETY: As above.
unsafe impl Sync for AnonInode {}

impl AnonInode {
    /// A new one. Sleeps, as dropping it does.
    pub(in crate::abstractions) fn new() -> Result<Self> {
        // SAFETY: The file system is static, and all that the VFS needs of it is set.
        let mount = from_err_ptr(unsafe { bindings::kern_mount(FILE_SYSTEM.0.get()) })?;
        // INVARIANT: Just mounted.
        let mount = Mount(NonNull::new(mount).ok_or(ENOMEM)?);
        // SAFETY: The mount is valid, and so is its superblock.
        let inode = unsafe { bindings::alloc_anon_inode((*mount.0.as_ptr()).mnt_sb) };
        let inode = from_err_ptr(inode)?;
        // INVARIANT: The reference is the one just made.
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
