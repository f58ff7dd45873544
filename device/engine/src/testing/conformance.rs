// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What every transport has to do with the queues of a device.
//!
//! A transport under test implements [`Transport`], which is what a driver and a virtual machine
//! monitor can do with a device, and runs the cases:
//!
//! ```text
//! ringbar_engine::conformance!(MyTransport);
//! ```
//!
//! Each case is a device, the [`Adder`], with a driver that knows guest memory, the doorbells
//! and the interrupts, and nothing of the engine.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use super::{Adder, Op, Rings, TIMEOUT, wait_until};
use crate::ring::QueueSetup;

/// Most time that the end of a connection takes.
const END: Duration = Duration::from_millis(500);

/// For how long the workers poll in most cases.
const POLL: Duration = Duration::from_micros(200);

/// A device behind a transport, as a virtual machine sees it.
///
/// All methods return when the device has done what they say.
pub trait Transport: Send + Sync + Sized {
    /// Connects a device, whose workers poll for `poll` at a time. Guest memory is that of
    /// `queues` times [`Rings::AREA`] bytes from address 0 on. The device is not started.
    fn connect(device: Arc<Adder>, poll: Duration) -> Self;

    /// Guest memory.
    fn memory(&self) -> &GuestMemoryMmap;

    /// The driver starts the device with these queues, from the beginning.
    fn start(&self, setups: &[QueueSetup]);

    /// The monitor stops the device: it does not touch guest memory any more.
    fn stop(&self);

    /// The monitor has the device go on where it was stopped.
    fn go_on(&self);

    /// The driver resets the device, which is stopped then.
    fn reset(&self);

    /// The driver rings the doorbell of a queue.
    fn ring(&self, queue: usize);

    /// Whether a queue has interrupted since this was last asked.
    fn is_interrupted(&self, queue: usize) -> bool;

    /// Has the interrupts of a queue go somewhere else; [`Self::is_interrupted`] counts all.
    fn move_interrupt(&self, queue: usize);

    /// Gives the device guest memory anew: the same bytes behind another mapping. Returns when
    /// the device does not use the former mapping any more.
    fn replace_memory(&self);

    /// Gives the device a copy of guest memory in place of the former, which is no guest memory
    /// any more. [`Self::memory`] is the copy then.
    fn move_memory(&mut self);

    /// What the driver reads from the configuration space, or its first `length` bytes.
    fn config(&self, length: usize) -> Vec<u8>;

    /// The monitor hangs up. Returns when the device has no worker any more.
    fn end(self);
}

/// A device that runs, and its driver.
struct Machine<T: Transport> {
    transport: T,
    device: Arc<Adder>,
    queues: Vec<Rings>,
}

impl<T: Transport> Machine<T> {
    fn connect(queues: u16, poll: Duration) -> Self {
        let device = Adder::new(queues);
        let transport = T::connect(Arc::clone(&device), poll);
        let rings = |index| Rings::new(transport.memory().clone(), index);
        Self {
            queues: (0..usize::from(queues)).map(rings).collect(),
            transport,
            device,
        }
    }

    fn start(queues: u16, poll: Duration) -> Self {
        let mut machine = Self::connect(queues, poll);
        machine.start_queues();
        machine
    }

    fn start_queues(&mut self) {
        self.queues.iter_mut().for_each(Rings::clear);
        self.transport.start(&self.setups());
    }

    fn setups(&self) -> Vec<QueueSetup> {
        self.queues.iter().map(Rings::setup).collect()
    }

    fn put(&mut self, queue: usize, op: Op, bytes: &[u8]) -> u16 {
        self.queues[queue].put_request(&[&[op as u8], bytes].concat(), 1)
    }

    fn ask(&mut self, queue: usize, op: Op, bytes: &[u8]) -> u16 {
        let number = self.put(queue, op, bytes);
        self.transport.ring(queue);
        number
    }

    /// Waits for the next sum; returns the number of its request with it.
    #[track_caller]
    fn sum(&mut self, queue: usize) -> (u16, u8) {
        let (number, output) = self.queues[queue].wait();
        (number, output[0])
    }

    #[track_caller]
    fn expect(&mut self, queue: usize, op: Op, bytes: &[u8], sum: u8) {
        let number = self.ask(queue, op, bytes) % (Rings::SIZE / 2);
        assert_eq!(self.sum(queue), (number, sum));
    }

