// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device without an engine behind the server, and a client that sends whatever bytes it is
//! told to.

// The test of descriptors, in a process of its own, uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringbar_vfio_user::dma::{DmaMap, DmaUnmap};
use ringbar_vfio_user::server::{
    Area, Backend, DeviceInfo, Errno, Error, InterruptAction, InterruptData, InterruptInfo,
    Mapping, Region, Reply, SetInterrupts, serve,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::*;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Longest wait for anything that has to come.
pub const TIMEOUT: Duration = Duration::from_secs(20);

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const RESET: u16 = 13;

pub const NO_REPLY: u32 = 1 << 4;

pub const REGIONS: u32 = 9;
pub const IRQS: u32 = 5;
/// Readable and writable, large.
pub const BAR0: u32 = 0;
/// Absent.
pub const BAR1: u32 = 1;
/// Only readable.
pub const BAR2: u32 = 2;
/// Only writable.
pub const BAR3: u32 = 3;
/// Mappable in two areas.
pub const BAR4: u32 = 4;
/// Mappable as a whole.
pub const BAR5: u32 = 5;
/// Readable and writable; reads and writes of byte 0xff fail with `EBUSY`.
pub const CONFIG: u32 = 7;

pub const BAR4_OFFSET: u64 = 0x3000;
pub const BAR4_AREAS: [Area; 2] = [
    Area {
        offset: 0,
        size: 0x1000,
    },
    Area {
        offset: 0x2000,
        size: 0x2000,
    },
];

const READ: u32 = VFIO_REGION_INFO_FLAG_READ;
const WRITE: u32 = VFIO_REGION_INFO_FLAG_WRITE;

/// Size in bytes and flags of a region; `None` where it is absent.
pub fn region(index: u32) -> Option<(u64, u32)> {
    match index {
        BAR0 => Some((4 << 20, READ | WRITE)),
        BAR2 => Some((0x4000, READ)),
        BAR3 => Some((0x1000, WRITE)),
        BAR4 => Some((0x4000, READ | WRITE)),
        BAR5 => Some((0x1000, READ | WRITE)),
        CONFIG => Some((0x100, READ | WRITE)),
        _ => None,
    }
}

/// Count and flags of an interrupt type; `None` where it is absent.
pub fn interrupt(index: u32) -> Option<(u32, u32)> {
    match index {
        0 => Some((
            1,
            VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
        )),
        2 => Some((24, VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE)),
        3 => Some((2, VFIO_IRQ_INFO_MASKABLE)),
        _ => None,
    }
}

/// A call of the back end with an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Write(u32, u64, Vec<u8>),
    Map(DmaMap, bool),
    Unmap(DmaUnmap),
    Set {
        index: u32,
        start: u32,
        count: u32,
        action: InterruptAction,
        data: Data,
    },
    Reset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    None,
    Bool(Vec<u8>),
    EventFds(usize),
}

/// The device. Bytes of its regions read as their offset until they are written.
pub struct Device {
    pub calls: Arc<Mutex<Vec<Call>>>,
    /// Gets the replies instead of an immediate success.
    pub replies: Option<Sender<Reply>>,
    pub flags: u32,
    pub written: BTreeMap<(u32, u64), u8>,
    pub memory: File,
}

impl Device {
    pub fn new() -> Self {
        let memory = memfd_create("bar", MemfdFlags::CLOEXEC).expect("memfd_create");
        ftruncate(&memory, 0x10000).expect("ftruncate");
        Self {
            calls: Arc::default(),
            replies: None,
            flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
            written: BTreeMap::new(),
            memory: memory.into(),
        }
    }

    fn log(&self, call: Call) {
        self.calls.lock().expect("lock").push(call);
    }

    fn answer(&self, reply: Reply) {
        match &self.replies {
            None => reply.ok(),
            // A receiver that is gone drops the reply.
            Some(replies) => drop(replies.send(reply)),
        }
    }
}

