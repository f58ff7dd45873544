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

/// Most receives from the socket in one call of [`read`]. A record of 16 KiB takes 5.
const MAX_RECEIVES: usize = 16;

/// Receives on a socket that does not wait. 0 is the end of the stream.
///
/// `WouldBlock` also means that the server has sent much that is no data, such as session tickets.
/// The rest is left in the socket, so that a server which sends such messages for ever does not
/// keep the thread from everything else.
pub(super) fn read(
    connection: &mut ClientConnection,
    mut socket: impl Read,
    bytes: &mut [u8],
) -> io::Result<usize> {
    for _ in 0..MAX_RECEIVES {
        match connection.reader().read(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => return other,
        }
        // At the end of the stream the next round says so.
        connection.read_tls(&mut socket)?;
        let processed = connection.process_new_packets();
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    }
    // Not left here, where nothing would wake the thread for it.
    connection.reader().read(bytes)
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
        // An error would mean that nothing was taken.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(taken),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(taken),
        other => other.map(|()| taken),
    }
}

/// Tells the other side that nothing follows, if it can be told without waiting.
pub(super) fn close(connection: &mut ClientConnection, socket: impl Write) {
    connection.send_close_notify();
    // It notices all the same.
    let _ = flush(connection, socket);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::crypto::ring::default_provider;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// What one side has sent: a socket that does not wait, and that has a few bytes at a time.
    #[derive(Default)]
    struct Sent(VecDeque<u8>);

    impl Read for Sent {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let count = bytes.len().min(100);
            match self.0.is_empty() {
                true => Err(ErrorKind::WouldBlock.into()),
                false => self.0.read(&mut bytes[..count]),
            }
        }
    }

    /// A client, and a server that has sent so many session tickets after the handshake.
    fn connected(tickets: usize) -> (ClientConnection, ServerConnection, Sent) {
        let names = ["localhost".into()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = || Arc::new(default_provider());
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.send_tls13_tickets = tickets;
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        let mut sent = Sent::default();
        while server.is_handshaking() {
            let mut request = VecDeque::new();
            flush(&mut client, &mut request).unwrap();
            while !request.is_empty() {
                server.read_tls(&mut request).unwrap();
                server.process_new_packets().unwrap();
            }
            while server.wants_write() {
                server.write_tls(&mut sent.0).unwrap();
            }
            while client.is_handshaking() && !sent.0.is_empty() {
                client.read_tls(&mut sent).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        (client, server, sent)
    }

    #[test]
    fn a_server_that_sends_no_data_does_not_keep_the_thread() {
        let (mut client, mut server, mut sent) = connected(200);
        server.writer().write_all(b"data").unwrap();
        while server.wants_write() {
            server.write_tls(&mut sent.0).unwrap();
        }
        let total = sent.0.len();
        let mut bytes = [0; 10];
        let error = read(&mut client, &mut sent, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let received = total - sent.0.len();
        assert!(received > 0 && received < total, "{received} of {total}");
        // What follows is not lost.
        let count = loop {
            match read(&mut client, &mut sent, &mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => assert!(!sent.0.is_empty()),
                other => break other.unwrap(),
            }
        };
        assert_eq!(&bytes[..count], b"data");
    }

    /// A socket that takes nothing.
    struct Busy(ErrorKind);

    impl Write for Busy {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_that_were_taken_are_sent_once() {
        for kind in [ErrorKind::WouldBlock, ErrorKind::Interrupted] {
            let (mut client, mut server, _) = connected(0);
            let taken = write(&mut client, Busy(kind), &[IoSlice::new(b"data")]);
            assert_eq!(taken.unwrap(), 4, "{kind}");
            // Nothing more is taken before.
            let error = write(&mut client, Busy(kind), &[IoSlice::new(b"more")]).unwrap_err();
            assert_eq!(error.kind(), kind);
            let mut sent = VecDeque::new();
            assert_eq!(write(&mut client, &mut sent, &[]).unwrap(), 0);
            server.read_tls(&mut sent).unwrap();
            let state = server.process_new_packets().unwrap();
            assert_eq!(state.plaintext_bytes_to_read(), 4, "{kind}");
        }
    }
}
