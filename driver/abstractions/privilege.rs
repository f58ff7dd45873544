// SPDX-License-Identifier: GPL-2.0

//! The privileges of the current task.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use kernel::{
    bindings,
    prelude::*, //
};

/// Whether the current task may administer the system (`CAP_SYS_ADMIN`). Task context.
pub(crate) fn is_administrator() -> bool {
    // SAFETY: Accesses the current task only.
    // CAST: A small constant.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}
