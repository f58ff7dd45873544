// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests to the monitor to map the device's memory
//! (vhost-user, `VHOST_USER_BACKEND_SHMEM_MAP`).
//!
//! Each connection has one thread for them, which waits for the replies. The wait has no timeout,
//! because the `vhost` crate has none. Nor does the crate give out the channel's descriptor, so the
//! thread lasts until the monitor closes the channel, also where it has closed the connection before.
//! Before it replies, the monitor sends messages of its own
//! (the new memory table) and waits until they are handled.
//!
//! The thread starts with the connection and not with the first request. A request may come from
//! any thread of the device, and a restricted one may start no threads. An example is the mapper's
//! own thread: after a restart the device asks again as soon as it has the reply to the last run.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbar_engine::Threads;
use ringbar_engine::model::{Mapped, Mapper};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

/// Id of the only shared memory region.
const REGION: u8 = 0;

/// Where a monitor accepts requests.
pub(crate) trait Channel: Clone + Send + 'static {
    /// Has the monitor map `length` bytes of `file` from `offset` on, and waits for its reply.
    fn map(&self, file: &File, offset: u64, length: u64) -> io::Result<()>;
}

/// A request of the device.
struct Request<C> {
    channel: Option<C>,
    file: File,
    offset: u64,
    length: u64,
    done: Mapped,
}

/// Sends requests to map memory to the monitor of one connection.
pub(crate) struct MonitorMapper<C = Backend> {
    channel: Mutex<Option<C>>,
    /// To the thread. `None` once the connection has ended.
    requests: Mutex<Option<Sender<Request<C>>>>,
}

impl<C> fmt::Debug for MonitorMapper<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorMapper").finish_non_exhaustive()
    }
}

impl<C: Channel> MonitorMapper<C> {
    /// Sets the channel on which the monitor accepts requests.
    pub(crate) fn set_channel(&self, channel: C) {
        *lock(&self.channel) = Some(channel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is a single assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Channel> Mapper for MonitorMapper<C> {
    fn map(&self, file: File, offset: u64, length: u64, done: Mapped) {
        let request = Request {
            channel: lock(&self.channel).clone(),
            file,
            offset,
            length,
            done,
        };
        let requests = lock(&self.requests).clone();
        // Dropped after the end of the connection, and without a lock: the device may ask again.
        let _ = requests.map(|requests| requests.send(request));
    }
}

/// The mapper of a connection with its thread. Dropping it ends the thread, after the reply to its
/// current request. The device may keep the mapper, which then maps nothing.
#[derive(Debug)]
pub(crate) struct MapperThread<C: Channel = Backend>(Arc<MonitorMapper<C>>);

impl<C: Channel> MapperThread<C> {
    /// Starts the thread. There is no channel so far.
    pub(crate) fn start(threads: &Threads) -> io::Result<Self> {
        let (requests, receiver) = channel();
        threads.spawn("mapper", move || run(&receiver))?;
        Ok(Self(Arc::new(MonitorMapper {
            channel: Mutex::default(),
            requests: Mutex::new(Some(requests)),
        })))
    }

    /// The mapper.
    pub(crate) const fn mapper(&self) -> &Arc<MonitorMapper<C>> {
        &self.0
    }
}

impl<C: Channel> Drop for MapperThread<C> {
    fn drop(&mut self) {
        let requests = lock(&self.0.requests).take();
        // Without the lock.
        drop(requests);
        *lock(&self.0.channel) = None;
    }
}

fn run<C: Channel>(requests: &Receiver<Request<C>>) {
    for request in requests {
        let Request {
            channel,
            file,
            offset,
            length,
            done,
        } = request;
        let result = match channel {
            Some(channel) => channel.map(&file, offset, length),
            None => Err(io::Error::other(
                "the monitor opened no channel for requests of the device",
            )),
        };
        done(result);
    }
}

impl Channel for Backend {
    fn map(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let request = VhostUserMMap {
            shmid: REGION,
            padding: [0; 7],
            fd_offset: offset,
            shm_offset: 0,
            len: length,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
        };
        match self.shmem_map(&request, file)? {
            0 => Ok(()),
            code => Err(io::Error::other(format!("the monitor answered {code:#x}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc::RecvTimeoutError;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// A monitor that says which thread has asked for how much, and maps all but 0 bytes.
    #[derive(Clone)]
    struct Monitor(Sender<(ThreadId, u64)>);

    impl Channel for Monitor {
        fn map(&self, _file: &File, _offset: u64, length: u64) -> io::Result<()> {
            self.0.send((thread::current().id(), length)).unwrap();
            match length {
                0 => Err(io::Error::other("nothing")),
                _ => Ok(()),
            }
        }
    }

    fn file() -> File {
        File::open("/dev/zero").unwrap()
    }

    /// The way of a device that is restarted before the monitor replies: its second request is made
    /// when the first one completes.
    #[test]
    fn the_thread_of_the_mapper_can_ask_for_more_and_starts_no_thread() {
        let (started, starts) = channel();
        let threads = Threads::with(move |name| started.send(name).unwrap());
        let thread = MapperThread::start(&threads).unwrap();
        let (sender, asked) = channel();
        thread.mapper().set_channel(Monitor(sender));

        let (done, results) = channel();
        let again = Arc::clone(thread.mapper());
        thread.mapper().map(
            file(),
            0,
            1,
            Box::new(move |first| {
                let second = done.clone();
                again.map(
                    file(),
                    0,
                    0,
                    Box::new(move |result| second.send(result.is_ok()).unwrap()),
                );
                done.send(first.is_ok()).unwrap();
            }),
        );
        let result = || results.recv_timeout(TIMEOUT).unwrap();
        assert_eq!([result(), result()], [true, false]);
        let (by, lengths): (HashSet<_>, Vec<_>) = asked.try_iter().unzip();
        assert_eq!((by.len(), lengths), (1, vec![1, 0]));
        assert!(!by.contains(&thread::current().id()));
        assert_eq!(starts.try_iter().collect::<Vec<_>>(), ["mapper"]);
    }

    #[test]
    fn without_a_channel_a_request_fails() {
        let thread = MapperThread::<Monitor>::start(&Threads::default()).unwrap();
        let (done, results) = channel();
        let done = Box::new(move |result: io::Result<()>| done.send(result).unwrap());
        thread.mapper().map(file(), 0, 1, done);
        let error = results.recv_timeout(TIMEOUT).unwrap().unwrap_err();
        assert!(error.to_string().contains("no channel"), "{error}");
    }

    #[test]
    fn the_thread_ends_with_the_connection_though_the_device_keeps_the_mapper() {
        let (kept, ended) = channel::<()>();
        // Until its thread has ended, which drops it.
        let threads = Threads::with({
            let kept = Mutex::new(Some(kept));
            move |_| KEPT.set(kept.lock().unwrap().take())
        });
        let thread = MapperThread::start(&threads).unwrap();
        let (sender, asked) = channel();
        thread.mapper().set_channel(Monitor(sender));
        let mapper = Arc::clone(thread.mapper());
        drop(thread);
        let end = ended.recv_timeout(TIMEOUT);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected));

        let (done, results) = channel::<()>();
        mapper.map(file(), 0, 1, Box::new(move |_| drop(done)));
        let result = results.recv_timeout(TIMEOUT);
        assert_eq!(result, Err(RecvTimeoutError::Disconnected));
        // The descriptor of the channel is closed as well.
        assert!(asked.recv_timeout(TIMEOUT).is_err());
        drop(mapper);
    }

    thread_local! {
        static KEPT: std::cell::Cell<Option<Sender<()>>> = const { std::cell::Cell::new(None) };
    }
}
