// SPDX-License-Identifier: GPL-2.0

//! The data of an open file of a character device.

use super::operations::{
    Access,
    FileOperations, //
};
use crate::abstractions::helpers::{
    FMODE_READ,
    FMODE_WRITE, //
};
use kernel::{
    bindings,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::ForeignOwnable, //
};

/// The device to which a file belongs.
///
/// # Safety
///
/// `file` must be a file that a [`CharDevice`](super::CharDevice) of `T` has opened, and be open
/// during `'a`.
pub(super) unsafe fn file_data<'a, T: FileOperations>(
    file: *mut bindings::file,
) -> ArcBorrow<'a, T> {
    // SAFETY: Set in `CharDevice::open`, and taken back by the last call on the file.
    unsafe { <Arc<T>>::borrow((*file).private_data.cast()) }
}

/// The access for which a file was opened.
///
/// # Safety
///
/// `file` must be open.
pub(super) unsafe fn file_access(file: *mut bindings::file) -> Access {
    // SAFETY: Open, by the requirement; the mode does not change.
    let mode = unsafe { (*file).f_mode };
    Access {
        read: mode & FMODE_READ != 0,
        write: mode & FMODE_WRITE != 0,
    }
}
