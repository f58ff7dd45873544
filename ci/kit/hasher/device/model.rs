// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the card does with a request. The engine calls it; sockets, queues and interrupts are not
//! its business.

use std::io;

use ringbar_engine::model::RequestOf;
use ringbar_engine::{Buffer, DeviceModel, Fault, Submission};
use vm_memory::{Bytes, GuestMemory};

use crate::engines::Engines;
use crate::hash::hash;
use crate::protocol::{Code, Config, Header, MAX_BUFFERS, MAX_BYTES, QUEUES, State, Status};

/// The card.
#[derive(Debug)]
pub struct Hasher {
    engines: Engines<(RequestOf<Self>, Header)>,
}

impl Hasher {
    /// A card with this number of engines.
    ///
    /// # Errors
    ///
    /// If there can be no more threads.
    pub fn new(engines: u16) -> io::Result<Self> {
        let execute = |(mut request, header): (RequestOf<Self>, Header)| {
            let (_, data) = request.parts();
            let status = execute(&header, data);
            request.complete(status);
        };
        Ok(Self {
            engines: Engines::new(engines, execute)?,
        })
    }
}

impl From<Code> for Status {
    fn from(code: Code) -> Self {
        Self {
            code,
            state: State::default(),
        }
    }
}

fn execute(header: &Header, data: &[u8]) -> Status {
    match hash(header.opcode, header.state, header.before, data) {
        Some(state) => Status {
            code: Code::Ok,
            state,
        },
        None => Code::Invalid.into(),
    }
}

impl DeviceModel for Hasher {
    type Queue = ();
    /// The source.
    type Scratch = Vec<u8>;
    type Outcome = Status;

    fn queue_count(&self) -> u16 {
        QUEUES
    }

    fn is_polled(&self, _queue: u16) -> bool {
        true
    }

    fn max_buffers(&self, _queue: u16) -> usize {
        MAX_BUFFERS.into()
    }

    fn queue(&self, _queue: u16) {}

    /// Copies the source, and lets an engine hash it: then requests end in any order. If too many
    /// wait for the engines, the worker does it, which takes less than a millisecond.
    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        _queue: &mut (),
        memory: &M,
        mut request: RequestOf<Self>,
    ) -> Submission<Vec<u8>, Status> {
        let (buffers, data) = request.parts();
        if status_of(buffers).is_none() {
            return Submission::Fault(request, Fault::NoAnswer);
        }
        let header = match read(memory, buffers, data) {
            Ok(header) => header,
            Err(code) => return Submission::Completed(request, code.into()),
        };
        match self.engines.start((request, header)) {
            Ok(()) => Submission::Deferred,
            Err((mut request, header)) => {
                let (_, data) = request.parts();
                let status = execute(&header, data);
                Submission::Completed(request, status)
            }
        }
    }

    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        _queue: &mut (),
        memory: &M,
        request: &mut RequestOf<Self>,
        status: Status,
    ) -> Result<u32, Fault> {
        let buffer = status_of(request.buffers()).ok_or(Fault::NoAnswer)?;
        memory
            .write_slice(&status.to_bytes(), buffer.addr)
            .map_err(|_| Fault::Address)?;
        Ok(buffer.len)
    }

    fn dropped(&self) -> Status {
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

/// Reads the header, and the source to `data`.
fn read<M: GuestMemory>(
    memory: &M,
    buffers: &[Buffer],
    data: &mut Vec<u8>,
) -> Result<Header, Code> {
    let [header, source @ .., _status] = buffers else {
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
    let length: u64 = source.iter().map(|buffer| u64::from(buffer.len)).sum();
    if source.iter().any(|buffer| buffer.writable)
        || header.source > MAX_BYTES.into()
        || header.source != length
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
    Ok(header)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::protocol::{INITIAL, Opcode};

    const STATUS: Buffer = buffer(0, Status::SIZE as u32, true);

    const fn buffer(addr: u64, len: u32, writable: bool) -> Buffer {
        Buffer {
            addr: GuestAddress(addr),
            len,
            writable,
        }
    }

    /// Reads a request whose header says so many bytes, with these buffers.
    fn read_request(source: u64, buffers: &[Buffer]) -> Result<Vec<u8>, Code> {
        let memory = <GuestMemoryMmap>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let header = Header {
            opcode: Opcode::Final,
            source,
            before: 0,
            state: INITIAL,
        };
        memory
            .write_slice(&header.to_bytes(), GuestAddress(0x100))
            .unwrap();
        memory
            .write_slice(b"abcdefghi", GuestAddress(0x1000))
            .unwrap();
        let first = buffer(0x100, Header::SIZE as u32, false);
        let buffers = [&[first], buffers, &[STATUS]].concat();
        let mut data = vec![1, 2, 3];
        assert_eq!(read(&memory, &buffers, &mut data)?, header);
        Ok(data)
    }

    #[test]
    fn a_source_may_have_several_buffers_or_none() {
        let parts = [buffer(0x1004, 5, false), buffer(0x1000, 4, false)];
        assert_eq!(read_request(9, &parts).unwrap(), b"efghiabcd");
        assert_eq!(read_request(0, &[]).unwrap(), b"");
    }

    #[test]
    fn wrong_lengths_and_addresses_are_refused() {
        let cases: [(u64, &[Buffer]); 5] = [
            (8, &[buffer(0x1000, 9, false)]),
            (9, &[]),
            (9, &[buffer(0x1000, 9, true)]),
            (9, &[buffer(0xffff, 9, false)]),
            (u64::from(MAX_BYTES) + 1, &[buffer(0, MAX_BYTES + 1, false)]),
        ];
        for (source, buffers) in cases {
            let read = read_request(source, buffers);
            assert_eq!(read, Err(Code::Invalid), "{buffers:?}");
        }
    }
}
