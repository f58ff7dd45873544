// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Addresses of exports, as <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>
//! defines them.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use fluent_uri::Uri;

use super::handshake::MAX_NAME;

/// The port that IANA has assigned.
const PORT: u16 = 10809;

/// The address of an export: `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; the
/// same with TLS is `nbds` or `nbds+unix`, with the parameter `tls-certificates=FOLDER`, and
/// `tls-hostname=NAME` where the name in the server's certificate is not that of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    text: String,
    pub(super) address: Address,
    pub(super) export: String,
    pub(super) tls: Option<Tls>,
}

/// How to know the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    /// The folder with the certificates.
    pub(super) certificates: PathBuf,
    /// The name in the server's certificate.
    pub(super) hostname: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host} port {port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a text is no address of an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It is no URI.
    #[error("this is no URI: {0}")]
    Syntax(String),
    /// The scheme is not one of NBD.
    #[error("the scheme {0:?} is not one of nbd, nbds, nbd+unix, nbds+unix")]
    Scheme(String),
    /// A connection over TCP needs a host.
    #[error("a host must follow nbd://, for example nbd://localhost/")]
    NoHost,
    /// The port is too large.
    #[error("the port is no number below 65536")]
    Port,
    /// A user is part of certain kinds of TLS, which are not supported.
    #[error("a user (USER@) is not supported")]
    User,
    /// A Unix socket needs a path.
    #[error(
        "nbd+unix needs the path of a socket, for example nbd+unix:///export?socket=/tmp/nbd.sock"
    )]
    NoSocket,
    /// A Unix socket has no host.
    #[error("nbd+unix has no host: three slashes follow the colon")]
    HostOfUnix,
    /// TLS needs certificates.
    #[error("TLS needs tls-certificates=FOLDER, where ca-cert.pem is")]
    NoCertificates,
    /// The name of the server is unknown.
    #[error("TLS over a Unix socket needs tls-hostname=NAME, the name in the server's certificate")]
    NoHostname,
    /// The parameter is unknown, or occurs twice.
    #[error("the parameter {0:?} is unknown here, or occurs twice")]
    Parameter(String),
    /// The name of an export has no NUL, is UTF-8, and has at most 4096 bytes.
    #[error("the name of an export is UTF-8 without NUL, of at most {MAX_NAME} bytes")]
    Export,
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let uri = Uri::parse(text).map_err(|error| UriError::Syntax(error.to_string()))?;
        let scheme = uri.scheme().as_str().to_ascii_lowercase();
        let (unix, secure) = match scheme.as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme(scheme)),
        };
        let (mut socket, mut certificates, mut hostname) = (None, None, None);
        for parameter in uri.query().into_iter().flat_map(|query| query.split('&')) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, parameter));
            let slot = match key.as_str() {
                "socket" if unix => &mut socket,
                "tls-certificates" if secure => &mut certificates,
                "tls-hostname" if secure => &mut hostname,
                _ => return Err(UriError::Parameter(key.as_str().into())),
            };
            let bytes = value.decode().to_bytes().into_owned();
            if bytes.is_empty() || slot.replace(OsString::from_vec(bytes)).is_some() {
                return Err(UriError::Parameter(key.as_str().into()));
            }
        }
        let authority = uri.authority();
        let host = authority.map(|authority| authority.host());
        let host = host.filter(|host| !host.is_empty());
        let address = match (unix, host) {
            (true, None) => Address::Unix(socket.ok_or(UriError::NoSocket)?.into()),
            (true, Some(_)) => return Err(UriError::HostOfUnix),
            (false, None) => return Err(UriError::NoHost),
            (false, Some(host)) => Address::Tcp {
                // The name resolution knows no brackets.
                host: host.trim_matches(['[', ']']).into(),
                port: port(
                    authority
                        .and_then(|authority| authority.port())
                        .map(|port| port.as_str()),
                )?,
            },
        };
        if authority.is_some_and(|authority| authority.has_userinfo()) {
            return Err(UriError::User);
        }
        if let Some(fragment) = uri.fragment() {
            return Err(UriError::Parameter(format!("#{fragment}")));
        }
        let path = uri.path();
        let export = path.decode().to_string().map_err(|_| UriError::Export)?;
        let export = export.strip_prefix('/').unwrap_or(&export).to_owned();
        if export.len() > MAX_NAME || export.contains('\0') {
            return Err(UriError::Export);
        }
        let tls = match secure {
            true => Some(Tls {
                certificates: certificates.ok_or(UriError::NoCertificates)?.into(),
                hostname: match (hostname, &address) {
                    // Another one is refused when it is compared.
                    (Some(name), _) => name.to_string_lossy().into_owned(),
                    (None, Address::Tcp { host, .. }) => host.clone(),
                    (None, Address::Unix(_)) => return Err(UriError::NoHostname),
                },
            }),
            false => None,
        };
        Ok(Self {
            text: text.into(),
            address,
            export,
            tls,
        })
    }
}

fn port(text: Option<&str>) -> Result<u16, UriError> {
    match text.map_or("", |text| text) {
        "" => Ok(PORT),
        port => port.parse().map_err(|_| UriError::Port),
    }
}