impl Backend for Device {
    fn device(&self) -> DeviceInfo {
        DeviceInfo {
            regions: REGIONS,
            irqs: IRQS,
            flags: self.flags,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        assert!(index < REGIONS);
        let (size, flags) = region(index)?;
        let areas: &[Area] = if index == BAR4 { &BAR4_AREAS } else { &[] };
        let mapping = matches!(index, BAR4 | BAR5).then_some(Mapping {
            file: &self.memory,
            offset: BAR4_OFFSET,
            areas,
        });
        Some(Region {
            size,
            flags,
            mapping,
        })
    }

    fn interrupt(&self, index: u32) -> Option<InterruptInfo> {
        assert!(index < IRQS);
        let (count, flags) = interrupt(index)?;
        Some(InterruptInfo { count, flags })
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let (size, flags) = region(index).expect("present");
        assert!(flags & READ != 0 && !data.is_empty() && offset + data.len() as u64 <= size);
        if index == CONFIG && offset == 0xff {
            return Err(Errno::BUSY);
        }
        for (offset, byte) in (offset..).zip(data) {
            *byte = *self
                .written
                .get(&(index, offset))
                .unwrap_or(&(offset as u8));
        }
        Ok(())
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (size, flags) = region(index).expect("present");
        assert!(flags & WRITE != 0 && !data.is_empty() && offset + data.len() as u64 <= size);
        if index == CONFIG && offset == 0xff {
            return Err(Errno::BUSY);
        }
        self.log(Call::Write(index, offset, data.to_vec()));
        // The last bytes are enough to be told apart.
        self.written.extend(
            (offset..)
                .zip(data)
                .take(64)
                .map(|(at, byte)| ((index, at), *byte)),
        );
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap, file: Option<OwnedFd>, reply: Reply) {
        assert!(map.size > 0 && map.address.checked_add(map.size - 1).is_some());
        self.log(Call::Map(map, file.is_some()));
        drop(file);
        self.answer(reply);
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap, reply: Reply) {
        self.log(Call::Unmap(unmap));
        self.answer(reply);
    }

    fn set_interrupts(&mut self, set: SetInterrupts) -> Result<(), Errno> {
        let SetInterrupts {
            index,
            start,
            count,
            action,
            data,
        } = set;
        let (available, _) = interrupt(index).expect("present");
        assert!(start.checked_add(count).expect("in range") <= available);
        let data = match data {
            InterruptData::None => Data::None,
            InterruptData::Bool(data) => Data::Bool(data),
            InterruptData::EventFds(files) => Data::EventFds(files.len()),
        };
        self.log(Call::Set {
            index,
            start,
            count,
            action,
            data,
        });
        Ok(())
    }

    fn reset(&mut self, reply: Reply) {
        self.log(Call::Reset);
        self.answer(reply);
    }
}

/// A thread that serves one client.
pub struct Server {
    stop: OwnedFd,
    result: Receiver<Result<(), Error>>,
    pub calls: Arc<Mutex<Vec<Call>>>,
}

impl Server {
    pub fn new(socket: impl FnOnce() -> UnixStream + Send + 'static, mut device: Device) -> Self {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        let (sender, result) = channel();
        let calls = Arc::clone(&device.calls);
        let stop_of_thread = stop.try_clone().expect("duplicate");
        thread::spawn(move || {
            let result = serve(socket(), &mut device, stop_of_thread.as_fd());
            drop((device, stop_of_thread));
            // The test may have ended.
            let _ = sender.send(result);
        });
        Self {
            stop,
            result,
            calls,
        }
    }

    pub fn stop(&self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).expect("write to an eventfd");
    }

    /// The result, which has to come soon.
    pub fn end(&self) -> Result<(), Error> {
        self.result
            .recv_timeout(TIMEOUT)
            .expect("serve() does not return, or panicked")
    }

    pub fn has_ended(&self) -> bool {
        !matches!(
            self.result.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Empty)
        )
    }

    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("lock"))
    }
}

/// A message as it is on the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub id: u16,
    pub command: u16,
    /// `None`: the true size.
    pub size: Option<u32>,
    pub flags: u32,
    pub error: u32,
    pub body: Vec<u8>,
}

