// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can stand behind the memory of a Ringbar device: anonymous memory or a
//! file. Both are mapped into this process and are copied from and to directly;
//! both can be mapped by the virtual machine monitor as well.
//!
//! | module | holds |
//! |---|---|
//! | [`storage`] | [`Storage`], the interface for device models |
//! | [`memory`] | [`MemoryStorage`], a memfd |
//! | [`file`] | [`FileStorage`], a regular file |
//! | [`mapping`] | the shared mapping below both |
//! | `guard` | copies in mapped memory that may be lost (`SIGBUS`) |
//! | `holes` | where blocks of a file may be missing |
//! | `write_back` | flushes, and the errors of writing back |
//! | [`error`] | why a storage cannot be opened |
//! | `failure` | why one has failed for good |
//!
//! The first access to a storage installs a handler for `SIGBUS` in this process. It
//! deals with faults in the memory of a storage, and leaves all others to the handler
//! that was there before.

pub mod error;
mod failure;
pub mod file;
mod guard;
mod holes;
pub mod mapping;
pub mod memory;
pub mod storage;
mod write_back;

pub use error::OpenError;
pub use file::FileStorage;
pub use memory::MemoryStorage;
pub use storage::{ErrorKind, Mappable, ResizeError, Storage, StorageError, with_causes};
