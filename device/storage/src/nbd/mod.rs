// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An export of an NBD server (network block device), over TCP or a Unix socket. Whatever such a
//! server can serve can be a device's memory, Ceph RBD included.
//!
//! | module | holds |
//! |---|---|
//! | [`uri`] | [`NbdUri`], the address of an export |
//! | [`error`] | [`NbdError`], why it cannot be used |
//! | `wire` | bytes of the protocol |
//! | `handshake` | the choice of an export, on any stream |
//! | `session` | requests and replies as a state machine, without a socket |
//! | `connection` | a session on a socket, as the ring of a disk |
//! | `stream` | what the connection sends and receives on |
//! | `tls` | TLS with certificates |
//! | `socket` | TCP and Unix sockets |
//!
//! The server need not be trusted with more than the data: what it sends is bounded, is written
//! to the buffers of reads that wait for it and to nothing else, and ends the connection where
//! it violates the protocol.

mod connection;
pub mod error;
mod handshake;
mod session;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
pub mod uri;
mod wire;

use std::error::Error;
use std::io;

use tracing::warn;

use self::connection::Connection;
pub use self::error::NbdError;
use self::stream::Stream;
pub use self::uri::{NbdUri, UriError};
use crate::disk::{Description, Disk, OnDisk};
use crate::error::OpenError;
use crate::mapping::check_size;

/// An export of an NBD server.
///
/// The size is a multiple of the server's smallest block. Requests may have any offset and
/// length: a write of a part of a block reads the block first, as
/// [`BlockStorage`](crate::BlockStorage) does. The protocol has no lock: that nobody else writes to
/// the export is up to the server and its other clients.
///
/// There is one connection. If it ends, or the server violates the protocol, all operations in
/// flight fail, and the storage has failed for good, see [`Storage`]: what the server had not made
/// durable may be lost, so a flush over a new connection would promise too much. An error that
/// the server returns is one of its request, but for one of a flush, which is for good too.
#[derive(Debug)]
pub struct NbdStorage {
    disk: Disk,
    /// Bytes that the export has.
    length: u64,
    granularity: u64,
}

impl NbdStorage {
    /// Connects to the server, and chooses the export. Both take at most some seconds.
    ///
    /// With a `size`, the first `size` bytes of the export are used. Without, the size is that
    /// of the export, in whole blocks.
    pub fn open(uri: &NbdUri, size: Option<u64>) -> Result<Self, OpenError> {
        Self::open_with_ready(uri, size, || Ok(()))
    }

    /// As [`Self::open`]. The thread of the connection calls `ready` once the connection exists, and
    /// before it executes anything. An error of that function is one of the storage.
    pub fn open_with_ready(
        uri: &NbdUri,
        size: Option<u64>,
        ready: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, OpenError> {
        if let Some(size) = size {
            check_size(size)?;
        }
        let nbd_error = |source| OpenError::Nbd {
            uri: uri.to_string(),
            source: Box::new(source),
        };
        let (stream, export) = Stream::connect(uri).map_err(nbd_error)?;
        let granularity = u64::from(export.minimum);
        let length = export.size - export.size % granularity;
        let capacity = size.unwrap_or(length);
        check_size(capacity)?;
        fits(capacity, length, granularity).map_err(nbd_error)?;
        if size.is_none() && length != export.size {
            warn!(
                "{uri}: the last {} bytes of the export are not used, because its size of {} bytes \
                 is no multiple of the server's smallest block of {granularity} bytes",
                export.size - length,
                export.size
            );
        }
        if !export.flushes {
            warn!(
                "{uri}: the server has no flush, so data are as durable as it makes them by itself"
            );
        }
        let description = Description {
            thread: "nbd-io",
            name: uri.to_string(),
            granularity,
            align: 1,
            capacity,
        };
        let make = move || {
            let connection = Connection::new(stream, export)?;
            ready()?;
            let waker = connection.waker();
            Ok((connection, waker))
        };
        let disk = Disk::start(description, make);
        Ok(Self {
            disk: disk.map_err(|source| nbd_error(NbdError::Thread(source)))?,
            length,
            granularity,
        })
    }
}

/// Whether a storage can have this size on an export of `length` bytes.
fn fits(size: u64, length: u64, granularity: u64) -> Result<(), NbdError> {
    if !size.is_multiple_of(granularity) {
        return Err(NbdError::Granularity { size, granularity });
    }
    match size <= length {
        true => Ok(()),
        false => Err(NbdError::TooSmall { size, length }),
    }
}

impl OnDisk for NbdStorage {
    fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The export has to be large enough. It has the size that it had when it was opened: the
    /// protocol does not tell of another one.
    fn make_room(&self, capacity: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        if let Some(failure) = self.disk.failure().get() {
            return Err(failure.error().into());
        }
        Ok(fits(capacity, self.length, self.granularity)?)
    }
}
