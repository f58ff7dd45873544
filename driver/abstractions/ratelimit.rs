// SPDX-License-Identifier: GPL-2.0

//! Rate limit for messages that another party can cause at any rate.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use super::helpers::ringbar_ratelimit;

/// Whether one more message may be logged. All messages of this driver that use this count
/// together. Any context.
pub(crate) fn allows() -> bool {
    // SAFETY: May be called in any context.
    unsafe { ringbar_ratelimit() }
}
