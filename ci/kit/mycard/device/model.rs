// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the card does with a request. The engine calls it; sockets, queues and interrupts are not
//! its business.

use ringbar_engine::model::RequestOf;
use ringbar_engine::{Buffer, DeviceModel, Fault, Submission};
use vm_memory::{Bytes, GuestMemory};

use crate::protocol::{Code, Config, Header, MAX_BUFFERS, MAX_BYTES, Opcode, QUEUES, Status};

/// The card.
#[derive(Debug)]
pub struct Mycard;

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    status: Status,
    /// Number of bytes of the destination that were written.
    written: u32,
}

impl From<Code> for Answer {
    fn from(code: Code) -> Self {
        Self {
            status: Status { code, result: 0 },
            written: 0,
        }
    }
}

impl DeviceModel for Mycard {
    /// The data of the request that is being executed, kept for its memory.
    type Queue = Vec<u8>;
    type Scratch = ();
    type Outcome = Answer;

    fn queue_count(&self) -> u16 {
        QUEUES
    }

    fn is_polled(&self, _queue: u16) -> bool {
        true
    }

    fn max_buffers(&self, _queue: u16) -> usize {
        MAX_BUFFERS.into()
    }

    fn queue(&self, _queue: u16) -> Vec<u8> {
        Vec::new()
    }

    /// Executes the request at once: [`MAX_BYTES`] take less than a millisecond. An operation that
    /// takes longer returns `Submission::Yielded` after each step, or `Submission::Deferred` and
    /// completes the request from another thread.
    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        data: &mut Vec<u8>,
        memory: &M,
        request: RequestOf<Self>,
    ) -> Submission<(), Answer> {
        if status_of(request.buffers()).is_none() {
            return Submission::Fault(request, Fault::NoAnswer);
        }
        let answer = execute(data, memory, request.buffers()).unwrap_or_else(Answer::from);
        Submission::Completed(request, answer)
    }

    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        _data: &mut Vec<u8>,
        memory: &M,
        request: &mut RequestOf<Self>,
        answer: Answer,
    ) -> Result<u32, Fault> {
        let buffers = request.buffers();
        let status = status_of(buffers).ok_or(Fault::NoAnswer)?;
        memory
            .write_slice(&answer.status.to_bytes(), status.addr)
            .map_err(|_| Fault::Address)?;
        // The length counts from the first writable byte on (VIRTIO 1.3, 2.7.8.2), so the status
        // counts if the destination before it was written.
        let destination =
            length(buffers.iter().filter(|buffer| buffer.writable)) - u64::from(status.len);
        Ok(match u64::from(answer.written) == destination {
            true => answer.written + status.len,
            false => 0,
        })
    }

    fn dropped(&self) -> Answer {
        Code::Failed.into()
    }

    fn config(&self) -> Vec<u8> {
        let config = Config {
            max_bytes: MAX_BYTES,
        };
        config.to_bytes().into()
    }
}

/// The buffer for the status.
fn status_of(buffers: &[Buffer]) -> Option<&Buffer> {
    buffers
        .last()
        .filter(|status| status.writable && status.len as usize == Status::SIZE)
}

/// Number of bytes of some buffers.
fn length<'a>(buffers: impl IntoIterator<Item = &'a Buffer>) -> u64 {
    buffers
        .into_iter()
        .map(|buffer| u64::from(buffer.len))
        .sum()
}

