// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that is not storage.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestMemory, Permissions};

use super::wait_until;
use crate::fault::Fault;
use crate::model::{ConfigListener, DeviceModel, RequestOf, SharedFile, SharedRegion};
use crate::request::Submission;

/// What a request to the [`Adder`] asks for: its first byte. The bytes after it are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Answer at once.
    Now = 0,
    /// Keep the request until the test takes it.
    Later = 1,
    /// Yield after each byte.
    Slowly = 2,
    /// Lose the request.
    Lose = 3,
    /// Keep the request and answer the oldest that was kept.
    Exchange = 4,
    /// Keep the request the first time, and yield after each byte when it comes again.
    LaterSlowly = 5,
    /// Answer within one step, as if it were slow.
    OneStep = 6,
    /// Keep the request until the test resumes it, and answer then.
    InTwo = 7,
}

/// A device that adds bytes up. The answer is one byte, the sum.
#[derive(Debug)]
pub struct Adder {
    queues: u16,
    kept: Mutex<Vec<RequestOf<Adder>>>,
    /// Number of steps of slow requests.
    pub steps: AtomicU32,
    /// A step of a slow request adds nothing: the request does not end.
    pub endless: AtomicBool,
    /// A request that was kept to be slow the next time has come.
    kept_slow: AtomicBool,
    /// Called within each step of a slow request.
    hook: Mutex<Option<Hook>>,
    /// Number of answers that were written.
    answers: AtomicU32,
    /// Called before each answer is written.
    answer_hook: Mutex<Option<Hook>>,
    config: Mutex<Vec<u8>>,
    config_listener: Mutex<Option<Listener>>,
    /// Bytes of the shared region, and the file behind it.
    shared: Mutex<Option<(u64, SharedFile)>>,
    /// What the engine said of queues, and "reset" of number 0.
    pub log: Mutex<Vec<(u16, &'static str)>>,
}

struct Hook(Box<dyn Fn(u32) + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

struct Listener(ConfigListener);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// What the adder keeps with a request.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: Vec<u8>,
    sum: u8,
}

impl Progress {
    /// The sum of all bytes.
    pub fn sum(&self) -> u8 {
        let bytes = self.bytes.iter().skip(1);
        bytes.fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }
}

impl Adder {
    /// With so many queues.
    pub fn new(queues: u16) -> Arc<Self> {
        Arc::new(Self {
            queues,
            kept: Mutex::default(),
            steps: AtomicU32::new(0),
            endless: AtomicBool::new(false),
            kept_slow: AtomicBool::new(false),
            hook: Mutex::default(),
            answers: AtomicU32::new(0),
            answer_hook: Mutex::default(),
            config: Mutex::new(vec![0; 24]),
            config_listener: Mutex::default(),
            shared: Mutex::default(),
            log: Mutex::default(),
        })
    }

    /// Takes the requests that were kept.
    pub fn take(&self) -> Vec<RequestOf<Self>> {
        std::mem::take(&mut self.kept.lock().unwrap())
    }

    /// Keeps a request that was taken.
    pub fn keep(&self, request: RequestOf<Self>) {
        self.kept.lock().unwrap().push(request);
    }

    /// How many requests are kept.
    pub fn kept(&self) -> usize {
        self.kept.lock().unwrap().len()
    }

    /// Takes the requests that were kept, once there are `count`.
    #[track_caller]
    pub fn wait_kept(&self, count: usize) -> Vec<RequestOf<Self>> {
        wait_until("requests are kept", || {
            self.kept.lock().unwrap().len() >= count
        });
        self.take()
    }

    /// Has `hook` called with the number of each step of slow requests.
    pub fn on_step(&self, hook: impl Fn(u32) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Hook(Box::new(hook)));
    }

    /// Has `hook` called with the number of each answer before it is written.
    pub fn on_answer(&self, hook: impl Fn(u32) + Send + 'static) {
        *self.answer_hook.lock().unwrap() = Some(Hook(Box::new(hook)));
    }

    /// Changes the configuration space.
    pub fn set_config(&self, config: Vec<u8>) {
        *self.config.lock().unwrap() = config;
    }

    /// Changes the configuration space, and tells the transport.
    pub fn announce_config(&self, config: Vec<u8>) {
        self.set_config(config);
        if let Some(listener) = &*self.config_listener.lock().unwrap() {
            (listener.0)();
        }
    }

    /// Gives the device a shared region of `bytes` bytes, before it is connected.
    pub fn share(&self, bytes: u64, file: SharedFile) {
        *self.shared.lock().unwrap() = Some((bytes, file));
    }

    fn step(&self) {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(hook) = &*self.hook.lock().unwrap() {
            (hook.0)(step);
        }
    }

    fn note(&self, queue: u16, what: &'static str) {
        self.log.lock().unwrap().push((queue, what));
    }
}

impl DeviceModel for Adder {
    type Queue = ();
    type Scratch = Progress;
    type Outcome = u8;

