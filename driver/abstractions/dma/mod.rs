// SPDX-License-Identifier: GPL-2.0

//! Memory as the device sees it: bus addresses, and pinned pages that are mapped for it.

pub(crate) mod range;
pub(crate) mod segments;
