// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can stand behind the memory of a Ringbar device: anonymous memory or a
//! file. Both are mapped into this process and are copied from and to directly;
//! both can be mapped by the virtual machine monitor as well.
//!
//! | module | holds |
//! |---|---|
//! | [`memory`] | [`MemoryStorage`], a memfd |
//! | [`file`] | [`FileStorage`], a regular file |
//! | [`mapping`] | the shared mapping below both |
//! | [`error`] | why a storage cannot be opened |

pub mod error;
pub mod file;
pub mod mapping;
pub mod memory;

pub use error::OpenError;
pub use file::FileStorage;
pub use memory::MemoryStorage;
