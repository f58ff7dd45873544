// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the card does with a buffer. The engine calls it; sockets, queues and interrupts are not its
//! business.

use std::io;
use std::time::Duration;

use ringbar_engine::model::RequestOf;
use ringbar_engine::{Buffer, DeviceModel, Fault, Submission};
use vm_memory::{Bytes, GuestMemory};

use crate::clock::Clock;
use crate::frames::Frame;
use crate::protocol::{Config, MAX_BUFFERS, Metadata, QUEUES, pattern};

/// The card.
#[derive(Debug)]
pub struct Grabber {
    frame_bytes: u32,
    clock: Clock<RequestOf<Self>>,
}

impl Grabber {
    /// A card with frames of this number of bytes, one in each `period`.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub fn new(frame_bytes: u32, period: Duration) -> io::Result<Self> {
        let clock = Clock::new(period, |request: RequestOf<Self>, frame| {
            request.complete(Some(frame));
        })?;
        Ok(Self { frame_bytes, clock })
    }
}

impl DeviceModel for Grabber {
    /// The frame that is being written, kept for its memory.
    type Queue = Vec<u8>;
    type Scratch = ();
    /// `None` for a buffer that the card lost.
    type Outcome = Option<Frame>;

    fn queue_count(&self) -> u16 {
        QUEUES
    }

    fn is_polled(&self, _queue: u16) -> bool {
        // Buffers come no faster than frames.
        false
    }

    fn max_buffers(&self, _queue: u16) -> usize {
        MAX_BUFFERS.into()
    }

    fn queue(&self, _queue: u16) -> Vec<u8> {
        Vec::new()
    }

    /// Keeps the buffer until its frame is due.
    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        _frame: &mut Vec<u8>,
        _memory: &M,
        request: RequestOf<Self>,
    ) -> Submission<(), Option<Frame>> {
        match parts(request.buffers(), self.frame_bytes) {
            Some(_) => {
                self.clock.post(request);
                Submission::Deferred
            }
            None => Submission::Fault(request, Fault::NoAnswer),
        }
    }

    /// Writes the frame: at most `MAX_FRAME_BYTES`, which takes less than a millisecond.
    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        data: &mut Vec<u8>,
        memory: &M,
        request: &mut RequestOf<Self>,
        frame: Option<Frame>,
    ) -> Result<u32, Fault> {
        let frame = frame.ok_or(Fault::NoAnswer)?;
        write(data, memory, request.buffers(), self.frame_bytes, frame)
    }

    fn dropped(&self) -> Option<Frame> {
        None
    }

    fn queue_stopped(&self, _queue: u16) {
        self.clock.stop();
    }

    fn config(&self) -> Vec<u8> {
        let config = Config {
            frame_bytes: self.frame_bytes,
            // CAST: Modulo 2^32, as documented.
            dropped: self.clock.dropped() as u32,
        };
        config.to_bytes().into()
    }
}

/// The buffers for the frame, and the one for the metadata. `None` if not all are writable, or the
/// frame does not fit.
fn parts(buffers: &[Buffer], frame_bytes: u32) -> Option<(&[Buffer], &Buffer)> {
    let (metadata, frame) = buffers.split_last()?;
    let room: u64 = frame.iter().map(|buffer| u64::from(buffer.len)).sum();
    let fits = buffers.iter().all(|buffer| buffer.writable)
        && metadata.len as usize == Metadata::SIZE
        && room >= frame_bytes.into();
    fits.then_some((frame, metadata))
}

/// Writes a frame and its metadata. Returns the length for the used ring.
fn write<M: GuestMemory>(
    data: &mut Vec<u8>,
    memory: &M,
    buffers: &[Buffer],
    frame_bytes: u32,
    frame: Frame,
) -> Result<u32, Fault> {
    let (room, last) = parts(buffers, frame_bytes).ok_or(Fault::NoAnswer)?;
    data.clear();
    data.extend((0..frame_bytes as usize).map(|at| pattern(frame.sequence, at)));
    let mut left = data.as_slice();
    for buffer in room {
        let (bytes, rest) = left.split_at(left.len().min(buffer.len as usize));
        memory
            .write_slice(bytes, buffer.addr)
            .map_err(|_| Fault::Address)?;
        left = rest;
    }
    let metadata = Metadata {
        sequence: frame.sequence,
        dropped: frame.dropped,
        checksum: crc32c::crc32c(data),
    };
    memory
        .write_slice(&metadata.to_bytes(), last.addr)
        .map_err(|_| Fault::Address)?;
    Ok(frame_bytes + last.len)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    const fn buffer(addr: u64, len: u32, writable: bool) -> Buffer {
        Buffer {
            addr: GuestAddress(addr),
            len,
            writable,
        }
    }

    const LAST: Buffer = buffer(0, Metadata::SIZE as u32, true);
    const FRAME: Frame = Frame {
        sequence: 7,
        dropped: 2,
    };

    fn write_to(buffers: &[Buffer]) -> (Result<u32, Fault>, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let buffers = [buffers, &[LAST]].concat();
        let written = write(&mut vec![1, 2, 3], &memory, &buffers, 300, FRAME);
        (written, memory)
    }

    #[test]
    fn a_frame_fills_several_buffers() {
        let (written, memory) = write_to(&[buffer(0x1000, 100, true), buffer(0x3000, 201, true)]);
        assert_eq!(written.unwrap(), 300 + Metadata::SIZE as u32);
        let mut bytes = [0; 300];
        let (one, two) = bytes.split_at_mut(100);
        memory.read_slice(one, GuestAddress(0x1000)).unwrap();
        memory.read_slice(two, GuestAddress(0x3000)).unwrap();
        assert!((0..300).all(|at| bytes[at] == pattern(7, at)));
        // What is behind the frame stays.
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x30c8)).unwrap(), 0);
        let mut last = [0; Metadata::SIZE];
        memory.read_slice(&mut last, LAST.addr).unwrap();
        let metadata = Metadata::parse(&last);
        assert_eq!((metadata.sequence, metadata.dropped), (7, 2));
        assert_eq!(metadata.checksum, crc32c::crc32c(&bytes));
    }

    #[test]
    fn wrong_buffers_are_faults() {
        let cases: [(&[Buffer], Fault); 4] = [
            (&[], Fault::NoAnswer),
            (&[buffer(0x1000, 299, true)], Fault::NoAnswer),
            (&[buffer(0x1000, 300, false)], Fault::NoAnswer),
            (&[buffer(0xfff0, 300, true)], Fault::Address),
        ];
        for (buffers, fault) in cases {
            assert_eq!(write_to(buffers).0, Err(fault), "{buffers:?}");
        }
    }
}
