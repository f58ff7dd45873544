// SPDX-License-Identifier: GPL-2.0

//! Programs that must not compile: misuse that the types of the safe interfaces prevent. Only
//! `guest-image/kernel/misuse.sh` compiles them.
//!
//! Each module is about one type. A line with an error ends with `//~` and a part of the message
//! that the compiler has to print there. There must be no other errors: the code around those lines
//! is correct use.

#![allow(dead_code, reason = "only the errors matter")]

mod kiocb;
mod segments;
mod uring;
