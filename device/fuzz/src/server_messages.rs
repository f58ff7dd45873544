// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The connection of a vfio-user client: any bytes and descriptors.
//!
//! The input says whether a valid version message comes first, how the back end answers, and
//! then what is sent: messages of which only the size is right, or bytes without a form. The
//! back end checks that each call is possible. Each complete command must be answered exactly
//! once unless it says otherwise, and no descriptor may be left behind.

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ringbar_vfio_user::dma::{DmaMap, DmaTable, DmaUnmap};
use ringbar_vfio_user::server::{
    Area, Backend, DeviceInfo, Errno, InterruptAction, InterruptData, InterruptInfo,
    MAX_MESSAGE_BYTES, Mapping, Region, Reply, SetInterrupts, serve,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::input::Input;

/// Bytes of an input that are used. What the server sends meanwhile must fit into a socket,
/// because nobody receives before it is done.
const MAX_INPUT: usize = 4096;

/// Number of descriptors that are sent at most, of all messages and of one.
const MAX_FILES: usize = 48;
const MAX_MESSAGE_FILES: usize = 18;

const HEADER: usize = 16;
const VERSION: u16 = 1;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const NO_REPLY: u32 = 1 << 4;

/// Sizes of the regions in bytes; 0 for one that is absent.
const REGIONS: [u64; 4] = [256, 64, 0, 8192];
/// Flags: read 1, write 2.
const ACCESS: [u32; 4] = [3, 1, 3, 0];
const MAPPED: u32 = 3;

/// Number and flags of the interrupts: eventfd 1, maskable 2.
const INTERRUPTS: [(u32, u32); 3] = [(1, 3), (0, 0), (5, 1)];

struct Device {
    bar: File,
    areas: [Area; 2],
    table: DmaTable,
    /// Whether replies are given one call later.
    delays: bool,
    /// Replies that were not given yet. Dropping answers too.
    kept: Vec<Reply>,
}

impl Device {
    fn answer(&mut self, reply: Reply, result: Result<(), Errno>) {
        self.kept.clear();
        if self.delays {
            self.kept.push(reply);
        } else {
            match result {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        }
    }

    fn check(&self, region: u32, offset: u64, length: usize, access: u32) {
        let size = REGIONS[region as usize];
        assert!(length > 0);
        assert!(offset.checked_add(length as u64).unwrap() <= size);
        assert_ne!(ACCESS[region as usize] & access, 0);
    }
}

impl Backend for Device {
    fn device(&self) -> DeviceInfo {
        DeviceInfo {
            regions: REGIONS.len() as u32,
            irqs: INTERRUPTS.len() as u32,
            // VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_PCI.
            flags: 3,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        let size = REGIONS[index as usize];
        let mapping = Mapping {
            file: &self.bar,
            offset: 0,
            areas: &self.areas,
        };
        (size > 0).then(|| Region {
            size,
            flags: ACCESS[index as usize],
            mapping: (index == MAPPED).then_some(mapping),
        })
    }

    fn interrupt(&self, index: u32) -> Option<InterruptInfo> {
        let (count, flags) = INTERRUPTS[index as usize];
        (count > 0).then_some(InterruptInfo { count, flags })
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.check(region, offset, data.len(), 1);
        data.fill(0xaa);
        if offset == 13 { Err(Errno::IO) } else { Ok(()) }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.check(region, offset, data.len(), 2);
        if offset == 13 { Err(Errno::IO) } else { Ok(()) }
    }

    fn dma_map(&mut self, map: DmaMap, file: Option<OwnedFd>, reply: Reply) {
        assert!(map.size > 0);
        assert!(map.address.checked_add(map.size - 1).is_some());
        assert!(map.offset.checked_add(map.size - 1).is_some());
        let result = self.table.map(map, file, |_| false);
        self.answer(reply, result.map_err(|error| error.errno()));
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap, reply: Reply) {
        if let DmaUnmap::Range { address, size } = unmap {
            assert!(size > 0);
            assert!(address.checked_add(size - 1).is_some());
        }
        let result = self.table.unmap(unmap);
        self.answer(reply, result.map_err(|error| error.errno()));
    }

    fn set_interrupts(&mut self, set: SetInterrupts) -> Result<(), Errno> {
        let (count, flags) = INTERRUPTS[set.index as usize];
        assert!(set.start.checked_add(set.count).unwrap() <= count);
        if set.action != InterruptAction::Trigger {
            assert_ne!(flags & 2, 0);
        }
        if set.count == 0 {
            assert_eq!((set.start, set.action), (0, InterruptAction::Trigger));
            assert!(matches!(set.data, InterruptData::None));
        }
        match &set.data {
            InterruptData::None => {}
            InterruptData::Bool(bytes) => assert_eq!(bytes.len(), set.count as usize),
            InterruptData::EventFds(files) => {
                assert_ne!(flags & 1, 0);
                assert!(files.is_empty() || files.len() == set.count as usize);
            }
        }
        Ok(())
    }

    fn reset(&mut self, reply: Reply) {
        self.answer(reply, Ok(()));
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let data = &data[..data.len().min(MAX_INPUT)];
    // Takes long, so not each time.
    let open = data.len().is_multiple_of(32).then(open_files);
    connection(&mut Input::new(data));
    if let Some(open) = open {
        assert_eq!(open_files(), open, "a descriptor is left open");
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn connection(input: &mut Input<'_>) {
    let mode = input.u8();
    let bar = File::from(memfd_create("bar", MemfdFlags::CLOEXEC).unwrap());
    bar.set_len(REGIONS[MAPPED as usize]).unwrap();
    let area = |offset| Area { offset, size: 4096 };
    let mut device = Device {
        bar,
        areas: [area(0), area(4096)],
        table: DmaTable::new(),
        delays: mode & 2 != 0,
        kept: Vec::new(),
    };
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (mut client, server) = UnixStream::pair().unwrap();

    let mut sent = Vec::new();
    if mode & 1 != 0 {
        let body = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8}}\0";
        send(&client, &message(VERSION, 0, body), &[], &mut sent);
    }
    let files = [device.bar.as_fd(), stop.as_fd()];
    let mut files_left = MAX_FILES;
    while !input.is_empty() {
        let control = input.u8();
        let count = match control & 7 {
            7 => MAX_MESSAGE_FILES,
            count => count.into(),
        };
        let count = count.min(files_left);
        files_left -= count;
        let file = files[usize::from(control >> 3 & 1)];
        let bytes = if control & 0xc0 == 0xc0 {
            access(input)
        } else if control & 0x80 == 0 {
            let count = usize::from(input.u8());
            input.bytes(count).to_vec()
        } else {
            let command = u16::from(input.u8() % 20);
            let flags = input.choose(&[0, 0, NO_REPLY, 1, 1 << 5, !0]);
            let count = usize::from(input.u8());
            message(command, flags, input.bytes(count))
        };
        send(&client, &bytes, &vec![file; count], &mut sent);
    }
    client.shutdown(Shutdown::Write).unwrap();

    let result = serve(server, &mut device, stop.as_fd());
    let mut received = Vec::new();
    // A reset is one that came with the last bytes of ours unread.
    let _ = client.read_to_end(&mut received);
    // One that is still kept was not answered.
    let unanswered = result.is_ok().then_some(device.kept.len());
    check(&sent, &received, unanswered);
}

/// A read or write close to the end of a region.
fn access(input: &mut Input<'_>) -> Vec<u8> {
    let region = input.u8() % 5;
    let size = REGIONS.get(usize::from(region)).copied().unwrap_or(0);
    let offset = size.wrapping_add_signed(i64::from(input.u8() % 16) - 12);
    let count = u32::from(input.u8() % 16);
    let mut body = Vec::from(offset.to_ne_bytes());
    body.extend(u32::from(region).to_ne_bytes());
    body.extend(count.to_ne_bytes());
    let reads = input.u8().is_multiple_of(2);
    if !reads {
        body.extend(vec![1; count as usize]);
    }
    message(if reads { REGION_READ } else { REGION_WRITE }, 0, &body)
}

/// A message whose size is right. The id is that of the command, so that replies say which.
fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = (HEADER + body.len()) as u32;
    let mut message = Vec::with_capacity(size as usize);
    message.extend(command.wrapping_mul(257).to_ne_bytes());
    message.extend(command.to_ne_bytes());
    message.extend(size.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}

fn send(client: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>], sent: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    }
    let count = sendmsg(
        client,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(count, Ok(bytes.len()));
    sent.extend(bytes);
}

/// Id, command, size, flags and error of the header at the beginning of `bytes`.
fn header(bytes: &[u8]) -> Option<(u16, u16, usize, u32, u32)> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Some((half(0), half(2), word(4) as usize, word(8), word(12)))
}

/// Compares what was sent with what came back. `unanswered` commands at most have no reply, if
/// that is known.
fn check(mut sent: &[u8], mut received: &[u8], unanswered: Option<usize>) {
    // Commands that are to be answered; with what is after a wrong size, as the last.
    let mut commands = Vec::new();
    while let Some((id, command, size, flags, _)) = header(sent) {
        let is_reply = flags & 0xf == 1;
        let possible = (HEADER..=MAX_MESSAGE_BYTES).contains(&size);
        if flags & NO_REPLY == 0 && (!is_reply || !possible) && (size <= sent.len() || !possible) {
            commands.push((id, command));
        }
        if !possible || size > sent.len() {
            break;
        }
        sent = &sent[size..];
    }
    while !received.is_empty() {
        let (id, command, size, flags, error) = header(received).expect("a header is complete");
        assert!(size <= received.len(), "a reply is complete");
        assert!(size >= HEADER);
        assert!(
            matches!((flags, error), (1, 0) | (0x21, 1..)),
            "{flags:#x} {error}"
        );
        if flags == 0x21 {
            assert_eq!(size, HEADER);
        }
        let command = (id, command);
        let position = commands.iter().position(|other| *other == command);
        commands.remove(position.expect("a reply has a command"));
        received = &received[size..];
    }
    if let Some(unanswered) = unanswered {
        assert!(commands.len() <= unanswered, "not answered: {commands:?}");
    }
}
