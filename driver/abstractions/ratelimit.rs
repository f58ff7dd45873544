// SPDX-License-Identifier: GPL-2.0

//! Messages that somebody else can cause as often as they like.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use super::helpers::ringbar_ratelimit;

/// Whether one more message may go to the log. All of this driver's are counted
/// together. Any context.
pub(crate) fn allows() -> bool {
    // SAFETY: May be called in any context.
    unsafe { ringbar_ratelimit() }
}
