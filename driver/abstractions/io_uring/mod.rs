// SPDX-License-Identifier: GPL-2.0

//! Commands of io_uring.

pub(crate) mod command;