    const OPERATIONS: &'static [&'static str] = &["now", "later"];

    fn operation(&self, request: &RequestOf<Self>) -> Option<usize> {
        let op = *request.scratch().bytes.first()?;
        [Op::Now, Op::Later]
            .iter()
            .position(|known| *known as u8 == op)
    }

    fn queue_count(&self) -> u16 {
        self.queues
    }

    fn is_polled(&self, _queue: u16) -> bool {
        true
    }

    fn max_buffers(&self, _queue: u16) -> usize {
        4
    }

    fn queue(&self, _queue: u16) {}

    fn submit<M: GuestMemory<Bitmap = ()>>(
        &self,
        (): &mut (),
        memory: &M,
        mut request: RequestOf<Self>,
    ) -> Submission<Progress, u8> {
        let resumed = request.is_resumed();
        let (buffers, progress) = request.parts();
        let [input, .., answer] = buffers else {
            return Submission::Fault(request, Fault::NoAnswer);
        };
        if input.writable || !answer.writable || input.len == 0 {
            return Submission::Fault(request, Fault::NoAnswer);
        }
        if !resumed {
            *progress = Progress::default();
            // Before there is memory for it.
            let length = input.len as usize;
            if !memory.check_range(input.addr, length, Permissions::Read) {
                return Submission::Fault(request, Fault::Address);
            }
            progress.bytes.resize(length, 0);
            if memory.read_slice(&mut progress.bytes, input.addr).is_err() {
                return Submission::Fault(request, Fault::Address);
            }
        }
        let op = progress.bytes[0];
        let sum = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
        };
        if op == Op::Later as u8 || op == Op::InTwo as u8 && !resumed {
            self.kept.lock().unwrap().push(request);
            return Submission::Deferred;
        }
        if op == Op::Exchange as u8 {
            let mut kept = self.kept.lock().unwrap();
            kept.push(request);
            if kept.len() == 1 {
                return Submission::Deferred;
            }
            return Submission::Completed(kept.remove(0), 77);
        }
        if op == Op::Lose as u8 {
            drop(request);
            return Submission::Deferred;
        }
        if op == Op::LaterSlowly as u8 && !self.kept_slow.swap(true, Ordering::Relaxed) {
            self.kept.lock().unwrap().push(request);
            return Submission::Deferred;
        }
        if op == Op::OneStep as u8 || op == Op::InTwo as u8 {
            self.step();
        }
        if op != Op::Slowly as u8 && op != Op::LaterSlowly as u8 {
            let sum = sum(&progress.bytes[1..]);
            return Submission::Completed(request, sum);
        }
        self.step();
        if self.endless.load(Ordering::Relaxed) {
            return Submission::Yielded(request);
        }
        match progress.bytes.pop_if(|_| resumed) {
            Some(byte) if progress.bytes.len() > 1 => {
                progress.sum = progress.sum.wrapping_add(byte);
                Submission::Yielded(request)
            }
            Some(byte) => {
                let sum = progress.sum.wrapping_add(byte);
                Submission::Completed(request, sum)
            }
            None => Submission::Yielded(request),
        }
    }

    fn finish<M: GuestMemory<Bitmap = ()>>(
        &self,
        (): &mut (),
        memory: &M,
        request: &mut RequestOf<Self>,
        sum: u8,
    ) -> Result<u32, Fault> {
        let number = self.answers.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(hook) = &*self.answer_hook.lock().unwrap() {
            (hook.0)(number);
        }
        let answer = request.buffers().last().ok_or(Fault::NoAnswer)?;
        memory
            .write_obj(sum, answer.addr)
            .map_err(|_| Fault::Address)?;
        Ok(1)
    }

    fn dropped(&self) -> u8 {
        u8::MAX
    }

    fn queue_started(&self, queue: u16) {
        self.note(queue, "started");
    }

    fn queue_stopped(&self, queue: u16) {
        self.note(queue, "stopped");
        let stale: Vec<_> = self
            .kept
            .lock()
            .unwrap()
            .extract_if(.., |request| request.queue() == queue)
            .collect();
        drop(stale);
    }

    fn queue_broken(&self, queue: u16, _fault: Fault) {
        self.note(queue, "broken");
    }

    fn config(&self) -> Vec<u8> {
        self.config.lock().unwrap().clone()
    }

    fn reset(&self) {
        self.note(0, "reset");
    }

    fn shared_region(&self) -> Option<SharedRegion> {
        let shared = self.shared.lock().unwrap();
        let (bytes, _) = shared.as_ref()?;
        Some(SharedRegion { bytes: *bytes })
    }

    fn shared_file(&self) -> Option<SharedFile> {
        let shared = self.shared.lock().unwrap();
        let (_, shared) = shared.as_ref()?;
        Some(SharedFile {
            file: shared.file.try_clone().unwrap(),
            ..*shared
        })
    }

    fn set_config_listener(&self, listener: ConfigListener) {
        *self.config_listener.lock().unwrap() = Some(Listener(listener));
    }
}
