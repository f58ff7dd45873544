// SPDX-License-Identifier: Apache-2.0 OR MIT

//! TLS with X.509 certificates, in the folder and by the names that QEMU and libnbd use.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::error::NbdError;
use super::uri::Tls;

/// Who may have signed the server's certificate.
const CA_CERTIFICATE: &str = "ca-cert.pem";
/// What this client shows to a server that wants to know. Both or neither are there.
const CLIENT_CERTIFICATE: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";

/// Begins TLS on a stream that waits, whose other side expects it.
pub(super) fn begin(
    tls: &Tls,
    stream: &mut (impl Read + Write),
) -> Result<ClientConnection, NbdError> {
    let hostname = ServerName::try_from(tls.hostname.clone())
        .map_err(|_| NbdError::Hostname(tls.hostname.clone()))?;
    let config = Arc::new(config(&tls.certificates)?);
    let mut connection = ClientConnection::new(config, hostname).map_err(NbdError::Tls)?;
    while connection.is_handshaking() {
        connection.complete_io(stream)?;
    }
    Ok(connection)
}

fn config(folder: &Path) -> Result<ClientConfig, NbdError> {
    let path = |name: &str| folder.join(name);
    let unusable = |name: &str| {
        let path = path(name);
        move |source: pem::Error| NbdError::Certificate { path, source }
    };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, NbdError> {
        let file = CertificateDer::pem_file_iter(path(name)).map_err(unusable(name))?;
        file.collect::<Result<_, _>>().map_err(unusable(name))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA_CERTIFICATE)? {
        roots.add(certificate).map_err(NbdError::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(NbdError::Tls)?
        .with_root_certificates(roots);
    if !path(CLIENT_CERTIFICATE).exists() && !path(CLIENT_KEY).exists() {
        return Ok(builder.with_no_client_auth());
    }
    let key = PrivateKeyDer::from_pem_file(path(CLIENT_KEY)).map_err(unusable(CLIENT_KEY))?;
    builder
        .with_client_auth_cert(certificates(CLIENT_CERTIFICATE)?, key)
        .map_err(NbdError::Tls)
}

/// Receives on a socket that does not wait. 0 is the end of the stream.
pub(super) fn read(
    connection: &mut ClientConnection,
    mut socket: impl Read,
    bytes: &mut [u8],
) -> io::Result<usize> {
    loop {
        match connection.reader().read(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => return other,
        }
        // At the end of the stream the next round says so.
        connection.read_tls(&mut socket)?;
        let processed = connection.process_new_packets();
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    }
}

/// Sends what was written before, as far as the socket takes it without waiting.
fn flush(connection: &mut ClientConnection, mut socket: impl Write) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(&mut socket)?;
    }
    Ok(())
}

/// Sends on a socket that does not wait. What is taken may be sent by a later call.
pub(super) fn write(
    connection: &mut ClientConnection,
    mut socket: impl Write,
    pieces: &[IoSlice<'_>],
) -> io::Result<usize> {
    flush(connection, &mut socket)?;
    let taken = connection.writer().write_vectored(pieces)?;
    match flush(connection, socket) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(taken),
    }
}

/// Tells the other side that nothing follows, if it can be told without waiting.
pub(super) fn close(connection: &mut ClientConnection, socket: impl Write) {
    connection.send_close_notify();
    // It notices all the same.
    let _ = flush(connection, socket);
}
