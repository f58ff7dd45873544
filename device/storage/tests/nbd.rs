// SPDX-License-Identifier: Apache-2.0 OR MIT

//! NBD storage on a real server, `qemu-nbd`.

#[path = "support/asynchronous.rs"]
mod asynchronous;
mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use asynchronous::{CAPACITY, buffer, conformance, contents, noise, submit};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use ringbar_nbd_server::Server;
use ringbar_storage::{
    Completed, ErrorKind, Extent, NbdError, NbdStorage, NbdUri, OpenError, Operation, Owner,
    Storage,
};
use support::{directory_on_disk, read, status, write};
use tempfile::TempDir;

/// Longer than anything here takes.
const TIMEOUT: Duration = Duration::from_secs(30);

conformance!(on_each);

/// A server with a file, and the address of its export.
struct Export {
    server: Server,
    uri: NbdUri,
    directory: TempDir,
}

impl Export {
    /// Serves a new file over a Unix socket. `arguments` are those before the file.
    fn new(arguments: &[&str]) -> Self {
        Self::of(arguments, |path| path.display().to_string())
    }

    /// The same, for what `image` makes of the path of the file.
    fn of(arguments: &[&str], image: impl FnOnce(&Path) -> String) -> Self {
        let directory = directory_on_disk();
        let path = directory.path().join("disk");
        fs::write(&path, vec![0; CAPACITY as usize]).unwrap();
        let socket = directory.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let image = image(&path);
        let arguments = ["--export-name=disk"].iter().chain(arguments).copied();
        let server = Server::start(listener, arguments.chain([image.as_str()])).unwrap();
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        Self {
            server,
            uri: uri.parse().unwrap(),
            directory,
        }
    }

    /// With blocks of so many bytes.
    fn with_blocks(bytes: u32) -> Self {
        Self::of(&["--image-opts"], |path| {
            format!(
                "driver=blkdebug,align={bytes},image.driver=file,image.filename={}",
                path.display()
            )
        })
    }

    fn over_tcp() -> Self {
        Self::on_port(directory_on_disk(), &[], |port| {
            format!("nbd://localhost:{port}")
        })
    }

    /// With TLS, where server and client show certificates. The client's are in `client`.
    fn over_tls() -> Self {
        let directory = directory_on_disk();
        let path = directory.path();
        let certificates = Certificates::new();
        let (server, client) = (path.join("server"), path.join("client"));
        certificates.write(&server, Some("server"));
        certificates.write(&client, Some("client"));
        let object = format!(
            "tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=yes",
            server.display()
        );
        let uri = format!("?tls-certificates={}", client.display());
        Self::on_port(
            directory,
            &["--object", &object, "--tls-creds=tls"],
            |port| format!("nbds://localhost:{port}{uri}"),
        )
    }

    /// On a port of this machine, with an empty name.
    fn on_port(directory: TempDir, options: &[&str], uri: impl FnOnce(u16) -> String) -> Self {
        let path = directory.path().join("disk");
        fs::write(&path, vec![0; CAPACITY as usize]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = uri(listener.local_addr().unwrap().port());
        let arguments = ["--format=raw", path.to_str().unwrap()];
        let arguments = options.iter().copied().chain(arguments);
        Self {
            server: Server::start(listener, arguments).unwrap(),
            uri: uri.parse().unwrap(),
            directory,
        }
    }

    fn open(&self) -> NbdStorage {
        NbdStorage::open(&self.uri, None).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("disk")).unwrap()
    }
}

/// An authority of a test's own, and what it has signed.
struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
    server: (Certificate, KeyPair),
    client: (Certificate, KeyPair),
}

impl Certificates {
    fn new() -> Self {
        let key = || KeyPair::generate().unwrap();
        // Who has signed whom is told by their names.
        let named = |names: &[&str], name: &str| {
            let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
            let mut parameters = CertificateParams::new(names).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, name);
            parameters
        };
        let mut parameters = named(&[], "an authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(parameters, key()).unwrap();
        let signed = |usage| {
            let mut parameters = named(&["localhost"], "localhost");
            parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            parameters.extended_key_usages = vec![usage];
            let key = key();
            (parameters.signed_by(&key, &authority).unwrap(), key)
        };
        Self {
            server: signed(ExtendedKeyUsagePurpose::ServerAuth),
            client: signed(ExtendedKeyUsagePurpose::ClientAuth),
            authority,
        }
    }

