// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of [`crate::record`]: a queue whose process is killed before any store to the record,
//! and goes on in another process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::counters::Counters;
use crate::injection::Injection;
use crate::interrupt::{Count, InterruptSlot};
use crate::mailbox::{Contents, Mailbox};
use crate::model::ReturnedOf;
use crate::queue::{Context, Queue, QueueStatus};
use crate::record::{Record, kill};
use crate::testing::{Adder, Op, Rings};

/// Most requests at a time.
const SLOTS: u16 = Rings::SIZE / 2;

/// The device in one process.
struct Process {
    device: Arc<Adder>,
    queue: Queue<Adder>,
    mailbox: Arc<Mailbox<ReturnedOf<Adder>>>,
    interrupts: Arc<AtomicU32>,
}

impl Process {
    fn new(record: &Record) -> Self {
        let device = Adder::new(1);
        let (interrupt, interrupts) = (Arc::<InterruptSlot>::default(), Arc::default());
        interrupt.set(Some(Box::new(Count(Arc::clone(&interrupts)))));
        let record = record.queue(0);
        Self {
            queue: Queue::new(
                0,
                device.as_ref(),
                Counters::default().queue(0, 0),
                interrupt,
                Duration::ZERO,
                Injection::default(),
                record,
            ),
            mailbox: Arc::new(Mailbox::new().unwrap()),
            device,
            interrupts,
        }
    }

