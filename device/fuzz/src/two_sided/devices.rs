// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices, with what a driver knows of their requests.

use std::sync::Arc;

use arbitrary::Unstructured;
use ringbar_engine::model::RequestOf;
use ringbar_engine::testing::{Adder, Op};
use ringbar_engine::{Counters, DeviceModel, Threads};
use ringbar_model::{Device, DeviceOptions, Session};
use ringbar_spec::{FIRST_IO_QUEUE, Opcode, RequestHeader, RequestStatus, StatusCode};
use ringbar_storage::MemoryStorage;
use vm_memory::VolatileSlice;

/// A request that a driver makes.
pub(super) struct Made {
    /// For the device to read, at most one block.
    pub(super) input: Vec<u8>,
    /// Number of bytes for the device to write.
    pub(super) output: usize,
    /// What these can be in the end.
    pub(super) answers: Vec<Vec<u8>>,
}

/// A device under test.
pub(super) trait Subject {
    type Model: DeviceModel;

    fn model(&self) -> &Arc<Self::Model>;
    fn counters(&self) -> Arc<Counters>;

    /// A request that is in order, for a queue of which the driver knows what it does. `None` on
    /// a queue without such requests.
    fn make(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Option<Made>;

    /// Bytes of a request of a driver that means harm. They change nothing that others see.
    fn harm(&mut self, input: &mut Unstructured<'_>) -> Vec<u8>;

    /// Something happens outside of the queues: the host resizes the device, or requests that it
    /// has kept go on.
    fn outside(&mut self, input: &mut Unstructured<'_>);

    /// All requests that the device has kept go on. Returns whether there were any.
    fn release(&mut self) -> bool;

    /// A queue was stopped. What is answered later is of no use.
    fn stopped(&mut self, queue: u16);

    /// Requests of an orderly driver were lost by a reset: it is unknown whether they were executed.
    fn lost(&mut self);
}

/// Answers of [`Adder`] to requests that it keeps: those of this run of the queue, by an exchange,
/// where they are dropped, and those that come too late.
const RELEASED: u8 = 99;
const EXCHANGED: u8 = 77;
const DROPPED: u8 = u8::MAX;
const LATE: u8 = 55;

/// A device that adds bytes up. It is not storage.
pub(super) struct AdderSubject {
    model: Arc<Adder>,
    counters: Arc<Counters>,
    /// How often each queue was stopped.
    stops: [u32; 4],
    /// Requests that another part of the device has, each with the number of stops of its queue.
    elsewhere: Vec<(u32, RequestOf<Adder>)>,
}

impl AdderSubject {
    pub(super) fn new() -> Self {
        Self {
            model: Adder::new(4),
            counters: Arc::default(),
            stops: [0; 4],
            elsewhere: Vec::new(),
        }
    }

    fn stops_of(&self, request: &RequestOf<Adder>) -> u32 {
        self.stops[usize::from(request.queue())]
    }

    /// Answers what is elsewhere.
    fn answer(&mut self) {
        for (stops, request) in std::mem::take(&mut self.elsewhere) {
            let in_time = stops == self.stops_of(&request);
            request.complete(if in_time { RELEASED } else { LATE });
        }
    }

    fn bytes(input: &mut Unstructured<'_>) -> Vec<u8> {
        let count = input.int_in_range(1..=12).unwrap_or(1);
        (0..count)
            .map(|_| input.arbitrary().unwrap_or_default())
            .collect()
    }
}

impl Subject for AdderSubject {
    type Model = Adder;

    fn model(&self) -> &Arc<Adder> {
        &self.model
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn make(&mut self, _queue: u16, input: &mut Unstructured<'_>) -> Option<Made> {
        let mut bytes = Self::bytes(input);
        bytes[0] %= 8;
        let sum = bytes[1..]
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        let mut answers = vec![sum, RELEASED, EXCHANGED];
        if bytes[0] == Op::Lose as u8 {
            answers.push(DROPPED);
        }
        if bytes.len() == 1 {
            // A slow one adds its first byte up where there is no other.
            answers.push(bytes[0]);
        }
        Some(Made {
            input: bytes,
            output: 1,
            answers: answers.into_iter().map(|byte| vec![byte]).collect(),
        })
    }

    fn harm(&mut self, input: &mut Unstructured<'_>) -> Vec<u8> {
        Self::bytes(input)
    }

    fn outside(&mut self, input: &mut Unstructured<'_>) {
        self.answer();
        for request in self.model.take() {
            match input.arbitrary::<u8>().unwrap_or_default() % 3 {
                0 => request.complete(RELEASED),
                1 => request.resume(),
                _ => {
                    let stops = self.stops_of(&request);
                    self.elsewhere.push((stops, request));
                }
            }
        }
    }

    fn release(&mut self) -> bool {
        let kept = self.model.take();
        let any = !kept.is_empty() || !self.elsewhere.is_empty();
        self.answer();
        for request in kept {
            request.complete(RELEASED);
        }
        any
    }

    fn stopped(&mut self, queue: u16) {
        self.stops[usize::from(queue)] += 1;
    }

    fn lost(&mut self) {}
}

/// Bytes of the storage that only orderly drivers change, the rest, and the least size.
const OWN: u64 = 0x800;
const CAPACITY: u64 = 0x4000;
const LEAST: u64 = 0x3000;

/// Ringbar's device on memory.
pub(super) struct RingbarSubject {
    session: Arc<Session>,
    device: Arc<Device>,
    /// The queue of the only orderly driver.
    owner: Option<u16>,
    /// The first [`OWN`] bytes as they are once all requests so far are executed.
    contents: Vec<u8>,
}

thread_local! {
    static DEVICE: Arc<Device> = {
        let storage = Arc::new(MemoryStorage::new(CAPACITY).unwrap());
        let options = DeviceOptions {
            io_queues: 2,
            max_request_bytes: 0x1000,
            max_command_bytes: 0x2000,
        };
        Arc::new(Device::new(storage, options, &Threads::default()).unwrap())
    };
}

impl RingbarSubject {
    pub(super) fn new() -> Self {
        let device = DEVICE.with(Arc::clone);
        device.resize(CAPACITY).unwrap();
        device.storage().write_zeroes(0, CAPACITY).unwrap();
        Self {
            session: Arc::new(Session::new(Arc::clone(&device)).unwrap()),
            device,
            owner: None,
            contents: vec![0; OWN as usize],
        }
    }
}

impl Subject for RingbarSubject {
    type Model = Session;

    fn model(&self) -> &Arc<Session> {
        &self.session
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.session.queue_counters())
    }

    fn make(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Option<Made> {
        // Requests of two queues have no order, so that nobody would know the contents.
        if queue < FIRST_IO_QUEUE || *self.owner.get_or_insert(queue) != queue {
            return None;
        }
        let mut byte = || usize::from(input.arbitrary::<u8>().unwrap_or_default());
        let length = byte() % 32;
        let at = byte() * 7 % (OWN as usize - 32);
        let other = byte() * 5 % (OWN as usize - 32);
        let range = at..at + length;
        let header =
            |opcode, argument| RequestHeader::command(opcode, at as u64, length as u64, argument);
        let ok = |result: usize| {
            let code = StatusCode::Ok;
            let result = result as u64;
            RequestStatus { code, result }.to_bytes().to_vec()
        };
        let (header, data, answer) = match byte() % 6 {
            0 => {
                let data: Vec<u8> = (0..length).map(|n| (n * 3 + other) as u8).collect();
                self.contents[range].copy_from_slice(&data);
                (header(Opcode::Write, 0), data, ok(length))
            }
            1 => {
                let mut answer = self.contents[range].to_vec();
                answer.extend(ok(length));
                (header(Opcode::Read, 0), Vec::new(), answer)
            }
            2 => {
                self.contents.copy_within(other..other + length, at);
                (header(Opcode::Copy, other as u64), Vec::new(), ok(length))
            }
            3 => {
                self.contents[range].fill(other as u8);
                let pattern = u64::from_le_bytes([other as u8; 8]);
                (header(Opcode::Fill, pattern), Vec::new(), ok(length))
            }
            4 => {
                let (one, two) = (&self.contents[range], &self.contents[other..other + length]);
                let equal = one.iter().zip(two).take_while(|(one, two)| one == two);
                let equal = equal.count();
                (header(Opcode::Compare, other as u64), Vec::new(), ok(equal))
            }
            _ => {
                let flush = RequestHeader::command(Opcode::Flush, 0, 0, 0);
                (flush, Vec::new(), ok(0))
            }
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(data);
        Some(Made {
            input: bytes,
            output: answer.len(),
            answers: vec![answer],
        })
    }

    /// A header whose range is behind [`OWN`].
    fn harm(&mut self, input: &mut Unstructured<'_>) -> Vec<u8> {
        let mut number = || input.arbitrary::<u64>().unwrap_or_default();
        let opcode = [1u16, 2, 3, 4, 5, 6, 7, 8, 9, 0x8000, 0, 10][number() as usize % 12];
        let flags = [0u16, 0, 1, 2, 0xffff][number() as usize % 5];
        let offset = match number() % 4 {
            0 => number() | 1 << 63,
            1 => u64::MAX - number() % 64,
            _ => 0x1000 + number() % 0x3010,
        };
        let length = match number() % 4 {
            0 => number(),
            1 => 0,
            _ => number() % 0x2010,
        };
        let argument = match number() % 3 {
            0 => 0,
            1 => number(),
            _ => number() % 0x4010,
        };
        let mut bytes = Vec::new();
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((u32::from(number() % 8 == 0)).to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(argument.to_le_bytes());
        bytes
    }

    fn outside(&mut self, input: &mut Unstructured<'_>) {
        let more = u64::from(input.arbitrary::<u16>().unwrap_or_default());
        let capacity = LEAST + more % (CAPACITY - LEAST + 1);
        self.device.resize(capacity).unwrap();
    }

    fn release(&mut self) -> bool {
        false
    }

    fn stopped(&mut self, _queue: u16) {}

    fn lost(&mut self) {
        let bytes = VolatileSlice::from(&mut self.contents[..]);
        self.device.storage().read(0, bytes).unwrap();
    }
}
