// SPDX-License-Identifier: GPL-2.0

//! Programs that must not compile: misuse of the safe interfaces that their types
//! are there to prevent. Compiled by `guest-image/kernel/misuse.sh` only.
//!
//! Each module is about one type. A line that is an error ends with `//~` and a part
//! of the message that the compiler has to give there. There must be no other errors:
//! what surrounds those lines is correct use.

#![allow(dead_code, reason = "only the errors matter")]

mod kiocb;
mod segments;
mod uring;
