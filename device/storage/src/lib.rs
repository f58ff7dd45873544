// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can stand behind the memory of a Ringbar device: anonymous memory, a file, a
//! block device, or an export of an NBD server. The first two are mapped into this process and
//! are copied from and to directly, and can be mapped by the virtual machine monitor as well.
//! The others are read and written by operations that end later.
//!
//! | module | holds |
//! |---|---|
//! | [`storage`] | [`Storage`], the interface for device models |
//! | [`memory`] | [`MemoryStorage`], a memfd |
//! | [`file`] | [`FileStorage`], a regular file |
//! | [`block`] | [`BlockStorage`], a block device by io_uring |
//! | [`nbd`] | [`NbdStorage`], an export of an NBD server |
//! | [`asynchronous`] | [`AsyncStorage`], the interface for operations that end later |
//! | [`buffer`] | [`Buffer`], the memory of such an operation |
//! | [`mapping`] | the shared mapping below memory and file |
//! | `disk` | what a storage whose operations end later is made of: a thread, a scheduler, a ring |
//! | `aligned` | pieces of memory for direct I/O |
//! | `guard` | copies in mapped memory that may be lost (`SIGBUS`) |
//! | `holes` | where blocks of a file may be missing |
//! | `write_back` | flushes, and the errors of writing back |
//! | [`error`] | why a storage cannot be opened, used or resized |
//! | `extent` | which bytes an operation is about |
//! | `failure` | why one has failed for good |
//!
//! The first access to mapped memory installs a handler for `SIGBUS` in this process. It
//! deals with faults in the memory of a storage, and leaves all others to the handler
//! that was there before.

mod aligned;
pub mod asynchronous;
pub mod block;
pub mod buffer;
mod disk;
pub mod error;
mod extent;
mod failure;
pub mod file;
mod guard;
mod holes;
pub mod mapping;
pub mod memory;
pub mod nbd;
pub mod storage;
mod write_back;

pub use asynchronous::{AsyncStorage, Completed, Operation};
pub use block::BlockStorage;
pub use buffer::{Buffer, Buffers};
pub use error::{ErrorKind, OpenError, ResizeError, StorageError, with_causes};
pub use extent::{Extent, Owner};
pub use failure::StorageFailure;
pub use file::FileStorage;
pub use memory::MemoryStorage;
pub use nbd::{NbdError, NbdStorage, NbdUri};
pub use storage::{Mappable, Storage};
