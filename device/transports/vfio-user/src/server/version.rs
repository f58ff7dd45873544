// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Negotiation of the version and of the capabilities (`VFIO_USER_VERSION`).
//!
//! The version data is JSON: an object with an object `capabilities`. Both sides state limits of
//! what they receive. The server offers no capability beyond these limits.

use std::ffi::CStr;

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::wire::{Fields, VERSION_BYTES};

/// Greatest number of descriptors in one message to the server. QEMU takes at most 16 for valid.
pub const MAX_MSG_FDS: usize = 16;

/// Greatest number of bytes that one message reads from or writes to a region: the default of
/// the specification.
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;

/// Major version of the protocol.
pub(super) const MAJOR: u16 = 0;
/// Minor version of the protocol: that of QEMU, and the least that a client can propose.
pub(super) const MINOR: u16 = 0;

/// Greatest length in bytes of the version data.
const MAX_VERSION_DATA: usize = 16 << 10;

/// What the client can receive.
///
/// `max_data_xfer_size` of the client limits the server's `VFIO_USER_DMA_READ` and `_WRITE`; the
/// server sends none, so it only checks the type of that capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    /// Number of descriptors in one message.
    pub(super) max_msg_fds: u64,
}

impl Client {
    /// Reads the body of a `VFIO_USER_VERSION` command.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let Some((version, data)) = body.split_at_checked(VERSION_BYTES) else {
            return Err(Refusal::Length {
                expected: VERSION_BYTES,
                got: body.len(),
            });
        };
        let mut fields = Fields(version);
        let (major, minor) = (fields.u16(), fields.u16());
        if major != MAJOR {
            return Err(Refusal::Version(major, minor));
        }

        let empty = Map::new();
        let value = if data.is_empty() {
            Value::Object(Map::new())
        } else {
            json_of(data)?
        };
        let version_data = value
            .as_object()
            .ok_or(Refusal::Capabilities("the version data is not an object"))?;
        let capabilities = match version_data.get("capabilities") {
            None => &empty,
            Some(value) => value
                .as_object()
                .ok_or(Refusal::Capabilities("`capabilities` is not an object"))?,
        };
        let max_msg_fds = number(
            capabilities,
            "max_msg_fds",
            1,
            Refusal::Capabilities("`max_msg_fds` is not a number"),
        )?;
        number(
            capabilities,
            "max_data_xfer_size",
            u64::from(MAX_DATA_XFER_SIZE),
            Refusal::Capabilities("`max_data_xfer_size` is not a number"),
        )?;
        Ok(Self { max_msg_fds })
    }
}

/// Reads version data, which ends with its only NUL.
fn json_of(data: &[u8]) -> Result<Value, Refusal> {
    if data.len() > MAX_VERSION_DATA {
        return Err(Refusal::Capabilities("the version data is too long"));
    }
    let data = CStr::from_bytes_with_nul(data)
        .map_err(|_| Refusal::Capabilities("the version data does not end with its only NUL"))?;
    serde_json::from_slice(data.to_bytes())
        .map_err(|_| Refusal::Capabilities("the version data is not JSON"))
}

/// The capability `name`, a number that is not negative.
fn number(
    capabilities: &Map<String, Value>,
    name: &str,
    default: u64,
    refusal: Refusal,
) -> Result<u64, Refusal> {
    capabilities
        .get(name)
        .map_or(Ok(default), |value| value.as_u64().ok_or(refusal))
}

/// Version data of the server, with the NUL at its end.
pub(super) fn server_data() -> Vec<u8> {
    let data = json!({
        "capabilities": {
            "max_msg_fds": MAX_MSG_FDS,
            "max_data_xfer_size": MAX_DATA_XFER_SIZE,
        },
    });
    let mut data = data.to_string().into_bytes();
    data.push(0);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Client, Refusal> {
        Client::parse(&[&[0; VERSION_BYTES], data].concat())
    }

    #[test]
    fn version_data_is_optional() {
        let default = Client { max_msg_fds: 1 };
        for data in [
            &b""[..],
            b"{}\0",
            b"{\"capabilities\":{}}\0",
            b" {\"other\": [1]}\0",
        ] {
            assert_eq!(parse(data), Ok(default));
        }
    }

    #[test]
    fn capabilities_of_qemu_are_understood() {
        let data = br#"{"capabilities": {"migration": {"max_bitmap_size": 268435456,
            "pgsize": 4096}, "max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096,
            "max_dma_maps": 65535, "write_multiple": true}}"#;
        assert_eq!(
            parse(&[data.as_slice(), b"\0"].concat()),
            Ok(Client { max_msg_fds: 8 })
        );
    }

    #[test]
    fn malformed_version_data_is_refused() {
        let deep = [b"[".repeat(1000), b"\0".to_vec()].concat();
        let long = [b" ".repeat(MAX_VERSION_DATA), b"{}\0".to_vec()].concat();
        for data in [
            &b"\0"[..],
            b"{}",
            b"{}\0\0",
            b"{}\0{}\0",
            b"{\0",
            b"null\0",
            b"[]\0",
            b"\"capabilities\"\0",
            b"{\"capabilities\":null}\0",
            b"{\"capabilities\":[]}\0",
            b"{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0",
            b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"{\"capabilities\":{\"max_msg_fds\":1.5}}\0",
            b"{\"capabilities\":{\"max_msg_fds\":1e400}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":null}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":true}}\0",
            b"\xff\xfe\0",
            b"{\"\xc3\x28\":1}\0",
            &deep,
            &long,
        ] {
            let result = parse(data);
            assert!(
                matches!(result, Err(Refusal::Capabilities(_))),
                "{:?}: {result:?}",
                String::from_utf8_lossy(data)
            );
        }
    }

    #[test]
    fn short_and_foreign_versions_are_refused() {
        for len in 0..VERSION_BYTES {
            assert_eq!(
                Client::parse(&vec![0; len]),
                Err(Refusal::Length {
                    expected: VERSION_BYTES,
                    got: len
                })
            );
        }
        let body = [1u16.to_ne_bytes(), 2u16.to_ne_bytes()].concat();
        assert_eq!(Client::parse(&body), Err(Refusal::Version(1, 2)));
    }

    #[test]
    fn every_minor_version_is_compatible() {
        let body = [MAJOR.to_ne_bytes(), u16::MAX.to_ne_bytes()].concat();
        assert_eq!(Client::parse(&body), Ok(Client { max_msg_fds: 1 }));
    }
}
