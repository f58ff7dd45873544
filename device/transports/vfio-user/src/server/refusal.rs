// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reasons for an error reply, and their `errno`.

use super::Errno;

/// Reason for which a command is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the header has flags {0:#x}, which are not those of a command")]
    HeaderFlags(u32),
    #[error("the size of {0} bytes is below that of a header")]
    MessageTooShort(u32),
    #[error("the size of {0} bytes is above the limit")]
    MessageTooLong(u32),
    #[error("no version has been negotiated")]
    NotNegotiated,
    #[error("the version has been negotiated before")]
    Negotiated,
    #[error("version {0}.{1} is not supported")]
    Version(u16, u16),
    #[error("the capabilities are malformed: {0}")]
    Capabilities(&'static str),
    #[error("command {0} is not supported")]
    Command(u16),
    #[error("the body has {got} bytes instead of {expected}")]
    Length { expected: usize, got: usize },
    #[error("argsz is {got} where {expected} is needed")]
    ArgumentSize { expected: usize, got: u32 },
    #[error("flags {0:#x} are not valid")]
    Flags(u32),
    #[error("{got} or more descriptors came instead of {expected}")]
    Descriptors { expected: usize, got: usize },
    #[error("descriptors were lost: this process has no room for them")]
    DescriptorsLost,
    #[error("there is no region {0}")]
    Region(u32),
    #[error("region {0} does not permit the access")]
    RegionAccess(u32),
    #[error("{count} bytes at offset {offset:#x} are not in region {region}")]
    RegionRange {
        region: u32,
        offset: u64,
        count: u32,
    },
    #[error("{0} bytes are not a valid amount of data to transfer")]
    TransferSize(u32),
    #[error("{size:#x} bytes at {start:#x} are not a valid range")]
    Range { start: u64, size: u64 },
    #[error("there is no interrupt type {0}")]
    Interrupt(u32),
    #[error("{count} interrupts from {start} on are not in type {index}")]
    InterruptRange { index: u32, start: u32, count: u32 },
    #[error("interrupt type {index} does not support flags {flags:#x}")]
    InterruptFlags { index: u32, flags: u32 },
    #[error("the device cannot be reset")]
    Reset,
    #[error("the device: {0}")]
    Device(Errno),
}

impl Refusal {
    /// The `errno` of the error reply.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::NotNegotiated | Self::Negotiated => Errno::PROTO,
            Self::Version(..) => Errno::PROTONOSUPPORT,
            Self::Command(_) | Self::Reset => Errno::OPNOTSUPP,
            Self::MessageTooLong(_) => Errno::MSGSIZE,
            Self::DescriptorsLost => Errno::MFILE,
            Self::RegionAccess(_) => Errno::ACCESS,
            Self::Device(errno) => errno,
            Self::HeaderFlags(_)
            | Self::MessageTooShort(_)
            | Self::Capabilities(_)
            | Self::Length { .. }
            | Self::ArgumentSize { .. }
            | Self::Flags(_)
            | Self::Descriptors { .. }
            | Self::Region(_)
            | Self::RegionRange { .. }
            | Self::TransferSize(_)
            | Self::Range { .. }
            | Self::Interrupt(_)
            | Self::InterruptRange { .. }
            | Self::InterruptFlags { .. } => Errno::INVAL,
        }
    }
}