    /// Writes a folder as QEMU and the storage want it, with the certificate of one side.
    fn write(&self, folder: &Path, side: Option<&str>) {
        fs::create_dir(folder).unwrap();
        let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
        write("ca-cert.pem", self.authority.pem());
        let Some(side) = side else { return };
        let (certificate, key) = match side {
            "server" => &self.server,
            _ => &self.client,
        };
        write(&format!("{side}-cert.pem"), certificate.pem());
        write(&format!("{side}-key.pem"), key.serialize_pem());
    }
}

/// Runs a test on a Unix socket with bytes and with large blocks, on TCP, and on TLS.
fn on_each(test: impl Fn(&NbdStorage, &Export)) {
    let raw = "--format=raw";
    for export in [
        Export::new(&[raw]),
        Export::with_blocks(4096),
        Export::over_tcp(),
        Export::over_tls(),
    ] {
        test(&export.open(), &export);
    }
}

#[test]
fn what_was_flushed_is_in_the_servers_file() {
    on_each(|storage, export| {
        assert_eq!(storage.capacity(), CAPACITY);
        assert!(storage.mappable().is_none());
        write(storage, 0, &noise()).unwrap();
        storage.flush().unwrap();
        assert!(export.bytes() == noise());
        storage.discard(1000, 10_000).unwrap();
        storage.flush().unwrap();
        assert!(export.bytes()[1000..11_000].iter().all(|byte| *byte == 0));
    });
}

/// More than the server takes at once, and in any order: each has its own bytes.
#[test]
fn as_many_in_flight_as_a_guest_has() {
    const COUNT: u64 = 2000;
    on_each(|storage, _| {
        let noise = noise();
        write(storage, 0, &noise).unwrap();
        let face = storage.asynchronous().unwrap();
        let waiting: Vec<_> = (0..COUNT)
            .map(|number| {
                let (offset, length) = (number * 521, 1 + number % 600);
                let buffer = buffer(face.as_ref(), offset, length);
                (
                    submit(face.as_ref(), Operation::Read(buffer)),
                    offset,
                    length,
                )
            })
            .collect();
        for (ended, offset, length) in waiting {
            let Completed { result, buffer } = ended.recv_timeout(TIMEOUT).unwrap();
            result.unwrap();
            let expected = &noise[offset as usize..][..length as usize];
            assert!(buffer.unwrap().data() == expected);
        }
    });
}

/// Large replies that arrive together, and then nothing: no part of them is left waiting.
#[test]
fn several_large_reads_at_a_time() {
    const LENGTH: u64 = 200_001;
    on_each(|storage, _| {
        let noise = noise();
        write(storage, 0, &noise).unwrap();
        let face = storage.asynchronous().unwrap();
        for round in 0..50 {
            let waiting: Vec<_> = (0..4)
                .map(|number| {
                    let offset = number * LENGTH + round;
                    let buffer = buffer(face.as_ref(), offset, LENGTH);
                    (submit(face.as_ref(), Operation::Read(buffer)), offset)
                })
                .collect();
            for (ended, offset) in waiting {
                let Completed { result, buffer } = ended.recv_timeout(TIMEOUT).unwrap();
                result.unwrap();
                let expected = &noise[offset as usize..][..LENGTH as usize];
                assert!(buffer.unwrap().data() == expected);
            }
        }
    });
}

#[test]
fn sizes_are_those_of_the_export_or_less() {
    let export = Export::new(&["--format=raw", "--shared=9"]);
    let open = |size| NbdStorage::open(&export.uri, size);
    let storage = open(Some(CAPACITY / 2)).unwrap();
    assert_eq!(storage.capacity(), CAPACITY / 2);
    let beyond = write(&storage, CAPACITY / 2, &[1]);
    assert_eq!(status(beyond), Some(ErrorKind::OutOfRange));
    storage.resize(CAPACITY).unwrap();
    write(&storage, CAPACITY - 1, &[1]).unwrap();
    for size in [0, CAPACITY + 1, 2 * CAPACITY, u64::MAX] {
        storage.resize(size).unwrap_err();
        assert_eq!(storage.capacity(), CAPACITY);
    }
    assert!(matches!(open(Some(0)), Err(OpenError::Size(0))));
    let larger = error(&export.uri, Some(CAPACITY + 1));
    assert!(matches!(larger, NbdError::TooSmall { .. }), "{larger:?}");
}

