// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: pages of the caller, merged into a scatterlist and
//! mapped for DMA.
//!
//! ```text
//!  PageSource --extract--> Extracted --map--> Mapped --unmap--> Pages --release--> (gone)
//!                              |                                          |
//!                            drop: the pages go back                 CleanedPages
//! ```
//!
//! Each state owns its pages: [`Extracted`] and [`Pages`](release::Pages) give them back when
//! they are dropped, [`Mapped`] has neither that nor any other way to get at the pages,
//! because the device may still use them.
//!
//! A page that the device wrote to may have been cleaned meanwhile, and must be made dirty
//! again before it goes back. That takes the lock of its folio, which a file system in user
//! space can hold for as long as it likes. So such pages leave the request, as
//! [`CleanedPages`], for where nothing is held that others need.
//!
//! The pages of user memory are pinned, and stay whatever becomes of the caller
//! ([`Owned`](ownership::Owned)). Those of the kernel (a pipe's in `splice`, io_uring's
//! registered buffers) are only lent for as long as the call lasts
//! ([`Borrowed`](ownership::Borrowed)), by
//! `Documentation/core-api/pin_user_pages.rst` and `iov_iter_extract_will_pin`. Nobody
//! may return from such a call before the device is done with them: their owner would use
//! them for something else. A reference to each keeps them from being freed, so that whoever
//! does return early has wrong bytes, but no memory that belongs to somebody else.
//!
//! | file | what is in it |
//! |---|---|
//! | `ownership` | who keeps the pages meanwhile |
//! | `list` | lists of segments |
//! | `folios` | pins and references of the pages in a list, and whether they are dirty |
//! | `source` | pages of an iterator, and how they are extracted: [`PageSource`] |
//! | `extracted` | pages that no device knows of: [`Extracted`] |
//! | `map` | pages that the device may use: [`Mapped`] |
//! | `release` | pages that come back: `Pages` |
//! | `room` | what a slot lends to its requests: [`Room`] |
//! | `redirty` | pages to be made dirty once more: [`CleanedPages`] |
//! | `direction` | whether the device writes |
//!
//! The type invariants are kept by this folder: a state passes its pages to the next in here,
//! so the fields that another file needs are visible in the folder, and nowhere else.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/scatterlist.h`](srctree/include/linux/scatterlist.h)

mod direction;
mod extracted;
mod folios;
mod list;
mod map;
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
pub(crate) use map::Mapped;
pub(crate) use ownership::Ownership;
pub(crate) use redirty::CleanedPages;
pub(crate) use room::Room;
pub(crate) use source::{
    AnyPageSource,
    PageSource, //
};

/// What only programs that must not compile need to name.
#[cfg(ringbar_misuse)]
pub(crate) use {
    ownership::Borrowed,
    release::Pages, //
};