    /// Calls `act` while the device is within step `number` of a slow request. From that on,
    /// steps go on one at a time until `act` has returned. However long that takes, the request
    /// does not end before.
    fn during_step(&self, number: u32, act: impl FnOnce(&T) + Send) {
        let ((reached, reach), (open, opens)) = (channel(), sync_channel(0));
        let opens = Mutex::new(opens);
        self.device.on_step(move |step| {
            if step >= number {
                // Nobody may listen any more.
                let _ = reached.send(());
                let _ = opens.lock().map(|opens| opens.recv_timeout(TIMEOUT));
            }
        });
        let endless = Endless::new(&self.device);
        self.transport.ring(0);
        reach.recv_timeout(TIMEOUT).unwrap();
        thread::scope(|scope| {
            let acting = scope.spawn(|| act(&self.transport));
            // Ends also when it does not return: the thread is waited for.
            let (open, _endless) = (open, endless);
            wait_until("it returns", || {
                // Nobody waits for this between two steps.
                let _ = open.try_send(());
                acting.is_finished()
            });
            acting.join().unwrap();
        });
    }
}

/// While this exists, slow requests do not end.
struct Endless<'a>(&'a Adder);

impl<'a> Endless<'a> {
    fn new(device: &'a Adder) -> Self {
        device.endless.store(true, Ordering::Relaxed);
        Self(device)
    }
}

impl Drop for Endless<'_> {
    fn drop(&mut self) {
        self.0.endless.store(false, Ordering::Relaxed);
    }
}

/// Requests are answered on each queue, with an interrupt where the driver wants one, with and
/// without polling. What is there before the start is not lost.
pub fn start<T: Transport>() {
    for poll in [Duration::ZERO, POLL] {
        let mut machine = Machine::<T>::connect(3, poll);
        machine.queues.iter_mut().for_each(Rings::clear);
        let early = machine.put(1, Op::Now, &[40, 2]);
        machine.transport.ring(1);
        assert_eq!(machine.queues[1].used(), 0);
        machine.transport.start(&machine.setups());
        // The device has to look by itself: the doorbell may have rung for nobody.
        machine.transport.ring(1);
        assert_eq!(machine.sum(1), (early, 42));
        for queue in 0..3 {
            for round in 0..200u8 {
                machine.expect(queue, Op::Now, &[round, 1], round.wrapping_add(1));
            }
            while machine.transport.is_interrupted(queue) {}
            machine.ask(queue, Op::Now, &[]);
            wait_until("it interrupts", || machine.transport.is_interrupted(queue));
        }
        machine.transport.end();
    }
}

/// A driver rings only where the device asks for that; then no request is left behind.
pub fn doorbells<T: Transport>() {
    for poll in [Duration::ZERO, POLL] {
        let mut machine = Machine::<T>::start(1, poll);
        let mut rung = 0;
        for round in 0..2000u32 {
            if round % 100 == 0 {
                // However long it polls.
                wait_until("it falls asleep", || machine.queues[0].asks_for_bell());
            }
            machine.put(0, Op::Now, &[1]);
            if machine.queues[0].wants_bell() {
                machine.transport.ring(0);
                rung += 1;
            }
            machine.sum(0);
            // Long enough for the worker to fall asleep now and then, at any point of that.
            for _ in 0..round % 500 {
                std::hint::spin_loop();
            }
        }
        assert!(rung >= 20, "the bell was rung {rung} times");
        machine.transport.end();
    }
}

/// A stop waits for one step of a request, which is done when the device goes on.
pub fn ho4_stop_within_a_request<T: Transport>() {
    let mut machine = Machine::<T>::start(2, POLL);
    machine.put(0, Op::Slowly, &[1; 50]);
    machine.put(0, Op::Now, &[7]);
    machine.during_step(3, T::stop);
    assert_eq!(machine.queues[0].used(), 0);
    machine.device.on_step(|_| ());
    machine.transport.go_on();
    assert_eq!(machine.sum(0), (0, 50));
    assert_eq!(machine.sum(0), (1, 7));
    machine.expect(1, Op::Now, &[9], 9);
    machine.transport.end();
}