fn error(uri: &NbdUri, size: Option<u64>) -> NbdError {
    match NbdStorage::open(uri, size).unwrap_err() {
        OpenError::Nbd { source, .. } => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let export = Export::with_blocks(4096);
    let error_of = error(&export.uri, Some(CAPACITY / 2 + 512));
    assert!(
        matches!(error_of, NbdError::Granularity { .. }),
        "{error_of:?}"
    );

    let export = Export::new(&["--format=raw", "--read-only"]);
    assert!(matches!(error(&export.uri, None), NbdError::ReadOnly));

    let export = Export::new(&["--format=raw"]);
    let other = export.uri.to_string().replace("disk?", "tape?");
    let error_of = error(&other.parse().unwrap(), None);
    assert!(
        matches!(&error_of, NbdError::NoExport { name, .. } if name == "tape"),
        "{error_of:?}"
    );

    let nobody = "nbd+unix:///?socket=/nonexistent/nbd.sock";
    let error_of = error(&nobody.parse().unwrap(), None);
    assert!(matches!(error_of, NbdError::Connect { .. }), "{error_of:?}");
    // Longer than a name can be, so no server is asked.
    let nobody = format!("nbd://{}", "x".repeat(300));
    let error_of = error(&nobody.parse().unwrap(), None);
    assert!(matches!(error_of, NbdError::Resolve { .. }), "{error_of:?}");
}

/// Either side knows the other, or there is no connection.
#[test]
fn tls_is_with_the_right_server_or_not_at_all() {
    let io_error = |uri: &str| match error(&uri.parse().unwrap(), None) {
        NbdError::Io(error) => error.to_string(),
        other => panic!("{uri}: {other:?}"),
    };
    // One client each: qemu-nbd ends after it.
    let with = |change: &dyn Fn(&Path, String) -> String| {
        let export = Export::over_tls();
        let uri = change(export.directory.path(), export.uri.to_string());
        (export, uri)
    };
    let (_export, uri) = with(&|_, uri| uri + "&tls-hostname=example.com");
    assert!(io_error(&uri).contains("certificate"), "{}", io_error(&uri));

    let (_export, uri) = with(&|directory, uri| {
        let other = directory.join("other");
        Certificates::new().write(&other, None);
        uri.replace("/client", "/other")
    });
    assert!(io_error(&uri).contains("certificate"));

    // The server wants one of the client, which has none.
    let (_export, uri) = with(&|directory, uri| {
        for name in ["client-cert.pem", "client-key.pem"] {
            fs::remove_file(directory.join("client").join(name)).unwrap();
        }
        uri
    });
    io_error(&uri);

    let (_export, uri) = with(&|_, uri| {
        uri.replace("nbds:", "nbd:")
            .split('?')
            .next()
            .unwrap()
            .into()
    });
    let plain = error(&uri.parse().unwrap(), None);
    assert!(matches!(plain, NbdError::TlsRequired(_)), "{plain:?}");

    let export = Export::over_tcp();
    let uri = export.uri.to_string().replace("nbd:", "nbds:") + "?tls-certificates=/nonexistent";
    let no_tls = error(&uri.parse().unwrap(), None);
    assert!(matches!(no_tls, NbdError::NoTls(_)), "{no_tls:?}");

    let (_export, uri) = with(&|_, uri| uri.replace("/client", "/nonexistent"));
    let missing = error(&uri.parse().unwrap(), None);
    assert!(
        matches!(missing, NbdError::Certificate { .. }),
        "{missing:?}"
    );
}

/// The server says no, and is not at fault: each error is that of its request.
#[test]
fn errors_of_the_server_are_of_their_request() {
    let export = Export::of(&["--image-opts"], |path| {
        format!(
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
             file.inject-error.0.event=none,file.inject-error.0.iotype=write,\
             file.inject-error.0.errno=28,file.inject-error.0.sector=8,\
             file.inject-error.1.event=none,file.inject-error.1.iotype=read,\
             file.inject-error.1.errno=5,file.inject-error.1.sector=16",
            path.display()
        )
    });
    let storage = export.open();
    assert_eq!(
        status(write(&storage, 8 * 512, &[1; 512])),
        Some(ErrorKind::NoSpace)
    );
    assert_eq!(status(read(&storage, 16 * 512, 1)), Some(ErrorKind::Io));
    write(&storage, 9 * 512, &[1; 512]).unwrap();
    assert_eq!(read(&storage, 9 * 512, 2).unwrap(), [1, 1]);
    storage.flush().unwrap();
    assert_eq!(storage.failure(), None);
}

#[test]
fn a_flush_that_fails_is_for_good() {
    let export = Export::of(&["--image-opts"], |path| {
        format!(
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
             file.inject-error.0.event=none,file.inject-error.0.iotype=flush,\
             file.inject-error.0.errno=5,file.inject-error.0.once=on",
            path.display()
        )
    });
    let storage = export.open();
    write(&storage, 0, &[1]).unwrap();
    for _ in 0..2 {
        assert_eq!(status(storage.flush()), Some(ErrorKind::Io));
        assert_eq!(status(write(&storage, 0, &[1])), Some(ErrorKind::Io));
        assert_eq!(read(&storage, 0, 1).unwrap(), [1]);
    }
    let failure = storage.failure().unwrap().reason;
    assert!(failure.contains("could not be written back"), "{failure}");
}

/// Everything in flight fails soon, and everything later at once.
#[test]
fn a_server_that_is_killed_leaves_nobody_waiting() {
    for mut export in [Export::new(&["--format=raw"]), Export::over_tcp()] {
        let storage = export.open();
        let face = storage.asynchronous().unwrap();
        write(&storage, 0, &[3; 4096]).unwrap();
        export.server.stall();
        let mut waiting = Vec::new();
        for number in 0..200 {
            // Part of it is still in this process: more than the kernel keeps.
            let length = 1 + 64 * number;
            let buffer = buffer(face.as_ref(), number * 4096, length);
            waiting.push(submit(face.as_ref(), Operation::Write(buffer)));
        }
        waiting.push(submit(face.as_ref(), Operation::Flush));
        let extent = Extent {
            offset: 0,
            length: CAPACITY,
        };
        waiting.push(submit(face.as_ref(), Operation::Discard(extent)));
        export.server.kill();
        let killed = Instant::now();
        for ended in waiting {
            let Completed { result, .. } = ended.recv_timeout(TIMEOUT).unwrap();
            assert_eq!(status(result), Some(ErrorKind::Io));
        }
        for _ in 0..2 {
            assert_eq!(status(read(&storage, 0, 1)), Some(ErrorKind::Io));
            assert_eq!(status(write(&storage, 0, &[1])), Some(ErrorKind::Io));
            assert_eq!(status(storage.flush()), Some(ErrorKind::Io));
        }
        storage.resize(CAPACITY / 2).unwrap_err();
        assert!(killed.elapsed() < TIMEOUT / 2, "{:?}", killed.elapsed());
        let failure = storage.failure().unwrap().reason;
        assert!(
            failure.contains("the connection to the server"),
            "{failure}"
        );
    }
}

/// A stop does not wait for a server that does not answer, and its end waits for what it has.
#[test]
fn a_server_that_is_slow_holds_up_nobody() {
    let export = Export::new(&["--format=raw"]);
    let storage = export.open();
    let face = storage.asynchronous().unwrap();
    export.server.stall();
    let begun = buffer(face.as_ref(), 0, 4096);
    let (sender, ended) = channel();
    let done = move |completed| sender.send(completed).unwrap();
    face.submit(Owner(1), Operation::Write(begun), Box::new(done));
    // Behind the first, because it overlaps.
    let mut behind = buffer(face.as_ref(), 100, 4096);
    behind.data_mut().fill(7);
    let behind = submit(face.as_ref(), Operation::Write(behind));
    face.cancel(Owner(0));
    let cancelled = behind.recv_timeout(TIMEOUT);
    // First, because the end of the storage waits for it.
    export.server.resume();
    let is_dropped = matches!(cancelled, Err(RecvTimeoutError::Disconnected));
    assert!(is_dropped, "{cancelled:?}");
    let Completed { result, .. } = ended.recv_timeout(TIMEOUT).unwrap();
    result.unwrap();
    assert!(contents(&storage).iter().all(|byte| *byte == 0));
}

/// The connection ends in order: the server, which serves one client, ends by itself.
#[test]
fn the_end_tells_the_server() {
    let export = Export::new(&["--format=raw"]);
    let storage = export.open();
    let face = storage.asynchronous().unwrap();
    let buffer = buffer(face.as_ref(), 0, 4096);
    let ended = submit(face.as_ref(), Operation::Write(buffer));
    drop(storage);
    ended.recv_timeout(TIMEOUT).unwrap().result.unwrap();
    // Nobody listens any more, once the server is gone.
    let until = Instant::now() + TIMEOUT;
    while !matches!(error(&export.uri, None), NbdError::Connect { .. }) {
        assert!(Instant::now() < until, "the server goes on");
    }
}
