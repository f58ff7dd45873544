// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All methods of moving data between user space and the device.

use std::fs::File;
use std::io;

use crate::sys::{self, AioContext, AioOperation, Buffers, IoVec, Region, Ring, UringOperation};

/// Direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device to memory.
    Read,
    /// From memory to the device.
    Write,
}

/// System call or operation of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `read`, `write`
    Plain,
    /// `readv`, `writev`
    Vectored(Segments),
    /// `pread`, `pwrite`
    AtOffset,
    /// `preadv`, `pwritev`
    VectoredAtOffset(Segments),
    /// `preadv2`, `pwritev2`
    WithFlags(Segments),
    /// `preadv2`, `pwritev2` with offset -1
    WithFlagsAtPosition,
    /// `IOCB_CMD_PREAD`, `IOCB_CMD_PWRITE`
    Aio,
    /// `IOCB_CMD_PREADV`, `IOCB_CMD_PWRITEV`
    AioVectored(Segments),
    /// `IORING_OP_READ`, `IORING_OP_WRITE`
    Uring,
    /// `IORING_OP_READV`, `IORING_OP_WRITEV`
    UringVectored(Segments),
    /// `IORING_OP_READ_FIXED`, `IORING_OP_WRITE_FIXED`
    UringFixed,
}

/// Number of buffers in a vectored transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// One.
    One,
    /// Three, of different sizes and alignments.
    Three,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Plain,
        Self::Vectored(Segments::One),
        Self::Vectored(Segments::Three),
        Self::AtOffset,
        Self::VectoredAtOffset(Segments::One),
        Self::VectoredAtOffset(Segments::Three),
        Self::WithFlags(Segments::One),
        Self::WithFlags(Segments::Three),
        Self::WithFlagsAtPosition,
        Self::Aio,
        Self::AioVectored(Segments::One),
        Self::AioVectored(Segments::Three),
        Self::Uring,
        Self::UringVectored(Segments::One),
        Self::UringVectored(Segments::Three),
        Self::UringFixed,
    ];

    /// Number of buffers of the method.
    pub fn segments(self) -> Segments {
        match self {
            Self::Vectored(segments)
            | Self::VectoredAtOffset(segments)
            | Self::WithFlags(segments)
            | Self::AioVectored(segments)
            | Self::UringVectored(segments) => segments,
            _ => Segments::One,
        }
    }

    /// Whether the method uses and advances the file position.
    pub fn uses_position(self) -> bool {
        matches!(
            self,
            Self::Plain | Self::Vectored(_) | Self::WithFlagsAtPosition
        )
    }

    /// Name of a test, with the id of the feature it tests.
    pub fn name(self, direction: Direction) -> String {
        let verb = match direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        let (start, end) = match self {
            Self::Plain => ("b1_", ""),
            Self::Vectored(_) => ("b1_", "v"),
            Self::AtOffset => ("b1_p", ""),
            Self::VectoredAtOffset(_) => ("b1_p", "v"),
            Self::WithFlags(_) => ("b1_p", "v2"),
            Self::WithFlagsAtPosition => ("b1_p", "v2_at_position"),
            Self::Aio => ("b6_aio_p", ""),
            Self::AioVectored(_) => ("b6_aio_p", "v"),
            Self::Uring => ("b8_uring_", ""),
            Self::UringVectored(_) => ("b8_uring_", "v"),
            Self::UringFixed => ("b8_uring_", "_fixed"),
        };
        let segments = match self {
            Self::Vectored(segments)
            | Self::VectoredAtOffset(segments)
            | Self::WithFlags(segments)
            | Self::AioVectored(segments)
            | Self::UringVectored(segments) => match segments {
                Segments::One => "_1_segment",
                Segments::Three => "_3_segments",
            },
            _ => "",
        };
        format!("{start}{verb}{end}{segments}")
    }
}

/// The asynchronous engines, set up once for many transfers.
pub struct Engines {
    aio: AioContext,
    ring: Ring,
}

impl Engines {
    /// Sets the engines up; `fixed` becomes registered buffer 0.
    pub fn new(fixed: &Region) -> io::Result<Self> {
        let ring = Ring::new(4)?;
        ring.register_buffers(&[fixed])?;
        Ok(Self {
            aio: AioContext::new(4)?,
            ring,
        })
    }

    /// Makes one transfer and waits for its end. Returns the number of bytes moved.
    ///
    /// For methods that use the file position, sets it first.
    pub fn transfer(
        &mut self,
        method: Method,
        direction: Direction,
        file: &File,
        buffers: &[IoVec],
        offset: u64,
    ) -> io::Result<usize> {
        use Direction::{Read, Write};

        let one = || {
            buffers
                .first()
                .copied()
                .ok_or_else(|| io::Error::other("a transfer without buffer"))
        };
        if method.uses_position() {
            sys::lseek(file, offset.cast_signed(), libc::SEEK_SET)?;
        }
        match (method, direction) {
            (Method::Plain, Read) => sys::read(file, one()?),
            (Method::Plain, Write) => sys::write(file, one()?),
            (Method::Vectored(_), Read) => sys::readv(file, buffers),
            (Method::Vectored(_), Write) => sys::writev(file, buffers),
            (Method::AtOffset, Read) => sys::pread(file, one()?, offset),
            (Method::AtOffset, Write) => sys::pwrite(file, one()?, offset),
            (Method::VectoredAtOffset(_), Read) => sys::preadv(file, buffers, offset),
            (Method::VectoredAtOffset(_), Write) => sys::pwritev(file, buffers, offset),
            (Method::WithFlags(_), Read) => sys::preadv2(file, buffers, Some(offset), 0),
            (Method::WithFlags(_), Write) => sys::pwritev2(file, buffers, Some(offset), 0),
            (Method::WithFlagsAtPosition, Read) => sys::preadv2(file, buffers, None, 0),
            (Method::WithFlagsAtPosition, Write) => sys::pwritev2(file, buffers, None, 0),
            (Method::Aio, Read) => self.aio.run(AioOperation::pread(file, one()?, offset)),
            (Method::Aio, Write) => self.aio.run(AioOperation::pwrite(file, one()?, offset)),
            (Method::AioVectored(_), Read) => {
                self.aio.run(AioOperation::preadv(file, buffers, offset))
            }
            (Method::AioVectored(_), Write) => {
                self.aio.run(AioOperation::pwritev(file, buffers, offset))
            }
            (Method::Uring, direction) => self.uring(direction, file, Buffers::One(one()?), offset),
            (Method::UringVectored(_), direction) => {
                self.uring(direction, file, Buffers::List(buffers), offset)
            }
            (Method::UringFixed, direction) => {
                self.uring(direction, file, Buffers::Registered(one()?, 0), offset)
            }
        }
    }

    fn uring(
        &mut self,
        direction: Direction,
        file: &File,
        buffers: Buffers<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        self.ring.run(&match direction {
            Direction::Read => UringOperation::read(file, buffers, offset),
            Direction::Write => UringOperation::write(file, buffers, offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_the_call() {
        let names: HashSet<_> = Method::ALL
            .iter()
            .flat_map(|method| {
                [Direction::Read, Direction::Write].map(|direction| method.name(direction))
            })
            .collect();
        assert_eq!(names.len(), 2 * Method::ALL.len());
        for name in [
            "b1_read",
            "b1_pwritev2_3_segments",
            "b1_preadv2_at_position",
            "b6_aio_preadv_1_segment",
            "b8_uring_write_fixed",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }
}
