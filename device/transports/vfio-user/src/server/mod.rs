// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vfio-user protocol of one connection: messages in, calls of a [`Backend`], replies out.
//!
//! The client (a virtual machine monitor) sends commands over a Unix stream socket; descriptors
//! of guest memory and interrupts come with them as `SCM_RIGHTS`. [`serve`] receives one message
//! at a time, checks every field of it, and calls the back end. The protocol is specified in
//! QEMU's `docs/interop/vfio-user.rst`.
//!
//! | module | holds |
//! |---|---|
//! | `backend` | [`Backend`]: what a device implements, and the types of its calls |
//! | `connection` | [`serve`]: the loop over messages |
//! | `receive` | exact reads with descriptors that a stop interrupts |
//! | `wire` | header and bodies of messages as bytes |
//! | `version` | negotiation of the version and of the capabilities |
//! | `dispatch` | one message: its checks, the call of the back end, its reply |
//! | `irqs` | checks of `VFIO_USER_DEVICE_SET_IRQS` |
//! | `refusal` | reasons for an error reply, and their `errno` |
//! | `reply` | [`Reply`]: replies from any thread |
//!
//! The server does not know what a region contains, and it never sends a command to the client.
//!
//! # What a client can provoke
//!
//! A message that breaks a rule is answered with an error reply, its descriptors are closed, and
//! the next message is processed as usual. The connection ends only where the stream itself can
//! no longer be trusted or used:
//!
//! | message | behaviour |
//! |---|---|
//! | size below that of a header | error reply `EINVAL`, then the connection ends |
//! | size above [`MAX_MESSAGE_BYTES`] | error reply `EMSGSIZE`, then the connection ends |
//! | `VERSION` with another major version | error reply `EPROTONOSUPPORT`, then the connection ends |
//! | any command before `VERSION` succeeds | error reply `EPROTO` |
//! | `VERSION` after it succeeded | error reply `EPROTO`; the capabilities stay as they are |
//! | a reply, with a possible size | ignored: the server sends no commands |
//! | a command with `No_reply` | processed without a reply, errors included |
//! | a command that the server does not implement | error reply `EOPNOTSUPP` |
//! | another type, or unknown flags, in the header | error reply `EINVAL` |
//! | descriptors with a command that takes none, or too many | error reply `EINVAL` |
//! | descriptors that could not be received | error reply `EMFILE` |
//!
//! Fields that only a reply uses are ignored in a command, as other servers do.
//!
//! # Ordering
//!
//! The server calls the back end in the order of the messages. Calls with a [`Reply`] may be
//! answered later; the server goes on with the next message meanwhile. At most
//! [`MAX_PENDING_REPLIES`] of them are pending: the server then receives nothing until one is
//! answered.

mod backend;
mod connection;
mod dispatch;
mod irqs;
mod receive;
mod refusal;
mod reply;
mod version;
mod wire;

pub use backend::{
    Area, Backend, DeviceInfo, InterruptAction, InterruptData, InterruptInfo, Mapping, Region,
    SetInterrupts,
};
pub use connection::{Error, serve};
pub use reply::{MAX_PENDING_REPLIES, Reply};
pub use rustix::io::Errno;
pub use version::{MAX_DATA_XFER_SIZE, MAX_MSG_FDS};
pub use wire::MAX_MESSAGE_BYTES;
