// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: pages of the caller, merged into a scatterlist and mapped for DMA.
//!
//! ```text
//!  PageSource --extract--> Extracted --map--> Mapped --unmap--> Pages --release--> (released)
//!                              |                                          |
//!                            drop: the pages are released            CleanedPages
//! ```
//!
//! Each state owns its pages: dropping [`Extracted`] or [`Pages`](release::Pages) releases them.
//! [`Mapped`] has neither that nor any other way to access the pages, because the device may still
//! access them.
//!
//! A page that the device wrote to may have been cleaned meanwhile, and must be made dirty again
//! before its release. That takes the lock of its folio, which a file system in user space can hold
//! for any time. So such pages leave the request, as [`CleanedPages`], and are released where the
//! thread holds nothing that others need.
//!
//! The pages of user memory are pinned, and stay whatever happens to the caller
//! ([`Owned`](ownership::Owned)). Pages of the kernel (a pipe's in `splice`, io_uring's registered
//! buffers) are only borrowed for the length of the call ([`Borrowed`](ownership::Borrowed)), by
//! `Documentation/core-api/pin_user_pages.rst` and `iov_iter_extract_will_pin`. Such a call must
//! not return before the device has completed the request: the owner of the pages would use them
//! for something else. A reference to each page prevents that it is freed. So after an early return
//! the data would be wrong, but the device would not access memory of another owner.
//!
//! | file | contents |
//! |---|---|
//! | `ownership` | the owner of the pages during a request |
//! | `list` | lists of segments |
//! | `folios` | pins and references of the pages in a list, and whether they are dirty |
//! | `long_term` | pages that stay pinned between requests: [`pin_long_term`] |
//! | `source` | the pages of an iterator, and their extraction: [`PageSource`] |
//! | `extracted` | pages that no device knows: [`Extracted`] |
//! | `map` | pages that the device may access: [`Mapped`] |
//! | `mapping` | DMA mappings of lists |
//! | `release` | pages after their unmapping: `Pages` |
//! | `room` | the memory of a slot for the lists of its requests: [`Room`] |
//! | `redirty` | pages to be made dirty again: [`CleanedPages`] |
//! | `direction` | whether the device writes |
//!
//! This folder ensures the type invariants: a state passes its pages to the next one within the
//! folder, so the fields that another file needs are visible in the folder, and nowhere else.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

mod direction;
mod extracted;
mod folios;
mod list;
#[allow(
    dead_code,
    reason = "for the drivers of other cards: see docs/own-card.md"
)]
mod long_term;
mod map;
mod mapping;
mod ownership;
mod redirty;
mod release;
mod room;
mod source;

pub(crate) use extracted::Extracted;
pub(crate) use list::{
    InlineSegments,
    SegmentLimits, //
};
#[allow(
    unused_imports,
    reason = "for the drivers of other cards: see docs/own-card.md"
)]
pub(crate) use long_term::{
    pin_long_term,
    LockedPages, //
};
pub(crate) use map::Mapped;
pub(crate) use ownership::Ownership;
pub(crate) use redirty::CleanedPages;
pub(crate) use room::Room;
pub(crate) use source::{
    AnyPageSource,
    PageSource, //
};

/// Names that only the programs that must not compile need.
#[cfg(ringbar_misuse)]
pub(crate) use {
    ownership::Borrowed,
    release::Pages, //
};