/// Executes a request, whose last buffer is the status.
fn execute<M: GuestMemory>(
    data: &mut Vec<u8>,
    memory: &M,
    buffers: &[Buffer],
) -> Result<Answer, Code> {
    let [header, rest @ .., _status] = buffers else {
        return Err(Code::Invalid);
    };
    if header.writable || header.len as usize != Header::SIZE {
        return Err(Code::Invalid);
    }
    let mut bytes = [0; Header::SIZE];
    memory
        .read_slice(&mut bytes, header.addr)
        .map_err(|_| Code::Invalid)?;
    let header = Header::parse(&bytes).ok_or(Code::Unsupported)?;
    let (source, destination) = rest.split_at(rest.partition_point(|buffer| !buffer.writable));
    if destination.iter().any(|buffer| !buffer.writable)
        || header.source > MAX_BYTES.into()
        || length(source) != header.source
        || length(destination) != header.destination
    {
        return Err(Code::Invalid);
    }

    data.clear();
    for buffer in source {
        let at = data.len();
        data.resize(at + buffer.len as usize, 0);
        memory
            .read_slice(&mut data[at..], buffer.addr)
            .map_err(|_| Code::Invalid)?;
    }
    let result = match header.opcode {
        Opcode::Crc32c if destination.is_empty() => crc32c::crc32c(data).into(),
        Opcode::Xor if header.destination == header.source => {
            let key = header.key.to_le_bytes();
            for (byte, key) in data.iter_mut().zip(key.iter().cycle()) {
                *byte ^= key;
            }
            let mut left = data.as_slice();
            for buffer in destination {
                let (bytes, rest) = left.split_at(buffer.len as usize);
                memory
                    .write_slice(bytes, buffer.addr)
                    .map_err(|_| Code::Invalid)?;
                left = rest;
            }
            header.source
        }
        Opcode::Crc32c | Opcode::Xor => return Err(Code::Invalid),
    };
    Ok(Answer {
        status: Status {
            code: Code::Ok,
            result,
        },
        // CAST: At most `MAX_BYTES`.
        written: header.destination as u32,
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    const STATUS: Buffer = buffer(0, Status::SIZE as u32, true);

    const fn buffer(addr: u64, len: u32, writable: bool) -> Buffer {
        Buffer {
            addr: GuestAddress(addr),
            len,
            writable,
        }
    }

    /// Executes a request with the source "123456789" at 0x1000, in two buffers, and these buffers
    /// behind it. Returns the answer, and the memory.
    fn run(
        opcode: Opcode,
        source: u64,
        rest: &[Buffer],
    ) -> (Result<Answer, Code>, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let header = Header {
            opcode,
            key: 0x0101_0101_0101_0180,
            source,
            destination: length(rest),
        };
        memory
            .write_slice(&header.to_bytes(), GuestAddress(0x100))
            .unwrap();
        memory
            .write_slice(b"123456789", GuestAddress(0x1000))
            .unwrap();
        let head = [
            buffer(0x100, Header::SIZE as u32, false),
            buffer(0x1000, 4, false),
            buffer(0x1004, 5, false),
        ];
        let buffers = [&head, rest, &[STATUS]].concat();
        let answer = execute(&mut vec![1, 2, 3], &memory, &buffers);
        (answer, memory)
    }

    #[test]
    fn crc32c_is_the_one_of_the_standard() {
        let (answer, _) = run(Opcode::Crc32c, 9, &[]);
        // The check value of CRC-32/ISCSI.
        assert_eq!(answer.unwrap().status.result, 0xe306_9283);
    }

    #[test]
    fn xor_fills_the_destination() {
        let (answer, memory) = run(
            Opcode::Xor,
            9,
            &[buffer(0x2000, 1, true), buffer(0x3000, 8, true)],
        );
        let answer = answer.unwrap();
        assert_eq!((answer.status.result, answer.written), (9, 9));
        let mut bytes = [0; 9];
        memory
            .read_slice(&mut bytes[..1], GuestAddress(0x2000))
            .unwrap();
        memory
            .read_slice(&mut bytes[1..], GuestAddress(0x3000))
            .unwrap();
        assert_eq!(&bytes, b"\xb1325476\x39\xb9");
    }

    #[test]
    fn wrong_lengths_and_addresses_are_refused() {
        let cases: [(Opcode, u64, &[Buffer]); 6] = [
            (Opcode::Crc32c, 8, &[]),
            (Opcode::Crc32c, 9, &[buffer(0x2000, 9, true)]),
            (Opcode::Xor, 9, &[]),
            (Opcode::Xor, 9, &[buffer(0x2000, 8, true)]),
            (Opcode::Xor, 9, &[buffer(0xffff, 9, true)]),
            (
                Opcode::Xor,
                9,
                &[buffer(0x2000, 9, true), buffer(0x3000, 0, false)],
            ),
        ];
        for (opcode, source, rest) in cases {
            assert_eq!(run(opcode, source, rest).0, Err(Code::Invalid), "{rest:?}");
        }
    }
}
