// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Any driver against any device, in one process and one thread: an input chooses the device, the
//! driver of each queue, and the order of everything that they, the transport and the host do.
//!
//! | module | holds |
//! |---|---|
//! | `devices` | [`Subject`]: Ringbar's device, and one that is not storage |
//! | `drivers` | [`Driver`]: an orderly one, and some that mean harm by indices, descriptors or the time of what they do |
//! | `area` | [`Area`]: the rings of a queue, and buffers |
//!
//! Whatever the other drivers do, each request of an orderly one is completed once with the right
//! answer and an interrupt, or is lost by a reset. The device comes to rest after a bounded number
//! of steps, and counts as many requests as the drivers find in their used rings.

mod area;
mod devices;
mod drivers;

use arbitrary::{Arbitrary, Unstructured};
use ringbar_engine::DeviceModel;
use ringbar_engine::testing::Stepped;
use vm_memory::GuestMemoryMmap;

use self::area::Area;
use self::devices::{AdderSubject, RingbarSubject, Subject};
use self::drivers::{Driver, Kind};

/// Number of queues of each device.
const QUEUES: u16 = 4;

/// Greatest number of actions of an input.
const MAX_ACTIONS: usize = 200;

/// Number of steps after which the device is at rest. A request of some kilobytes has as many.
const MAX_STEPS: usize = 200_000;

#[derive(Arbitrary, Debug)]
struct Setting {
    is_storage: bool,
    one_worker: bool,
    event_idx: [bool; QUEUES as usize],
    drivers: [Kind; QUEUES as usize],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    /// The driver of a queue makes a request, or what it takes for one.
    Submit(u8),
    Reap(u8),
    /// A worker does one step.
    Step(u8),
    /// The transport stops and starts a queue, as the monitor asks it to.
    StopAndGoOn(u8),
    Disable(u8),
    Enable(u8),
    /// A driver that means harm by time resets its queue only.
    Restart(u8),
    /// A driver resets the device.
    Reset,
    TakeMemory,
    GiveMemory,
    Outside,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setting) = Setting::arbitrary(&mut input) else {
        return;
    };
    match setting.is_storage {
        true => World::new(RingbarSubject::new(), &setting).run(&mut input),
        false => World::new(AdderSubject::new(), &setting).run(&mut input),
    }
}

struct World<S: Subject> {
    subject: S,
    engine: Stepped<S::Model, GuestMemoryMmap>,
    memory: GuestMemoryMmap,
    drivers: Vec<Driver>,
    /// What the device had counted before.
    requests_before: u64,
}

impl<S: Subject> World<S> {
    fn new(subject: S, setting: &Setting) -> Self {
        thread_local! {
            static MEMORY: GuestMemoryMmap = area::memory(QUEUES);
        }
        let memory = MEMORY.with(Clone::clone);
        let model = std::sync::Arc::clone(subject.model());
        assert_eq!(model.queue_count(), QUEUES);
        let counters = subject.counters();
        let requests_before = counters.get().requests;
        let engine = Stepped::new(model, counters, setting.one_worker).unwrap();
        engine.replace_memory(Some(memory.clone()));
        let kinds = setting.drivers.into_iter().zip(setting.event_idx);
        let drivers = (0..).zip(kinds).map(|(queue, (kind, event_idx))| {
            Driver::new(kind, Area::new(&memory, queue), event_idx)
        });
        let mut world = Self {
            drivers: drivers.collect(),
            subject,
            engine,
            memory,
            requests_before,
        };
        for queue in 0..QUEUES {
            let interrupt = world.drivers[usize::from(queue)].interrupt();
            world.engine.set_interrupt(queue, Some(interrupt));
            world.start(queue);
            world.engine.enable(queue, true);
        }
        world
    }

    fn start(&mut self, queue: u16) {
        self.engine.stop(queue);
        self.subject.stopped(queue);
        let driver = &mut self.drivers[usize::from(queue)];
        if driver.start() {
            self.subject.lost();
        }
        self.engine.start(queue, driver.setup);
    }

    fn run(mut self, input: &mut Unstructured<'_>) {
        for _ in 0..MAX_ACTIONS {
            if input.is_empty() {
                break;
            }
            let Ok(action) = Action::arbitrary(input) else {
                break;
            };
            self.act(action, input);
        }
        self.settle();
        for driver in &mut self.drivers {
            driver.reap();
            let is_done = !driver.is_orderly() || driver.is_idle();
            assert!(is_done, "a request was not completed");
        }
        let used: u64 = self.drivers.iter_mut().map(Driver::count_used).sum();
        let counted = self.subject.counters().get().requests - self.requests_before;
        assert_eq!(counted, used, "requests that were counted, and used");
    }

    fn act(&mut self, action: Action, input: &mut Unstructured<'_>) {
        let of = |number: u8| u16::from(number) % QUEUES;
        match action {
            Action::Submit(number) => {
                let queue = of(number);
                self.drivers[usize::from(queue)].submit(&mut self.subject, queue, input);
            }
            Action::Reap(number) => self.drivers[usize::from(of(number))].reap(),
            Action::Step(number) => {
                let worker = usize::from(number) % self.engine.workers();
                self.engine.step(worker);
            }
            Action::StopAndGoOn(number) => {
                let queue = of(number);
                let stopped = self.engine.stop(queue);
                self.subject.stopped(queue);
                let mut setup = self.drivers[usize::from(queue)].setup;
                setup.go_on_from(stopped);
                self.engine.start(queue, setup);
            }
            Action::Disable(number) => {
                self.engine.enable(of(number), false);
                self.subject.stopped(of(number));
            }
            Action::Enable(number) => self.engine.enable(of(number), true),
            Action::Restart(number) => {
                let queue = of(number);
                if self.drivers[usize::from(queue)].kind != Kind::Orderly {
                    self.start(queue);
                }
            }
            Action::Reset => {
                for queue in 0..QUEUES {
                    self.engine.stop(queue);
                }
                self.subject.model().reset();
                for queue in 0..QUEUES {
                    self.start(queue);
                }
            }
            Action::TakeMemory => self.engine.replace_memory(None),
            Action::GiveMemory => self.engine.replace_memory(Some(self.memory.clone())),
            Action::Outside => self.subject.outside(input),
        }
    }

    /// Lets the device do everything there is.
    fn settle(&mut self) {
        self.engine.replace_memory(Some(self.memory.clone()));
        for queue in 0..QUEUES {
            self.engine.enable(queue, true);
        }
        let mut quiet = 0;
        for _ in 0..MAX_STEPS {
            let mut goes_on = self.subject.release();
            for worker in 0..self.engine.workers() {
                goes_on |= self.engine.step(worker);
            }
            // A worker may have completed a request of one that was asked before it.
            quiet = if goes_on { 0 } else { quiet + 1 };
            if quiet == 3 {
                return;
            }
        }
        panic!("the device does not come to rest");
    }
}
