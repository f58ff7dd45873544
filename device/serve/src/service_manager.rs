// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the service manager is told, if there is one (sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;
use tracing::warn;

/// The variable with the socket of the service manager.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// The connection to the service manager. It is made before the process restricts itself, which
/// cannot make one afterwards.
///
/// The default is no service manager: for a process of which it expects nothing.
#[derive(Debug, Default)]
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// Connects to the service manager that `NOTIFY_SOCKET` names. A failure is logged: the device
    /// works without.
    pub fn connect() -> Self {
        let socket = std::env::var_os(NOTIFY_SOCKET).and_then(|name| {
            connect(&name)
                .inspect_err(|error| warn!(%error, "cannot connect to the service manager"))
                .ok()
        });
        Self(socket)
    }

    /// The process serves.
    pub fn ready(&self) {
        self.send(&NotifyState::Ready);
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        self.send(&NotifyState::Stopping);
    }

    fn send(&self, state: &NotifyState<'_>) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.to_string().as_bytes())
        {
            warn!(%error, "cannot notify the service manager");
        }
    }
}

/// A name that begins with `@` is abstract, as systemd writes it.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not hold up the device.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).unwrap();
        message[..length].to_vec()
    }

    #[test]
    fn the_manager_gets_both_messages_whatever_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("ringbar-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let named = format!("@{name}");
        for (socket, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                OsStr::new(&named),
            ),
        ] {
            let manager = ServiceManager(Some(connect(address).unwrap()));
            manager.ready();
            assert_eq!(received(&socket), b"READY=1");
            manager.stopping();
            assert_eq!(received(&socket), b"STOPPING=1");
        }
    }

    #[test]
    fn a_manager_that_is_gone_is_no_failure() {
        assert!(connect(OsStr::new("/nonexistent/notify")).is_err());
        ServiceManager(None).ready();
    }
}
