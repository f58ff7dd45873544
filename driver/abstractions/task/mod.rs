// SPDX-License-Identifier: GPL-2.0

//! Waiting, busy-polling and work items.

pub(crate) mod spin;
pub(crate) mod wait;
pub(crate) mod work;
