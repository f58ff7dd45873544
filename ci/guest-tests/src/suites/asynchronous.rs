// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many requests at once, by Linux AIO and io_uring.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes, expect_errno};
use crate::method::Direction;
use crate::pattern::{self, Random};
use crate::sys::{self, AioContext, AioOperation, Buffers, IoVec, Region, Ring, UringOperation};
use crate::{check, check_eq};

/// Requests in flight.
const DEPTH: usize = 32;

/// Bytes of each request in the plain depth tests.
const BLOCK: usize = 4096;

/// How long results may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "async",
        about: "many requests at once, by Linux AIO and io_uring",
        cases: vec![
            Case::new("b6_aio_depth_32", aio_depth),
            Case::new("b6_aio_random_window", aio_window),
            Case::new("b6_aio_vectored_depth_32", aio_vectored),
            Case::new("b6_aio_eventfd", aio_eventfd),
            Case::new("b6_aio_more_than_the_ring_holds", aio_many),
            Case::new("b5_aio_errors_come_as_events", aio_errors),
            Case::new("b8_uring_depth_32", uring_depth),
            Case::new("b8_uring_registered_buffers_depth_32", uring_fixed),
            Case::new("b8_uring_registered_file", uring_registered_file),
            Case::new("b8_uring_on_worker_threads", uring_workers),
            Case::new("b8_uring_submits_inline", uring_inline),
            Case::new("b8_uring_linked_write_and_read", uring_linked),
            Case::new("b8_uring_errors_come_as_results", uring_errors),
            Case::new("b8_uring_random_window", uring_window),
            Case::new("b10_exit_with_aio_in_flight", exit_with_aio),
            Case::new("b10_exit_with_uring_in_flight", exit_with_uring),
            Case::new("b10_unmap_with_io_in_flight", unmap_in_flight),
        ],
    }
}

/// What most tests need.
struct Bench {
    file: File,
    bar: Region,
    memory: Region,
}

impl Bench {
    /// With this much memory for buffers.
    fn new(context: &Context, length: usize) -> Verdict<Self> {
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(length)?,
        })
    }

    /// Buffer number `i`.
    fn block(&self, i: usize) -> IoVec {
        self.memory.buffer(i * BLOCK, BLOCK)
    }

    /// Puts test data of its own into each of the buffers.
    fn fill_blocks(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.memory.store(i * BLOCK, data);
        }
    }

    /// Where in the device buffer number `i` goes: not in order, not aligned.
    fn place(i: usize) -> u64 {
        ((i * 7) % DEPTH) as u64 * (BLOCK as u64 + 513) + 3
    }

    /// Looks for the data of each buffer in the device.
    fn expect_in_device(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.bar.load(Self::place(i) as usize, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in the device"))?;
        }
        Ok(())
    }

    /// Puts test data into the device and clears the buffers.
    fn fill_device(&self, seed: u64) {
        for i in 0..DEPTH {
            let data = pattern::bytes(seed + i as u64, BLOCK);
            self.bar.store(Self::place(i) as usize, data);
        }
        self.memory.fill(0, DEPTH * BLOCK, 0);
    }

    /// Looks for the device's data in each buffer.
    fn expect_in_memory(&self, seed: u64) -> Verdict {
        for i in 0..DEPTH {
            let seen = self.memory.load(i * BLOCK, BLOCK);
            let data = pattern::bytes(seed + i as u64, BLOCK);
            expect_bytes(&seen, data, &format!("block {i} in memory"))?;
        }
        Ok(())
    }
}

/// Checks that each tag below `count` came once, with this many bytes.
fn expect_results(
    results: Vec<(u64, std::io::Result<usize>)>,
    count: usize,
    bytes: usize,
) -> Verdict {
    let mut seen = vec![false; count];
    check_eq!(results.len(), count, "number of results");
    for (tag, result) in results {
        let moved = result.during(|| format!("request {tag}"))?;
        check_eq!(moved, bytes, "bytes of request {tag}");
        let first = seen
            .get_mut(tag as usize)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        check!(first, "request {tag} ended twice or was never made");
    }
    Ok(())
}

