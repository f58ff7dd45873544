// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why an export of an NBD server cannot be used.

use std::io;
use std::path::PathBuf;

/// Why an export of an NBD server cannot be used. The messages say what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The name of the host has no address.
    #[error("cannot find the address of {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// There is no connection.
    #[error("cannot connect to {address}: is the server running?")]
    Connect {
        /// Host and port, or path.
        address: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The connection has failed during the handshake.
    #[error("the handshake failed")]
    Io(#[from] io::Error),
    /// The server does not begin as an NBD server does.
    #[error("this is no NBD server: it begins with other bytes")]
    NotNbd,
    /// The server has the handshake that cannot choose an export.
    #[error(
        "the server has the oldstyle handshake, which is not supported: use a server of this decade"
    )]
    Oldstyle,
    /// The server does not answer options.
    #[error("the server does not support the fixed newstyle handshake, which is needed")]
    NotFixed,
    /// The server does not know `NBD_OPT_GO`.
    #[error("the server does not support NBD_OPT_GO, which is needed")]
    NoGo,
    /// There is no such export.
    #[error("the server has no export {name:?}{}", said(.message))]
    NoExport {
        /// Its name.
        name: String,
        /// What the server says.
        message: String,
    },
    /// The server wants TLS.
    #[error("the server wants TLS: use nbds:// or nbds+unix://{}", said(.0))]
    TlsRequired(String),
    /// The server does not support TLS.
    #[error("the server does not offer TLS{}", said(.0))]
    NoTls(String),
    /// A certificate or key cannot be used.
    #[error("cannot use {}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The name of the server cannot be one of a certificate.
    #[error("{0:?} is no name that a certificate can have: use tls-hostname=NAME")]
    Hostname(String),
    /// TLS cannot be used with these certificates.
    #[error("cannot use TLS")]
    Tls(#[source] rustls::Error),
    /// The server refuses an option.
    #[error("the server refuses option {option} with error {code}{}", said(.message))]
    Refused {
        /// The option's number.
        option: u32,
        /// Number of the error, without its highest bit.
        code: u32,
        /// What the server says.
        message: String,
    },
    /// The server violates the protocol.
    #[error("the server violates the protocol: {0}")]
    Protocol(&'static str),
    /// The export is read-only.
    #[error("the export is read-only, which a device memory cannot be")]
    ReadOnly,
    /// The sizes of its blocks are impossible.
    #[error("the server wants impossible blocks: at least {minimum} and at most {maximum} bytes")]
    BlockSize {
        /// Fewest bytes of a request.
        minimum: u32,
        /// Most bytes of a request.
        maximum: u32,
    },
    /// The size is no multiple of the server's blocks.
    #[error("a size of {size} bytes is impossible: it must be a multiple of {granularity}")]
    Granularity {
        /// Bytes wanted.
        size: u64,
        /// Bytes of a block.
        granularity: u64,
    },
    /// The export is smaller than the size that is wanted.
    #[error("the export has {length} bytes, and {size} are wanted")]
    TooSmall {
        /// Bytes wanted.
        size: u64,
        /// Bytes of the export.
        length: u64,
    },
    /// The thread of the connection cannot be started.
    #[error("cannot start the thread of the connection")]
    Thread(#[source] io::Error),
}

/// A message of the server's, for the end of one of ours. It may be anything.
fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        _ => format!(" ({})", message.escape_debug()),
    }
}