/// A stop does not wait for what the device has kept, and the device writes nothing after it.
/// What was not answered is done when it goes on.
pub fn ho4_stop_with_requests_in_flight<T: Transport>() {
    let mut machine = Machine::<T>::start(1, POLL);
    for byte in 0..5 {
        machine.ask(0, Op::Later, &[byte]);
    }
    machine.expect(0, Op::Now, &[42], 42);
    let kept = machine.device.wait_kept(5);
    machine.transport.stop();
    let before = machine.queues[0].contents();
    for request in kept {
        request.complete(1);
    }
    // The workers have seen them when they have given up the former memory.
    machine.transport.replace_memory();
    assert!(
        machine.queues[0].contents() == before,
        "written after a stop"
    );
    // Again and again, with nothing answered in between.
    for _ in 0..3 {
        machine.transport.go_on();
        wait_until("they are submitted again", || machine.device.kept() == 5);
        machine.transport.stop();
        assert_eq!(machine.device.kept(), 0);
    }
    machine.transport.go_on();
    for (byte, request) in (0..).zip(machine.device.wait_kept(5)) {
        request.complete(byte + 100);
        assert_eq!(machine.sum(0), (byte.into(), byte + 100));
    }
    machine.transport.end();
}

/// A driver that resets the device hears nothing of the requests before, and finds it as new.
pub fn reset<T: Transport>() {
    for overtaken in [false, true] {
        let mut machine = Machine::<T>::start(2, POLL);
        machine.ask(0, Op::Later, &[1]);
        if overtaken {
            machine.expect(0, Op::Now, &[9], 9);
        }
        let kept = machine.device.wait_kept(1);
        machine.transport.reset();
        let said = |what| machine.device.log.lock().unwrap().contains(&(0, what));
        assert!(said("reset"), "the device was not told");
        for request in kept {
            request.complete(5);
        }
        machine.start_queues();
        machine.expect(0, Op::Now, &[3], 3);
        machine.expect(1, Op::Now, &[4], 4);
        assert_eq!(machine.queues[0].used(), 1);
        assert_eq!(machine.device.kept(), 0, "submitted again");
        machine.transport.end();
    }
}

/// A queue that the driver breaks costs no other, stays broken where it goes on, and is whole
/// after a reset, and where the driver starts from the beginning without one.
pub fn broken_queue<T: Transport>() {
    for resets in [false, true] {
        let mut machine = Machine::<T>::start(2, POLL);
        machine.expect(0, Op::Now, &[1], 1);
        machine.queues[0].put_head(Rings::SIZE);
        machine.transport.ring(0);
        let device = Arc::clone(&machine.device);
        let said = |what| device.log.lock().unwrap().contains(&(0, what));
        wait_until("the queue is broken", || said("broken"));
        machine.expect(1, Op::Now, &[5], 5);
        machine.transport.stop();
        machine.transport.go_on();
        machine.ask(0, Op::Now, &[5]);
        machine.expect(1, Op::Now, &[6], 6);
        machine.transport.stop();
        assert_eq!(machine.queues[0].used(), 1);
        if resets {
            machine.transport.reset();
        }
        machine.start_queues();
        machine.expect(0, Op::Now, &[8], 8);
        machine.expect(1, Op::Now, &[9], 9);
        machine.transport.end();
    }
}

/// An interrupt that is delayed goes out before a stop.
pub fn ho13_delayed_interrupt<T: Transport>() {
    // Polled for so long that the interrupt would not come by itself.
    let mut machine = Machine::<T>::start(1, Duration::from_secs(60));
    machine.ask(0, Op::Now, &[1]);
    wait_until("the request is used", || machine.queues[0].used() == 1);
    machine.transport.stop();
    assert!(machine.transport.is_interrupted(0));
    machine.transport.end();
}

/// No interrupt is lost while the monitor has them go somewhere else.
pub fn moved_interrupt<T: Transport>() {
    let mut machine = Machine::<T>::start(1, Duration::ZERO);
    while machine.transport.is_interrupted(0) {}
    for round in 0..300 {
        let byte = round as u8;
        machine.ask(0, Op::Now, &[byte]);
        machine.transport.move_interrupt(0);
        wait_until("it interrupts", || machine.transport.is_interrupted(0));
        // Asks for the next one.
        assert_eq!(machine.sum(0).1, byte);
    }
    machine.transport.end();
}

