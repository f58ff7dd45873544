// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `grabber-test`: tests in the guest, with the driver loaded. The exit status is 0 if all tests
//! pass; a panic says what differs.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::thread;

use grabber::protocol::pattern;
use grabber::uapi::{Buffers, Frame, IOC_INFO, IOC_POST, IOC_REGISTER, IOC_UNREGISTER, Info};
use ringbar_card_tests::{
    Driver, PAGE, TIMEOUT, Victim, pinned_pages, read_only_page, suspend_devices, wait_until,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Setter, ioctl};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const NODE: &str = "/dev/grabber0";

/// The arguments with which this program is the process that is killed, and with which it expects a
/// card that lies: `make test-all` starts that.
const VICTIM: &str = "victim";

/// The argument with which this program is a process without privileges.
const UNPRIVILEGED: &str = "unprivileged";
const LIES: &str = "lies";

/// Number of buffers of a test.
const COUNT: u32 = 8;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(VICTIM) => return victim(),
        Some(UNPRIVILEGED) => return unprivileged(),
        Some(LIES) => return lies_are_noticed(),
        _ => {}
    }
    let frame_bytes = Card::open().info().frame_bytes;
    println!("{NODE}: frames of {frame_bytes} bytes");
    let tests: [(&str, fn()); 9] = [
        ("frames arrive whole and in order", frames_arrive),
        ("frames without a buffer are counted", drops_are_counted),
        ("poll waits for a frame", poll_waits),
        ("wrong calls are refused", wrong_calls_are_refused),
        ("pinned buffers are limited", pinned_buffers_are_limited),
        ("the system sleeps with buffers posted", system_sleeps),
        ("a close ends the card's access", close_ends_access),
        ("a process is killed with buffers posted", kill_ends_access),
        (
            "the driver is unbound with buffers posted",
            unbind_ends_access,
        ),
    ];
    for (name, test) in tests {
        test();
        assert_eq!(pinned_pages(), 0, "{name}: pages are still pinned");
        println!("ok: {name}");
    }
}

/// The open card.
struct Card(File);

impl Card {
    fn open() -> Self {
        Self(File::open(NODE).unwrap_or_else(|error| panic!("{NODE}: {error}")))
    }

    fn open_nonblocking() -> Self {
        let file = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(NODE);
        Self(file.unwrap_or_else(|error| panic!("{NODE}: {error}")))
    }

    fn info(&self) -> Info {
        // SAFETY: The call fills in a structure of this size.
        let bytes = unsafe { ioctl(&self.0, Getter::<IOC_INFO, [u8; Info::SIZE]>::new()) };
        Info::from_bytes(&bytes.expect("IOC_INFO"))
    }

    fn register(&self, buffers: Buffers) -> Result<(), Errno> {
        // SAFETY: The call reads a structure of this size. The card writes to the memory only while a
        // buffer is posted.
        unsafe { ioctl(&self.0, Setter::<IOC_REGISTER, _>::new(buffers.to_bytes())) }
    }

    fn unregister(&self) -> Result<(), Errno> {
        // SAFETY: The call has no argument.
        unsafe { ioctl(&self.0, NoArg::<IOC_UNREGISTER>::new()) }
    }

    fn post(&self, buffer: u32) -> Result<(), Errno> {
        // SAFETY: The call reads a number. The card writes to the buffer from now on.
        unsafe { ioctl(&self.0, Setter::<IOC_POST, _>::new(buffer)) }
    }

    fn read(&self) -> Result<Frame, Errno> {
        let mut bytes = [0; Frame::SIZE];
        match (&self.0).read(&mut bytes) {
            Ok(read) => assert_eq!(read, Frame::SIZE),
            Err(error) => return Err(Errno::from_io_error(&error).expect("an errno")),
        }
        Ok(Frame::from_bytes(&bytes))
    }

    fn wait(&self) -> Frame {
        self.read().expect("the next frame")
    }
}

/// Memory with [`COUNT`] buffers, that begins and ends within a page. Nobody else looks at it while
/// the card may write to it.
struct Memory {
    bytes: Vec<u8>,
    buffer_bytes: usize,
}

/// What is in the memory before the card writes.
const BEFORE: u8 = 0x5a;

/// What a program makes of a frame.
const CHANGED: u8 = 0xa5;
/// Number of bytes before the first and behind the last buffer, and of those behind a frame.
const AROUND: usize = 100;