fn aio_depth(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    b.fill_blocks(1000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pwrite(&b.file, b.block(i), Bench::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&writes)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_device(1000)?;

    b.fill_device(2000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pread(&b.file, b.block(i), Bench::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&reads)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_memory(2000)
}

/// Splits buffer `i` into three parts.
fn split(b: &Bench, i: usize) -> [IoVec; 3] {
    let at = i * BLOCK;
    [
        b.memory.buffer(at, 1),
        b.memory.buffer(at + 1, 2047),
        b.memory.buffer(at + 2048, BLOCK - 2048),
    ]
}

fn aio_vectored(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    let lists: Vec<_> = (0..DEPTH).map(|i| split(&b, i)).collect();
    b.fill_blocks(3000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pwritev(&b.file, &lists[i], Bench::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&writes)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_device(3000)?;

    b.fill_device(4000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::preadv(&b.file, &lists[i], Bench::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&reads)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_memory(4000)
}

/// An engine, as far as [`window`] needs it.
trait Engine {
    /// Starts one transfer; returns how many were taken.
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize>;

    /// Waits for one result.
    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>>;
}

impl Engine for AioContext {
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize> {
        let operation = match direction {
            Direction::Read => AioOperation::pread(file, buffer, offset),
            Direction::Write => AioOperation::pwrite(file, buffer, offset),
        };
        AioContext::submit(self, &[operation.tag(tag)])
    }

    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>> {
        self.results(1, 1, PATIENCE)
    }
}

impl Engine for Ring {
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize> {
        let buffers = Buffers::One(buffer);
        let operation = match direction {
            Direction::Read => UringOperation::read(file, buffers, offset),
            Direction::Write => UringOperation::write(file, buffers, offset),
        };
        Ring::submit(self, &[operation.tag(tag)])
    }

    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>> {
        self.results(1, PATIENCE)
    }
}

/// Number of requests that [`window`] keeps in flight.
const WIDTH: usize = 8;

/// Range of the device, and of memory, that belongs to one of them.
const SLOT: usize = 256 << 10;

/// Keeps requests of random size and place in flight, each slot writing and
/// then reading back what it wrote.
fn window(b: &Bench, engine: &mut dyn Engine) -> Verdict {
    const ROUNDS: u64 = 200;

    /// What a slot has in flight.
    #[derive(Clone, Copy)]
    struct Request {
        direction: Direction,
        place: usize,
        length: usize,
        seed: u64,
    }

    let submit = |engine: &mut dyn Engine, slot: usize, request: Request| -> Verdict {
        let buffer = b.memory.buffer(request.place, request.length);
        let offset = request.place as u64;
        let taken = engine.submit(slot as u64, request.direction, &b.file, buffer, offset)?;
        check_eq!(taken, 1, "operations taken");
        Ok(())
    };
    let mut random = Random::new(42);
    let mut next = |slot: usize, seed: u64| {
        let length = 1 + random.below(SLOT as u64 / 2) as usize;
        let place = slot * SLOT + random.below((SLOT - length) as u64) as usize;
        b.memory.store(place, pattern::bytes(seed, length));
        Request {
            direction: Direction::Write,
            place,
            length,
            seed,
        }
    };

    let mut slots = Vec::new();
    for slot in 0..WIDTH {
        let request = next(slot, slot as u64);
        submit(engine, slot, request)?;
        slots.push(request);
    }
    let mut finished = 0;
    while finished < ROUNDS {
        let results = engine.wait()?;
        check!(!results.is_empty(), "no result in time");
        for (tag, result) in results {
            let slot = tag as usize;
            let Some(request) = slots.get_mut(slot) else {
                return Err(Stop::Failed(format!("a result for slot {slot}")));
            };
            let moved = result.during(|| format!("slot {slot}"))?;
            check_eq!(moved, request.length, "bytes of slot {slot}");
            let data = pattern::bytes(request.seed, request.length);
            if request.direction == Direction::Write {
                let seen = b.bar.load(request.place, request.length);
                expect_bytes(&seen, data, "in the device")?;
                b.memory.fill(request.place, request.length, 0);
                request.direction = Direction::Read;
            } else {
                let seen = b.memory.load(request.place, request.length);
                expect_bytes(&seen, data, "read back")?;
                finished += 1;
                *request = next(slot, 1000 + finished);
            }
            submit(engine, slot, *request)?;
        }
    }
    for _ in 0..WIDTH {
        let results = engine.wait()?;
        check_eq!(results.len(), 1, "results at the end");
    }
    Ok(())
}

fn aio_window(context: &Context) -> Verdict {
    let b = Bench::new(context, WIDTH * SLOT)?;
    window(&b, &mut AioContext::new(WIDTH as u32)?)
}

fn uring_window(context: &Context) -> Verdict {
    let b = Bench::new(context, WIDTH * SLOT)?;
    window(&b, &mut Ring::new(WIDTH as u32)?)
}

fn aio_eventfd(context: &Context) -> Verdict {
    const REQUESTS: usize = 5;

    let b = Bench::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    let eventfd = sys::eventfd()?;
    b.fill_blocks(5000);
    let writes: Vec<_> = (0..REQUESTS)
        .map(|i| {
            AioOperation::pwrite(&b.file, b.block(i), Bench::place(i))
                .tag(i as u64)
                .notify(eventfd.as_fd())
        })
        .collect();
    check_eq!(aio.submit(&writes)?, REQUESTS, "operations taken");
    let mut signalled = 0;
    while signalled < REQUESTS as u64 {
        let more = sys::eventfd_wait(&eventfd, PATIENCE)?;
        check!(more > 0, "only {signalled} signals for {REQUESTS} requests");
        signalled += more;
    }
    check_eq!(signalled, REQUESTS as u64, "signals");
    // All of them are there by now.
    let results = aio.results(REQUESTS, REQUESTS, Duration::ZERO)?;
    expect_results(results, REQUESTS, BLOCK)
}

fn aio_many(context: &Context) -> Verdict {
    /// More than the entries of all queues together.
    const REQUESTS: usize = 2048;
    const LENGTH: usize = 512;

    let b = Bench::new(context, REQUESTS * LENGTH)?;
    let aio = AioContext::new(REQUESTS as u32)?;
    let data = pattern::bytes(6000, REQUESTS * LENGTH);
    b.memory.store(0, data);
    let writes: Vec<_> = (0..REQUESTS)
        .map(|i| {
            let buffer = b.memory.buffer(i * LENGTH, LENGTH);
            AioOperation::pwrite(&b.file, buffer, (i * LENGTH) as u64).tag(i as u64)
        })
        .collect();
    let mut taken = 0;
    while taken < REQUESTS {
        let more = aio.submit(&writes[taken..])?;
        check!(more > 0, "only {taken} of {REQUESTS} operations taken");
        taken += more;
    }
    let results = aio.results(REQUESTS, REQUESTS, PATIENCE)?;
    expect_results(results, REQUESTS, LENGTH)?;
    expect_bytes(&b.bar.load(0, data.len()), data, "the device")
}

/// Requests that must fail, and with what.
fn bad_requests(context: &Context) -> [(Direction, IoVec, u64, Result<usize, i32>); 4] {
    let end = context.size();
    [
        (Direction::Read, IoVec::null(BLOCK), 0, Err(libc::EFAULT)),
        (Direction::Write, IoVec::null(BLOCK), 0, Err(libc::EFAULT)),
        (Direction::Write, IoVec::null(1), end, Err(libc::ENOSPC)),
        (Direction::Read, IoVec::null(1), end, Ok(0)),
    ]
}

/// A request that must fail, followed by one that must not.
fn expect_failures(context: &Context, engine: &mut dyn Engine) -> Verdict {
    let b = Bench::new(context, BLOCK)?;
    let good = b.memory.buffer(0, BLOCK);
    for (direction, mut buffer, offset, expected) in bad_requests(context) {
        if expected != Err(libc::EFAULT) {
            buffer = b.memory.buffer(0, buffer.len());
        }
        let what = format!("{direction:?} of {} bytes at {offset}", buffer.len());
        // An error may come at once or later, but it must be the right one.
        let result = match engine.submit(7, direction, &b.file, buffer, offset) {
            Ok(_) => {
                let results = engine.wait()?;
                check_eq!(results.len(), 1, "{what}: results");
                results
                    .into_iter()
                    .next()
                    .map_or(Ok(0), |(_, result)| result)
            }
            Err(error) => Err(error),
        };
        match expected {
            Ok(bytes) => check_eq!(result.during(|| what.clone())?, bytes, "{what}"),
            Err(errno) => expect_errno(result, &[errno], &what)?,
        }
        engine.submit(8, direction, &b.file, good, 0)?;
        expect_results_of_one(engine.wait()?, 8, BLOCK)?;
    }
    Ok(())
}

fn expect_results_of_one(
    results: Vec<(u64, std::io::Result<usize>)>,
    tag: u64,
    bytes: usize,
) -> Verdict {
    check_eq!(results.len(), 1, "number of results");
    for (found, result) in results {
        check_eq!(found, tag, "tag of the result");
        check_eq!(result?, bytes, "bytes moved");
    }
    Ok(())
}

fn aio_errors(context: &Context) -> Verdict {
    expect_failures(context, &mut AioContext::new(4)?)
}

fn uring_errors(context: &Context) -> Verdict {
    expect_failures(context, &mut Ring::new(4)?)
}

fn uring_depth(context: &Context) -> Verdict {
    uring_rounds(
        context,
        |b, i| Buffers::One(b.block(i)),
        |operation| operation,
    )
}

fn uring_fixed(context: &Context) -> Verdict {
    let place = |b: &Bench, i| Buffers::Registered(b.block(i), 0);
    uring_rounds(context, place, |operation| operation)
}

fn uring_workers(context: &Context) -> Verdict {
    let place = |b: &Bench, i| Buffers::One(b.block(i));
    uring_rounds(context, place, UringOperation::on_worker)
}

/// Writes and reads at full depth, with buffers and flags as the caller says.
fn uring_rounds(
    context: &Context,
    buffers: impl Fn(&Bench, usize) -> Buffers<'static>,
    adapt: impl Fn(UringOperation<'static>) -> UringOperation<'static>,
) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    ring.register_buffers(&[&b.memory])?;
    b.fill_blocks(7000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| {
            let operation = UringOperation::write(&b.file, buffers(&b, i), Bench::place(i));
            adapt(operation.tag(i as u64))
        })
        .collect();
    check_eq!(ring.submit(&writes)?, DEPTH, "operations taken");
    expect_results(ring.results(DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_device(7000)?;

    b.fill_device(8000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| {
            let operation = UringOperation::read(&b.file, buffers(&b, i), Bench::place(i));
            adapt(operation.tag(i as u64))
        })
        .collect();
    check_eq!(ring.submit(&reads)?, DEPTH, "operations taken");
    expect_results(ring.results(DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
    b.expect_in_memory(8000)
}

fn uring_registered_file(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(4)?;
    ring.register_files(&[&b.file])?;
    b.fill_blocks(9000);
    let write = UringOperation::write_registered_file(0, Buffers::One(b.block(0)), 77);
    check_eq!(ring.run(&write)?, BLOCK, "bytes written");
    expect_bytes(
        &b.bar.load(77, BLOCK),
        pattern::bytes(9000, BLOCK),
        "the device",
    )?;
    let read = UringOperation::read_registered_file(0, Buffers::One(b.block(1)), 77);
    check_eq!(ring.run(&read)?, BLOCK, "bytes read");
    let seen = b.memory.load(BLOCK, BLOCK);
    expect_bytes(&seen, pattern::bytes(9000, BLOCK), "the buffer")
}

/// Number of io_uring worker threads of this process.
fn workers() -> Verdict<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let comm = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        if comm.starts_with("iou-wrk") {
            count += 1;
        }
    }
    Ok(count)
}

fn uring_inline(context: &Context) -> Verdict {
    // In a process of its own: workers of another test would still be around.
    let child = sys::fork(|| match count_workers(context) {
        Ok(()) => 0,
        Err(stop) => {
            eprintln!("{stop:?}");
            1
        }
    })?;
    check_eq!(child.wait(PATIENCE)?, Ok(0), "end of the process");
    Ok(())
}

fn count_workers(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    for round in 0..20 {
        b.fill_blocks(round);
        let writes: Vec<_> = (0..DEPTH)
            .map(|i| {
                let buffer = Buffers::One(b.block(i));
                UringOperation::write(&b.file, buffer, Bench::place(i)).tag(i as u64)
            })
            .collect();
        check_eq!(ring.submit(&writes)?, DEPTH, "operations taken");
        expect_results(ring.results(DEPTH, PATIENCE)?, DEPTH, BLOCK)?;
        // A worker stays around for a while, so it cannot be missed.
        check_eq!(workers()?, 0, "worker threads after round {round}");
    }
    Ok(())
}

fn uring_linked(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(8)?;
    for seed in 0..50 {
        let data = pattern::bytes(seed, BLOCK);
        b.memory.store(0, data);
        b.memory.fill(BLOCK, BLOCK, 0);
        let write = UringOperation::write(&b.file, Buffers::One(b.block(0)), 999).tag(0);
        let read = UringOperation::read(&b.file, Buffers::One(b.block(1)), 999).tag(1);
        check_eq!(ring.submit(&[write.linked(), read])?, 2, "operations taken");
        expect_results(ring.results(2, PATIENCE)?, 2, BLOCK)?;
        expect_bytes(&b.memory.load(BLOCK, BLOCK), data, "what was read")?;
    }
    Ok(())
}

/// Size of requests that are still in flight when their owner goes.
const LONG: usize = 1 << 20;

/// Lets processes exit with requests in flight, then looks whether the device
/// still works.
fn exit_in_flight(context: &Context, start: impl Fn(&Bench) -> Verdict) -> Verdict {
    const PROCESSES: usize = 20;
    for number in 0..PROCESSES {
        let child = sys::fork(|| {
            let begin = || -> Verdict {
                let b = Bench::new(context, 8 * LONG)?;
                start(&b)?;
                // Without running any destructor, which would wait.
                sys::exit_now(0)
            };
            i32::from(begin().is_err())
        })?;
        let end = child
            .wait(PATIENCE)
            .during(|| format!("waiting for process {number}"))?;
        check_eq!(end, Ok(0), "end of process {number}");
    }
    let b = Bench::new(context, DEPTH * BLOCK)?;
    window_after(&b)
}

/// A few requests that must simply work.
fn window_after(b: &Bench) -> Verdict {
    for seed in 0..10 {
        let data = pattern::bytes(seed, BLOCK);
        b.memory.store(0, data);
        let offset = seed * 100_003;
        check_eq!(
            sys::pwrite(&b.file, b.block(0), offset)?,
            BLOCK,
            "bytes written"
        );
        expect_bytes(&b.bar.load(offset as usize, BLOCK), data, "afterwards")?;
    }
    Ok(())
}

fn exit_with_aio(context: &Context) -> Verdict {
    exit_in_flight(context, |b| {
        let aio = AioContext::new(8)?;
        let operations: Vec<_> = (0..8)
            .map(|i| {
                let buffer = b.memory.buffer(i * LONG, LONG);
                let offset = (i * LONG) as u64;
                if i % 2 == 0 {
                    AioOperation::pwrite(&b.file, buffer, offset)
                } else {
                    AioOperation::pread(&b.file, buffer, offset)
                }
            })
            .collect();
        check_eq!(aio.submit(&operations)?, 8, "operations taken");
        sys::exit_now(0)
    })
}

fn exit_with_uring(context: &Context) -> Verdict {
    exit_in_flight(context, |b| {
        let mut ring = Ring::new(8)?;
        let operations: Vec<_> = (0..8)
            .map(|i| {
                let buffer = Buffers::One(b.memory.buffer(i * LONG, LONG));
                let offset = (i * LONG) as u64;
                if i % 2 == 0 {
                    UringOperation::write(&b.file, buffer, offset)
                } else {
                    UringOperation::read(&b.file, buffer, offset)
                }
            })
            .collect();
        check_eq!(ring.submit(&operations)?, 8, "operations taken");
        sys::exit_now(0)
    })
}

fn unmap_in_flight(context: &Context) -> Verdict {
    let b = Bench::new(context, DEPTH * BLOCK)?;
    for round in 0..10 {
        let data = pattern::bytes(round, LONG);
        let source = Region::anonymous(LONG)?;
        source.store(0, data);
        let target = Region::anonymous(LONG)?;
        let aio = AioContext::new(2)?;
        let operations = [
            AioOperation::pwrite(&b.file, source.buffer(0, LONG), 0).tag(0),
            AioOperation::pread(&b.file, target.buffer(0, LONG), LONG as u64).tag(1),
        ];
        check_eq!(aio.submit(&operations)?, 2, "operations taken");
        drop(source);
        drop(target);
        expect_results(aio.results(2, 2, PATIENCE)?, 2, LONG)?;
        // The device got the bytes from before, whoever has the pages now.
        expect_bytes(&b.bar.load(0, LONG), data, "the device")?;
    }
    Ok(())
}