    fn with_context<R>(
        &mut self,
        memory: &GuestMemoryMmap,
        act: impl FnOnce(&mut Queue<Adder>, &Context<'_, Adder, GuestMemoryMmap>) -> R,
    ) -> R {
        let context = Context {
            model: self.device.as_ref(),
            memory,
            mailbox: &self.mailbox,
            polling: false,
            single: true,
        };
        act(&mut self.queue, &context)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Requests and mailbox refer to each other otherwise.
        self.mailbox.close();
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// The driver makes a request available.
    Submit(Op),
    /// The worker processes the queue.
    Process,
    /// The device answers the requests that it has kept, the youngest first or the oldest.
    Answer { youngest_first: bool, count: usize },
    /// The transport stops the queue, and has it go on.
    StopAndGoOn,
    /// The transport stops the queue.
    Stop,
    /// The transport starts it where it was stopped.
    GoOn,
    /// The driver resets the device and starts it.
    Reset,
    /// The process is killed between two changes.
    Kill,
    /// From now on, the process is killed before this store to the record.
    KillBefore(u32),
}

/// A driver, and one process of the device after the other.
struct World {
    memory: GuestMemoryMmap,
    rings: Rings,
    file: std::fs::File,
    process: Process,
    /// The answers that are due, by the buffers of their requests.
    due: Vec<Option<u8>>,
    submitted: u8,
    /// As the holder of the record knows it: the number of the run, whether it has begun, and the
    /// index at which the queue starts.
    run: u32,
    started: bool,
    base: u16,
    kills: u32,
}

impl World {
    fn new() -> Self {
        let size = Rings::AREA as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let file = Record::create().unwrap();
        let record = Record::open(file.try_clone().unwrap()).unwrap();
        let mut world = Self {
            rings: Rings::new(memory.clone(), 0),
            memory,
            process: Process::new(&record),
            file,
            due: vec![None; SLOTS.into()],
            submitted: 0,
            run: 0,
            started: false,
            base: 0,
            kills: 0,
        };
        world.new_run(0);
        world.start();
        world
    }

    fn new_run(&mut self, base: u16) {
        use std::os::unix::fs::FileExt;
        self.run += 1;
        self.base = base;
        let at = Record::run_offset(0).unwrap();
        (self.file.write_all_at(&self.run.to_ne_bytes(), at)).unwrap();
    }

    /// The messages of a start.
    fn start(&mut self) {
        self.started = true;
        let mut setup = self.rings.setup();
        setup.next_avail = self.base;
        self.act(move |process, rings, _| {
            // As the transport does: out of guest memory.
            setup.next_used = rings.used();
            let device = Arc::clone(&process.device);
            process.queue.start(&device, &setup);
            process.queue.enable(&device, true);
        });
    }

    /// Does something in the process, and starts another one if it is killed.
    fn act<R>(
        &mut self,
        act: impl FnOnce(&mut Process, &Rings, &GuestMemoryMmap) -> R,
    ) -> Option<R> {
        let (process, rings, memory) = (&mut self.process, &self.rings, &self.memory);
        match catch_unwind(AssertUnwindSafe(|| act(process, rings, memory))) {
            Ok(result) => Some(result),
            Err(payload) if payload.is::<kill::Killed>() => {
                kill::after(None);
                self.kills += 1;
                self.restart();
                None
            }
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    fn restart(&mut self) {
        let record = Record::open(self.file.try_clone().unwrap()).unwrap();
        self.process = Process::new(&record);
        if self.started {
            self.start();
        }
    }

    /// Asks again until a process has lived long enough to reply.
    fn insist<R>(&mut self, mut act: impl FnMut(&mut Process, &Rings, &GuestMemoryMmap) -> R) -> R {
        loop {
            if let Some(result) = self.act(&mut act) {
                return result;
            }
        }
    }

    fn stop(&mut self) {
        if self.started {
            let stopped = self.insist(|process, _, _| {
                let device = Arc::clone(&process.device);
                process.queue.stop(&device);
                process.queue.position()
            });
            self.started = false;
            self.new_run(stopped.next_avail);
        }
    }

    fn submit(&mut self, op: Op) {
        let Some(slot) = self.due.iter().position(Option::is_none) else {
            return;
        };
        self.submitted = self.submitted.wrapping_add(1);
        let input = [op as u8, self.submitted, 3];
        self.rings.put_request_in(slot as u16, &input, 1);
        self.due[slot] = Some(self.submitted.wrapping_add(3));
    }

    fn process_once(&mut self) -> Option<QueueStatus> {
        self.act(|process, _, memory| {
            process.with_context(memory, |queue, context| queue.process(context))
        })
    }

    fn process(&mut self) {
        while let Some(QueueStatus::More) = self.process_once() {}
        self.take_used();
    }

    fn answer(&mut self, youngest_first: bool, count: usize) {
        self.act(|process, _, memory| {
            let mut kept = process.device.take();
            if youngest_first {
                kept.reverse();
            }
            let rest = kept.split_off(count.min(kept.len()));
            for mut request in kept {
                let (_, progress) = request.parts();
                let sum = progress.sum();
                request.complete(sum);
            }
            rest.into_iter()
                .for_each(|request| process.device.keep(request));
            let mut contents = Contents::default();
            process.mailbox.take(&mut contents);
            process.with_context(memory, |queue, context| {
                queue.complete(context, contents.returned.into_iter());
            });
        });
        self.take_used();
    }

    /// The driver takes what is used.
    fn take_used(&mut self) {
        while self.rings.has_used() {
            let (slot, output) = self.rings.wait();
            let due = self.due[usize::from(slot)].take();
            let due = due.unwrap_or_else(|| panic!("buffers {slot} are used twice"));
            assert_eq!(output[0], due, "buffers {slot}");
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.rings.clear();
        self.due.fill(None);
        self.base = 0;
        self.start();
    }

    fn step(&mut self, action: Action) {
        match action {
            Action::Submit(op) => self.submit(op),
            Action::Process => self.process(),
            Action::Answer {
                youngest_first,
                count,
            } => self.answer(youngest_first, count),
            Action::StopAndGoOn => {
                self.stop();
                self.start();
            }
            Action::Stop => self.stop(),
            Action::GoOn if !self.started => self.start(),
            Action::GoOn => {}
            Action::Reset => self.reset(),
            Action::Kill => self.restart(),
            Action::KillBefore(stores) => kill::after(Some(stores)),
        }
    }

    /// Everything that was submitted is used in the end.
    fn finish(&mut self) {
        kill::after(None);
        if !self.started {
            self.start();
        }
        self.process();
        self.answer(false, usize::MAX);
        assert!(self.due.iter().all(Option::is_none), "{:?}", self.due);
    }
}

fn run(actions: impl IntoIterator<Item = Action>) -> u32 {
    let mut world = World::new();
    actions.into_iter().for_each(|action| world.step(action));
    world.finish();
    world.kills
}

/// Requests that are answered at once, later in another order, and in steps, over a stop.
const SCENARIO: &[Action] = &[
    Action::Submit(Op::Later),
    Action::Submit(Op::Now),
    Action::Submit(Op::Later),
    Action::Process,
    Action::Submit(Op::Slowly),
    Action::Submit(Op::Later),
    Action::Process,
    Action::Answer {
        youngest_first: true,
        count: 2,
    },
    Action::StopAndGoOn,
    Action::Submit(Op::Now),
    Action::Process,
    Action::Reset,
    Action::Submit(Op::Later),
    Action::Submit(Op::Now),
    Action::Submit(Op::Later),
    Action::Process,
    Action::Stop,
    Action::GoOn,
    Action::Process,
];

#[test]
fn d3_a_process_can_be_killed_before_any_store() {
    let mut first = 0;
    loop {
        let kill = [Action::KillBefore(first)];
        match run(kill.into_iter().chain(SCENARIO.iter().copied())) {
            0 => break,
            kills => assert_eq!(kills, 1),
        }
        first += 1;
    }
    assert!(first > 60, "only {first} stores");
}

/// The second process is killed as well, a number of stores after the first.
#[test]
fn d3_two_processes_can_be_killed_before_any_store() {
    for first in (0..90).step_by(2) {
        for second in (0..40).step_by(3) {
            for at in [6, 12] {
                let (before, after) = SCENARIO.split_at(at);
                let kills = [Action::KillBefore(first), Action::KillBefore(second)];
                let actions = [&kills[..1], before, &kills[1..], after].concat();
                assert!(run(actions) <= 2);
            }
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop_oneof![Just(Op::Now), Just(Op::Later), Just(Op::Slowly), Just(Op::OneStep)]
            .prop_map(Action::Submit),
        4 => Just(Action::Process),
        3 => (any::<bool>(), 0..8usize).prop_map(|(youngest_first, count)| Action::Answer {
            youngest_first,
            count,
        }),
        1 => Just(Action::StopAndGoOn),
        1 => Just(Action::Stop),
        2 => Just(Action::GoOn),
        1 => Just(Action::Reset),
        1 => Just(Action::Kill),
        3 => (0..40u32).prop_map(Action::KillBefore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn d3_nothing_is_lost_and_nothing_is_used_twice(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        run(actions);
    }
}

#[test]
fn a_killed_process_leaves_an_interrupt_to_the_next() {
    let mut world = World::new();
    world.submit(Op::Now);
    // Before the first store after the used ring: the driver has not been notified.
    world.step(Action::KillBefore(5));
    world.process();
    assert_eq!(world.kills, 1);
    let interrupts = &world.process.interrupts;
    assert!(interrupts.load(std::sync::atomic::Ordering::Relaxed) > 0);
    world.finish();
}

/// However often it is stopped and started in between, by either process.
#[test]
fn a_queue_that_is_broken_stays_broken_in_the_next_process() {
    use Action::{Kill, StopAndGoOn};
    for actions in [
        &[Kill][..],
        &[StopAndGoOn, Kill],
        &[Kill, StopAndGoOn, Kill],
    ] {
        let mut world = World::new();
        world.submit(Op::Now);
        world.process();
        world.rings.put_head(Rings::SIZE);
        world.process();
        for action in actions {
            world.step(*action);
        }
        let said = world.process.device.log.lock().unwrap().clone();
        let broken = said.iter().filter(|what| **what == (0, "broken"));
        assert_eq!(broken.count(), 1, "{actions:?}");
        let interrupts = &world.process.interrupts;
        assert!(interrupts.load(std::sync::atomic::Ordering::Relaxed) > 0);
        world.submit(Op::Now);
        world.process();
        assert_eq!(world.due.iter().flatten().count(), 1);
        world.reset();
        world.submit(Op::Now);
        world.finish();
    }
}

/// A driver that writes to the used ring breaks its queue, and nothing else.
#[test]
fn a_used_ring_that_the_driver_has_changed_breaks_the_queue() {
    for index in [2, 77, u16::MAX] {
        let mut world = World::new();
        world.submit(Op::Later);
        world.process();
        world.rings.set_used(index);
        world.restart();
        assert_eq!(world.process_once(), Some(QueueStatus::Stopped));
        assert_eq!(world.process.device.kept(), 0, "{index}");
        world.reset();
        world.submit(Op::Now);
        world.finish();
    }
}

#[test]
fn a_request_that_was_begun_once_is_known_to_the_next_process() {
    let mut world = World::new();
    world.submit(Op::Later);
    world.submit(Op::Later);
    world.process();
    let kept = world.process.device.take();
    assert!(kept[0].begin_once());
    world.restart();
    world.process();
    let kept = world.process.device.take();
    assert_eq!(kept.len(), 2);
    assert!(!kept[0].begin_once());
    assert!(kept[1].begin_once());
    for request in kept {
        world.process.device.keep(request);
    }
    world.answer(false, 2);
    // The buffers are used again, for another request.
    world.submit(Op::Later);
    world.process();
    let kept = world.process.device.take();
    assert!(kept[0].begin_once());
    kept.into_iter().for_each(|r| world.process.device.keep(r));
    world.finish();
}

#[test]
fn another_file_is_no_record() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 24).unwrap();
    assert!(Record::open(file).is_err());
}
