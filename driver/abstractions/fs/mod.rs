// SPDX-License-Identifier: GPL-2.0

//! Files: character devices, I/O control blocks, iterators over buffers, `poll`, plugging.

pub(in crate::abstractions) mod anon_inode;
pub(crate) mod chardev;
pub(crate) mod iov;
pub(crate) mod kiocb;
pub(crate) mod plug;
pub(crate) mod poll;