impl Memory {
    fn new(card: &Card) -> Self {
        let buffer_bytes = card.info().frame_bytes as usize + AROUND;
        let all = buffer_bytes * COUNT as usize;
        Self {
            bytes: vec![BEFORE; all + 2 * AROUND],
            buffer_bytes,
        }
    }

    fn buffers(&mut self) -> Buffers {
        Buffers {
            address: self.bytes[AROUND..].as_mut_ptr() as u64,
            bytes: self.buffer_bytes as u32,
            count: COUNT,
        }
    }

    fn buffer(&mut self, number: u32) -> &mut [u8] {
        let start = AROUND + number as usize * self.buffer_bytes;
        &mut self.bytes[start..start + self.buffer_bytes]
    }

    /// Compares a frame with the pattern, and what is behind it.
    #[track_caller]
    fn check(&mut self, frame: &Frame) {
        let buffer = self.buffer(frame.buffer);
        let (bytes, behind) = buffer.split_at(frame.bytes as usize);
        let differs = (0..bytes.len()).find(|&at| bytes[at] != pattern(frame.sequence, at));
        assert_eq!(differs, None, "{frame:?}");
        assert_eq!(crc32c::crc32c(bytes), frame.checksum, "{frame:?}");
        assert!(behind.iter().all(|&byte| byte == BEFORE), "{frame:?}");
    }

    /// Whether the card has written nothing since the memory was made or [`Self::clear`]ed.
    fn is_untouched(&self) -> bool {
        self.bytes.iter().all(|&byte| byte == BEFORE)
    }

    fn clear(&mut self) {
        self.bytes.fill(BEFORE);
    }
}

/// An open card with all buffers posted, and their memory, which has to be dropped after it.
fn grabbing() -> (Memory, Card) {
    let card = Card::open();
    let mut memory = Memory::new(&card);
    card.register(memory.buffers()).expect("IOC_REGISTER");
    for buffer in 0..COUNT {
        card.post(buffer).expect("IOC_POST");
    }
    (memory, card)
}

fn frames_arrive() {
    let (mut memory, card) = grabbing();
    // Each buffer several times, in the order in which they were posted.
    for number in 0..u64::from(5 * COUNT) {
        let frame = card.wait();
        assert_eq!(u64::from(frame.buffer), number % u64::from(COUNT));
        assert_eq!(frame.bytes, card.info().frame_bytes);
        assert_eq!(frame.sequence, number + frame.dropped, "{frame:?}");
        memory.check(&frame);
        memory.buffer(frame.buffer).fill(BEFORE);
        card.post(frame.buffer).expect("IOC_POST");
    }
    // A program may change a frame in place. The change outlives the mapping for DMA.
    let frame = card.wait();
    memory.check(&frame);
    memory.buffer(frame.buffer).fill(CHANGED);
    card.unregister().expect("IOC_UNREGISTER");
    let changed = memory.buffer(frame.buffer);
    assert!(changed.iter().all(|&byte| byte == CHANGED), "{frame:?}");
    changed.fill(BEFORE);
    let around = [
        &memory.bytes[..AROUND],
        &memory.bytes[memory.bytes.len() - AROUND..],
    ]
    .concat();
    assert!(around.iter().all(|&byte| byte == BEFORE));
    // The card begins anew.
    card.register(memory.buffers()).expect("IOC_REGISTER");
    card.post(COUNT - 1).expect("IOC_POST");
    let frame = card.wait();
    assert_eq!((frame.buffer, frame.sequence), (COUNT - 1, frame.dropped));
    memory.check(&frame);
}

fn drops_are_counted() {
    let card = Card::open();
    let mut memory = Memory::new(&card);
    card.register(memory.buffers()).expect("IOC_REGISTER");
    for buffer in (0..COUNT).rev() {
        card.post(buffer).expect("IOC_POST");
    }
    wait_until("all are filled", || card.info().dropped > 0);
    // In the order in which they were filled, and not in that of their numbers.
    let frames: Vec<_> = (0..COUNT).map(|_| card.wait()).collect();
    assert!(
        frames.is_sorted_by(|one, two| {
            one.buffer == two.buffer + 1 && one.sequence < two.sequence
        })
    );
    let last = frames.last().expect("a frame");
    // The card has no buffer, but makes frames.
    let dropped = last.dropped as u32;
    wait_until("frames are dropped", || card.info().dropped >= dropped + 3);
    card.post(0).expect("IOC_POST");
    let frame = card.wait();
    assert!(
        frame.dropped >= last.dropped + 3,
        "{frame:?} after {last:?}"
    );
    assert_eq!(
        frame.sequence - last.sequence,
        frame.dropped - last.dropped + 1
    );
    memory.check(&frame);
}

