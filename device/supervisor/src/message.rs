// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vhost-user messages with their descriptors ("Message Specification" of QEMU's
//! `docs/interop/vhost-user.rst`).

use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Bytes of a header: request, flags and the length of the body.
pub(crate) const HEADER: usize = 12;

/// Greatest length of a body, more than that of any specified message that a device gets. The
/// longest is the reply about 256 shared memory regions.
pub(crate) const MAX_BODY: usize = 4096;

/// Greatest number of descriptors of a message, more than the 8 of QEMU's memory table.
pub(crate) const MAX_FILES: usize = 32;

/// Flags of a header.
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const VERSION: u32 = 1;

/// Requests of the monitor.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const GET_STATUS: u32 = 40;
    pub(crate) const GET_SHARED_OBJECT: u32 = 41;
    pub(crate) const SET_DEVICE_STATE_FD: u32 = 42;
    pub(crate) const CHECK_DEVICE_STATE: u32 = 43;
    pub(crate) const GET_SHMEM_CONFIG: u32 = 44;
}

/// Requests of the device.
pub(crate) mod device_request {
    pub(crate) const SHMEM_MAP: u32 = 9;
    pub(crate) const SHMEM_UNMAP: u32 = 10;
}

/// A message in either direction. Copies share the descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<Rc<OwnedFd>>,
}

impl Message {
    /// A request without a body.
    pub(crate) const fn new(request: u32) -> Self {
        Self {
            request,
            flags: VERSION,
            body: Vec::new(),
            files: Vec::new(),
        }
    }

    /// The reply to a request, with one number.
    pub(crate) fn reply(request: u32, value: u64) -> Self {
        Self {
            flags: VERSION | REPLY,
            body: value.to_ne_bytes().to_vec(),
            ..Self::new(request)
        }
    }

    /// From a header and what follows it.
    pub(crate) fn from_parts(header: &[u8], body: &[u8], files: Vec<Rc<OwnedFd>>) -> Option<Self> {
        Some(Self {
            request: word(header, 0)?,
            flags: word(header, 4)?,
            body: body.to_vec(),
            files,
        })
    }

    /// Length of the body that a header announces.
    pub(crate) fn body_length(header: &[u8]) -> Option<usize> {
        let length = usize::try_from(word(header, 8)?).ok()?;
        (length <= MAX_BODY).then_some(length)
    }

    /// Header and body.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Fits: no body is longer than `MAX_BODY`.
        let words = [self.request, self.flags, self.body.len() as u32];
        let header = words.iter().flat_map(|word| word.to_ne_bytes());
        header.chain(self.body.iter().copied()).collect()
    }

    pub(crate) const fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    pub(crate) const fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// The message, of which the sender wants no acknowledgement.
    pub(crate) fn without_need_reply(&self) -> Self {
        Self {
            flags: self.flags & !NEED_REPLY,
            ..self.clone()
        }
    }

    /// The 32-bit word at byte `at` of the body.
    pub(crate) fn word(&self, at: usize) -> Option<u32> {
        word(&self.body, at)
    }

    /// The 64-bit word at the start of the body.
    pub(crate) fn number(&self) -> Option<u64> {
        let bytes = self.body.get(..8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
impl Message {
    /// A request that asks for an acknowledgement.
    pub(crate) fn with_need_reply(mut self) -> Self {
        self.flags |= NEED_REPLY;
        self
    }

    /// A request with a body.
    pub(crate) fn with_body(request: u32, body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::new(request)
        }
    }
}