/// Guest memory is replaced while requests come: nothing is lost.
pub fn replaced_memory<T: Transport>() {
    let mut machine = Machine::<T>::start(1, POLL);
    let (transport, queues) = (&machine.transport, &mut machine.queues);
    thread::scope(|scope| {
        let load = scope.spawn(move || {
            for round in 0..1000u32 {
                let byte = round as u8;
                queues[0].put_request(&[Op::Now as u8, byte], 1);
                transport.ring(0);
                assert_eq!(queues[0].wait().1[0], byte);
            }
        });
        while !load.is_finished() {
            transport.replace_memory();
        }
        load.join().unwrap();
    });
    machine.transport.end();
}

/// Memory that was replaced is not used any more, also for a request that the device took from
/// it.
pub fn moved_memory<T: Transport>() {
    let mut machine = Machine::<T>::start(2, POLL);
    machine.ask(1, Op::Later, &[1]);
    let kept = machine.device.wait_kept(1);
    machine.expect(0, Op::Now, &[1], 1);
    machine.transport.move_memory();
    let before: Vec<_> = machine.queues.iter().map(Rings::contents).collect();
    let memory = machine.transport.memory();
    let moved = |rings: &Rings| rings.moved_to(memory.clone());
    let moved = machine.queues.iter().map(moved).collect();
    let former = std::mem::replace(&mut machine.queues, moved);
    for request in kept {
        request.complete(77);
    }
    assert_eq!(machine.sum(1), (0, 77));
    machine.expect(0, Op::Now, &[2], 2);
    machine.expect(1, Op::Now, &[3], 3);
    machine.transport.stop();
    let after: Vec<_> = former.iter().map(Rings::contents).collect();
    assert!(after == before, "memory that was replaced was written to");
    machine.transport.end();
}

/// The driver reads the configuration space as it is, whole or its beginning, also while
/// requests are in flight and after a stop.
pub fn resize<T: Transport>() {
    let mut machine = Machine::<T>::start(1, POLL);
    machine.ask(0, Op::Later, &[1]);
    let kept = machine.device.wait_kept(1);
    for byte in 1..5 {
        let config: Vec<u8> = (byte..byte + 24).collect();
        machine.device.set_config(config.clone());
        for length in [24, 8, 1] {
            assert_eq!(machine.transport.config(length), config[..length]);
        }
        match byte {
            2 => machine.transport.stop(),
            3 => machine.transport.go_on(),
            _ => {}
        }
    }
    // It was stopped meanwhile, and the request is submitted again.
    drop(kept);
    for request in machine.device.wait_kept(1) {
        request.complete(9);
    }
    assert_eq!(machine.sum(0), (0, 9));
    machine.transport.end();
}

/// The end of a connection waits for one step, whatever is in the rings and in flight.
pub fn ho5_end<T: Transport>() {
    let mut machine = Machine::<T>::start(2, POLL);
    machine.ask(1, Op::Later, &[1]);
    let kept = machine.device.wait_kept(1);
    machine
        .device
        .on_step(|_| thread::sleep(Duration::from_millis(5)));
    for _ in 0..30 {
        machine.put(0, Op::Slowly, &[1; 50]);
    }
    machine.transport.ring(0);
    wait_until("the first begins", || {
        machine.device.steps.load(Ordering::Relaxed) > 0
    });
    let start = Instant::now();
    machine.transport.end();
    let ended = start.elapsed();
    // All of the ring would take 7.5 s.
    assert!(ended < END, "{ended:?}");
    let used: Vec<_> = machine.queues.iter().map(Rings::used).collect();
    for request in kept {
        request.complete(1);
    }
    assert_eq!(used, [0, 0]);
    assert_eq!(machine.queues[1].used(), 0);
}

/// The cases as tests of a [`Transport`].
#[macro_export]
macro_rules! conformance {
    ($transport:ty) => {
        $crate::conformance!(
            $transport:
            start,
            doorbells,
            ho4_stop_within_a_request,
            ho4_stop_with_requests_in_flight,
            reset,
            broken_queue,
            ho13_delayed_interrupt,
            moved_interrupt,
            replaced_memory,
            moved_memory,
            resize,
            ho5_end,
        );
    };
    ($transport:ty: $($case:ident,)*) => {
        $(
            #[test]
            fn $case() {
                $crate::testing::conformance::$case::<$transport>();
            }
        )*
    };
}