fn poll_waits() {
    let card = Card::open_nonblocking();
    let mut memory = Memory::new(&card);
    card.register(memory.buffers()).expect("IOC_REGISTER");
    assert_eq!(card.read(), Err(Errno::AGAIN));
    let ready = |timeout| {
        let mut fds = [PollFd::new(&card.0, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll");
        fds[0].revents().contains(PollFlags::IN)
    };
    assert!(
        !ready(Timespec {
            tv_sec: 0,
            tv_nsec: 0
        }),
        "no buffer is posted"
    );
    let timeout = Timespec {
        tv_sec: TIMEOUT.as_secs() as i64,
        tv_nsec: 0,
    };
    for number in 0..u64::from(COUNT) {
        card.post(3).expect("IOC_POST");
        assert!(ready(timeout), "no frame within {TIMEOUT:?}");
        let frame = card.read().expect("a frame that poll has seen");
        assert_eq!((frame.buffer, frame.sequence), (3, number + frame.dropped));
        memory.check(&frame);
        assert_eq!(card.read(), Err(Errno::AGAIN));
    }
}

fn wrong_calls_are_refused() {
    let card = Card::open();
    assert!(File::open(NODE).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::BUSY)));
    let mut memory = Memory::new(&card);
    let buffers = memory.buffers();
    let frame_bytes = card.info().frame_bytes;
    for (wrong, errno) in [
        (
            Buffers {
                count: 0,
                ..buffers
            },
            Errno::INVAL,
        ),
        (
            Buffers {
                count: 257,
                ..buffers
            },
            Errno::INVAL,
        ),
        (
            Buffers {
                bytes: frame_bytes - 1,
                ..buffers
            },
            Errno::INVAL,
        ),
        (
            Buffers {
                bytes: u32::MAX,
                ..buffers
            },
            Errno::INVAL,
        ),
        (
            Buffers {
                address: 8 * PAGE as u64,
                ..buffers
            },
            Errno::FAULT,
        ),
        (
            Buffers {
                address: u64::MAX - 1,
                ..buffers
            },
            Errno::FAULT,
        ),
        (
            Buffers {
                address: read_only_page(),
                ..buffers
            },
            Errno::FAULT,
        ),
    ] {
        assert_eq!(card.register(wrong), Err(errno), "{wrong:?}");
        assert_eq!(pinned_pages(), 0, "{wrong:?}");
    }
    assert_eq!(card.post(0), Err(Errno::INVAL));
    card.register(buffers).expect("IOC_REGISTER");
    assert_eq!(card.register(buffers), Err(Errno::BUSY));
    assert_eq!(card.post(COUNT), Err(Errno::INVAL));
    card.post(0).expect("IOC_POST");
    assert_eq!(card.post(0), Err(Errno::BUSY));
    let short = (&card.0).read(&mut [0; Frame::SIZE - 1]);
    assert!(short.is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::INVAL)));
    memory.check(&card.wait());
    // SAFETY: The driver knows no such call, which has no argument.
    let unknown = unsafe { ioctl(&card.0, NoArg::<0xd809>::new()) };
    assert_eq!(unknown, Err(Errno::NOTTY));
}

fn pinned_buffers_are_limited() {
    let program = std::env::current_exe().expect("the path of this program");
    let status = Command::new(program).arg(UNPRIVILEGED).status();
    assert!(status.expect("another process").success());
}

/// Registers as many buffers as `RLIMIT_MEMLOCK` allows, and one page more than that.
fn unprivileged() {
    let card = Card::open();
    let mut memory = Memory::new(&card);
    let buffers = memory.buffers();
    // Each buffer counts by itself, with all pages that it is in.
    let pages = (0..u64::from(COUNT)).map(|number| {
        let start = buffers.address + number * u64::from(buffers.bytes);
        let end = start + u64::from(buffers.bytes);
        end.div_ceil(PAGE as u64) - start / PAGE as u64
    });
    let all = pages.sum::<u64>() * PAGE as u64;

    let mut own = capabilities(None).expect("capget");
    own.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, own).expect("capset");
    let limit = |bytes| {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: getrlimit(Resource::Memlock).maximum,
        };
        setrlimit(Resource::Memlock, limit).expect("setrlimit");
    };
    // Neither a refusal nor an end leaves something counted.
    for _ in 0..2 {
        limit(all - 1);
        assert_eq!(card.register(buffers), Err(Errno::NOMEM));
        assert_eq!(pinned_pages(), 0);
        limit(all);
        card.register(buffers)
            .expect("IOC_REGISTER within the limit");
        card.post(0).expect("IOC_POST");
        memory.check(&card.wait());
        memory.clear();
        card.unregister().expect("IOC_UNREGISTER");
    }
}

