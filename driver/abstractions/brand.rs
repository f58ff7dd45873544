// SPDX-License-Identifier: GPL-2.0

//! A lifetime that stands for one call of a callback.
//!
//! The trait method behind a callback is generic over a lifetime, `'call`, that it cannot choose,
//! and gets one value with that lifetime. Its return value has the same lifetime, is invariant in
//! it, and can only be made from that value. So the return value was made from the argument of this
//! very call: it cannot come from another call, be kept for another call, or be used after the
//! call.

use core::marker::PhantomData;

/// Marks a type as belonging to the call `'call`: invariant in it, and neither
/// `Send` nor `Sync`.
pub(super) type Brand<'call> = PhantomData<(fn(&'call ()) -> &'call (), *mut ())>;