impl Raw {
    pub fn new(command: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            id: 77,
            command,
            size: None,
            flags: 0,
            error: 0,
            body: body.into(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let size = self.size.unwrap_or(16 + self.body.len() as u32);
        let mut bytes = Vec::new();
        bytes.extend(self.id.to_ne_bytes());
        bytes.extend(self.command.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.error.to_ne_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// A reply as it came.
#[derive(Debug)]
pub struct Answer {
    pub id: u16,
    pub command: u16,
    pub error: Option<Errno>,
    pub body: Vec<u8>,
    pub file: Option<File>,
}

/// The client's end of a connection.
pub struct Client {
    pub socket: UnixStream,
}

impl Client {
    /// A client that has not negotiated, and its server.
    pub fn connect(device: Device) -> (Self, Server) {
        let (socket, server) = UnixStream::pair().expect("socketpair");
        socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        socket.set_write_timeout(Some(TIMEOUT)).expect("timeout");
        (Self { socket }, Server::new(move || server, device))
    }

    /// A client that has negotiated, and its server.
    pub fn negotiated(device: Device) -> (Self, Server) {
        let (client, server) = Self::connect(device);
        client.negotiate();
        (client, server)
    }

    pub fn negotiate(&self) {
        assert_eq!(self.call(&Raw::new(VERSION, [0; 4]), &[]).error, None);
    }

    pub fn send(&self, message: &Raw, files: &[RawFd]) {
        self.send_bytes(&message.bytes(), files);
    }

    pub fn send_bytes(&self, bytes: &[u8], files: &[RawFd]) {
        if files.is_empty() {
            (&self.socket).write_all(bytes).expect("send");
        } else {
            let sent = self
                .socket
                .send_with_fds(&[bytes], files)
                .expect("send descriptors");
            (&self.socket).write_all(&bytes[sent..]).expect("send");
        }
    }

    pub fn receive(&self) -> Answer {
        let mut header = [0; 16];
        let (mut got, file) = self.socket.recv_with_fd(&mut header).expect("receive");
        assert_ne!(got, 0, "the server hung up");
        while got < header.len() {
            got += (&self.socket).read(&mut header[got..]).expect("receive");
        }
        let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let u32_at =
            |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let mut body = vec![0; u32_at(4) as usize - 16];
        (&self.socket).read_exact(&mut body).expect("receive");
        let error = match u32_at(8) {
            1 => {
                assert_eq!(u32_at(12), 0, "errno of a success");
                None
            }
            0x21 => {
                assert!(body.is_empty(), "an error has only a header");
                Some(Errno::from_raw_os_error(u32_at(12) as i32))
            }
            flags => panic!("a reply has flags {flags:#x}"),
        };
        Answer {
            id: u16_at(0),
            command: u16_at(2),
            error,
            body,
            file,
        }
    }

    /// Sends `message` and receives its reply.
    pub fn call(&self, message: &Raw, files: &[RawFd]) -> Answer {
        self.send(message, files);
        let answer = self.receive();
        assert_eq!((answer.id, answer.command), (message.id, message.command));
        answer
    }

    /// Checks that the next reply is that to the next message.
    pub fn assert_in_step(&self) {
        let message = Raw {
            id: 4711,
            ..Raw::new(REGION_READ, access(BAR2, 0x10, 4))
        };
        let answer = self.call(&message, &[]);
        assert_eq!(answer.error, None);
        assert_eq!(answer.body[..16], access(BAR2, 0x10, 4));
        assert_eq!(answer.body[16..], [0x10, 0x11, 0x12, 0x13]);
    }

    /// Waits until the server has sent as much as the socket takes.
    pub fn wait_until_full(&self) {
        let mut before = 0;
        loop {
            thread::sleep(Duration::from_millis(100));
            let now = rustix::io::ioctl_fionread(&self.socket).expect("FIONREAD");
            if now > 0 && now == before {
                return;
            }
            before = now;
        }
    }

    /// Checks that the server closed the connection, with nothing more to say.
    pub fn assert_closed(&self) {
        match (&self.socket).read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => panic!("the server sent something"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// Body of a region access without data.
pub fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    let mut body = offset.to_ne_bytes().to_vec();
    body.extend(region.to_ne_bytes());
    body.extend(count.to_ne_bytes());
    body
}

/// A memory file of 1 MiB.
pub fn memory() -> OwnedFd {
    let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("memfd_create");
    ftruncate(&memory, 1 << 20).expect("ftruncate");
    memory
}

/// `count` event descriptors.
pub fn events(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"))
        .collect()
}

pub fn raw(files: &[OwnedFd]) -> Vec<RawFd> {
    files.iter().map(AsRawFd::as_raw_fd).collect()
}