/// Checks that the card works, and meanwhile does not write to the memory of earlier buffers.
#[track_caller]
fn check_untouched(mut earlier: Memory) {
    earlier.clear();
    let (mut memory, card) = grabbing();
    for _ in 0..COUNT {
        memory.check(&card.wait());
    }
    assert!(
        earlier.is_untouched(),
        "the card writes to memory that it does not have"
    );
}

fn close_ends_access() {
    let (memory, card) = grabbing();
    assert_ne!(pinned_pages(), 0);
    drop(card);
    assert_eq!(pinned_pages(), 0);
    check_untouched(memory);
}

/// Grabs until it is killed.
fn victim() {
    let (_memory, card) = grabbing();
    Victim::is_ready();
    // With no buffers but those that are posted, this ends with an error of the driver, or never.
    while card.read().is_ok() {}
}

fn kill_ends_access() {
    let victim = Victim::start(VICTIM);
    assert_ne!(pinned_pages(), 0);
    victim.kill();
    assert_eq!(pinned_pages(), 0);
    frames_arrive();
}

fn system_sleeps() {
    let (mut memory, card) = grabbing();
    suspend_devices();
    // Some were filled before, and the others in the same order after it.
    for number in 0..u64::from(2 * COUNT) {
        let frame = card.wait();
        assert_eq!(u64::from(frame.buffer), number % u64::from(COUNT));
        memory.check(&frame);
        memory.buffer(frame.buffer).fill(BEFORE);
        card.post(frame.buffer).expect("IOC_POST");
    }
}

/// Checks that the driver notices that the card lies about a used entry, as it does at first: never,
/// and then `id`, `not-in-flight`, `index-ahead`, `twice` and `length` of `ringbar-ci card --lies`.
/// `length` is the last, because the card continues after it: see `LIES` in the Makefile.
fn lies_are_noticed() {
    let card = Card::open();
    let mut memory = Memory::new(&card);
    card.register(memory.buffers()).expect("IOC_REGISTER");
    card.post(0).expect("IOC_POST");
    // The card has filled the buffer, but the driver gets it back only by a reset.
    wait_until("a frame is dropped", || card.info().dropped > 0);
    drop(card);
    assert_eq!(pinned_pages(), 0, "never");
    for lie in ["id", "not-in-flight", "index-ahead", "twice", "length"] {
        let card = Card::open();
        let mut memory = Memory::new(&card);
        card.register(memory.buffers()).expect("IOC_REGISTER");
        for buffer in 0..COUNT {
            // The card may have filled one already.
            assert!(
                matches!(card.post(buffer), Ok(()) | Err(Errno::IO)),
                "{lie}"
            );
        }
        let filled = (0..=COUNT).map_while(|_| card.read().ok()).count();
        assert!(
            filled <= usize::from(lie == "twice"),
            "{lie}: {filled} frames"
        );
        assert_eq!(card.read(), Err(Errno::IO), "{lie}");
        assert_eq!(card.post(0), Err(Errno::IO), "{lie}");
        drop(card);
        assert_eq!(pinned_pages(), 0, "{lie}");
    }
    // The card is honest now.
    frames_arrive();
}

fn unbind_ends_access() {
    let driver = Driver::new("grabber");
    let functions = driver.functions();
    let function = functions.first().expect("a card");
    let (memory, card) = grabbing();
    // It reads what is filled, and waits then.
    let reader = thread::spawn(move || {
        loop {
            if let Err(errno) = card.read() {
                return (card, errno);
            }
        }
    });
    driver.unbind(function);
    assert_eq!(pinned_pages(), 0);
    let (card, errno) = reader.join().expect("the reader");
    assert_eq!(errno, Errno::NODEV);
    assert_eq!(card.post(0), Err(Errno::NODEV));
    driver.bind(function);
    check_untouched(memory);
    drop(card);
}
