// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of the process, and its event loop.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use tracing::{debug, error, info, warn};

use crate::channel::Channel;
use crate::handover::{self, FromWorker, StartRef};
use crate::restarts::{MAX_CRASHES, Restarts, WINDOW};
use crate::serving::Serving;
use crate::session::{Runs, Session};
use crate::worker::{Program, Worker, timespec};

/// Options of a supervisor.
#[derive(Debug)]
pub struct Options {
    /// Arguments of the workers.
    pub arguments: Vec<OsString>,
    /// Whether to accept another connection after one has ended.
    pub keep_running: bool,
}

/// Descriptors that become readable when the process gets a signal.
#[derive(Debug)]
pub struct Signals {
    /// To end.
    pub end: OwnedFd,
    /// To replace the worker by the program that is installed now. It is not blocking.
    pub upgrade: OwnedFd,
}

/// What whoever has started the process may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The first worker is ready: a monitor can connect.
    Ready,
    /// The last worker is about to end.
    Stopping,
}

/// Serves connections of monitors, one after the other, until the last one or a signal. `notify`
/// gets each notice once at most.
///
/// # Errors
///
/// Where a worker fails before it is ready or crashes too often, or the last one fails; where a
/// monitor breaks the protocol; and where the system lacks something.
pub fn supervise(
    listener: UnixListener,
    control: Option<UnixListener>,
    signals: Signals,
    options: Options,
    notify: impl FnMut(Notice),
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut supervisor = Supervisor {
        listener: Some(listener),
        control: control.map(OwnedFd::from),
        signals,
        options,
        program: Program::own()?,
        former: None,
        kept: Vec::new(),
        restarts: Restarts::default(),
        is_ready: false,
        notify,
    };
    while supervisor.listener.is_some() {
        match supervisor.serve() {
            Ok(Ended::Asked) => break,
            Ok(Ended::Hangup) => {}
            Err(Failure::Connection(error))
                if supervisor.options.keep_running && supervisor.is_ready =>
            {
                error!("{error}");
            }
            Err(Failure::Connection(error) | Failure::Device(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Shortest time to wait for a deadline, which would be reached a little too early otherwise.
const TICK: Duration = Duration::from_millis(1);

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Hangup,
    /// By a signal, or through the control socket.
    Asked,
}

/// What went wrong. Unless it is known to be of the connection alone, it is of the device: another
/// connection would meet it again, at once.
#[derive(Debug)]
enum Failure {
    /// Another connection can do better.
    Connection(io::Error),
    /// The device is lost, or asked to end.
    Device(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Device(error)
    }
}

/// A descriptor that the event loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    End,
    Upgrade,
    Listener,
    Monitor,
    BackMonitor,
    BackWorker,
    Worker,
    Handover,
    WorkerEnd,
}

struct Supervisor<N: FnMut(Notice)> {
    listener: Option<UnixListener>,
    control: Option<OwnedFd>,
    signals: Signals,
    options: Options,
    program: Program,
    /// The program before an upgrade, until a worker of the new one serves.
    former: Option<Program>,
    /// What the first worker has left for its successors.
    kept: Vec<OwnedFd>,
    restarts: Restarts,
    /// Since the first worker was ready.
    is_ready: bool,
    notify: N,
}

impl<N: FnMut(Notice)> Supervisor<N> {
    fn serve(&mut self) -> Result<Ended, Failure> {
        let mut serving = Serving {
            runs: Runs::new()?,
            worker: None,
            session: None,
            start_at: Instant::now(),
        };
        loop {
            if serving.worker.is_none() && Instant::now() >= serving.start_at {
                self.start_worker(&mut serving)?;
            }
            for source in self.wait(&serving)? {
                match self.handle(source, &mut serving) {
                    Ok(None) => {}
                    Ok(Some(ended)) => return self.finish(ended, serving),
                    Err(Failure::Connection(error)) => return self.give_up(error, serving),
                    Err(failure) => return Err(failure),
                }
            }
            if let Some(worker) = &mut serving.worker
                && worker.deadline.is_some_and(|at| Instant::now() >= at)
            {
                warn!("the worker does not end: killed");
                worker.kill();
            }
        }
    }

    /// Starts a worker, and brings it into the state of the connection.
    fn start_worker(&mut self, serving: &mut Serving) -> Result<(), Failure> {
        let start = |socket: &OwnedFd, listener: &UnixListener| {
            let start = StartRef {
                listener: listener.as_fd(),
                record: serving.runs.record().as_fd(),
                control: self.control.as_ref().map(AsFd::as_fd),
                kept: &self.kept,
                resumes: serving.session.is_some(),
            };
            handover::send_start(socket, &start)
        };
        let spawned = Worker::spawn(&self.program, &self.options.arguments, start);
        let mut worker = match (spawned, self.former.take()) {
            (Ok(worker), former) => {
                self.former = former;
                worker
            }
            (Err(error), Some(former)) => {
                error!(%error, "the installed program cannot be started: back to the former");
                self.program = former;
                return Ok(());
            }
            (Err(error), None) if !self.is_ready => {
                let text = format!("cannot start a worker: {error}");
                return Err(io::Error::new(error.kind(), text).into());
            }
            (Err(error), None) => {
                error!(%error, "cannot start a worker");
                return self.delay_start(serving, &format!("no worker can be started: {error}"));
            }
        };
        debug!(pid = worker.id(), "worker started");
        if let Some(session) = &mut serving.session
            && let Err(error) = session.replay(&mut worker)
        {
            warn!(%error, "the worker cannot take over");
            worker.disconnected();
            // A worker that has ended already tells by its status why.
            if error.kind() != io::ErrorKind::BrokenPipe {
                worker.kill();
            }
        }
        serving.worker = Some(worker);
        Ok(())
    }

    /// Waits until something can be done, and returns what.
    fn wait(&self, serving: &Serving) -> io::Result<Vec<Source>> {
        const IN: PollFlags = PollFlags::IN;
        let (worker, session) = (serving.worker.as_ref(), serving.session.as_ref());
        let mut sources = vec![
            (Source::End, self.signals.end.as_fd(), IN),
            (Source::Upgrade, self.signals.upgrade.as_fd(), IN),
        ];
        if let Some(session) = session {
            // An end is noticed at any time.
            let events = session.monitor.events(session.accepts(worker));
            sources.push((Source::Monitor, session.monitor.as_fd(), events));
            if let Some(back) = &session.back {
                let (fd, events) = back.monitor();
                sources.push((Source::BackMonitor, fd, events));
                if let Some((fd, events)) = back.worker() {
                    sources.push((Source::BackWorker, fd, events));
                }
            }
        } else if let Some(listener) = &self.listener
            && worker.is_some_and(|worker| worker.is_ready)
        {
            sources.push((Source::Listener, listener.as_fd(), IN));
        }
        if let Some(worker) = worker {
            if worker.is_connected {
                let events = worker.channel.events(true);
                sources.push((Source::Worker, worker.channel.as_fd(), events));
            }
            if worker.talks {
                sources.push((Source::Handover, worker.handover.as_fd(), IN));
            }
            // Last: what the worker has sent before its end counts.
            sources.push((Source::WorkerEnd, worker.pidfd().as_fd(), IN));
        }
        let deadline = match worker {
            Some(worker) => worker.deadline,
            None => Some(serving.start_at),
        };
        let timeout =
            deadline.map(|at| timespec(at.saturating_duration_since(Instant::now()).max(TICK)));
        let fds = sources.iter();
        let mut fds: Vec<_> = fds
            .map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events))
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = sources.iter().zip(&fds);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    /// Does what can be done. Returns why the connection has ended, if it has.
    fn handle(&mut self, source: Source, serving: &mut Serving) -> Result<Option<Ended>, Failure> {
        match source {
            Source::End => return Ok(Some(Ended::Asked)),
            Source::Upgrade => self.upgrade(serving),
            Source::Listener => self.accept(serving)?,
            Source::Monitor => {
                if !serving.monitor_ready().map_err(Failure::Connection)? {
                    return Ok(Some(Ended::Hangup));
                }
            }
            Source::BackMonitor | Source::BackWorker => {
                if let Some(session) = &mut serving.session
                    && let Some(back) = &mut session.back
                {
                    let alive = match source {
                        Source::BackMonitor => back.monitor_ready(),
                        _ => back.worker_ready().map(|()| true),
                    };
                    if let Err(error) = &alive {
                        warn!(%error, "the monitor's channel for requests is broken");
                    }
                    if !alive.unwrap_or(false) {
                        session.back = None;
                    }
                }
            }
            Source::Worker => {
                serving.worker_ready().map_err(Failure::Connection)?;
                self.confirm(serving);
            }
            Source::Handover => {
                self.hear(serving);
            }
            Source::WorkerEnd => return self.worker_ended(serving),
        }
        Ok(None)
    }

    /// Replaces the worker by the program that is installed now.
    fn upgrade(&mut self, serving: &mut Serving) {
        // Several signals are one.
        let _ = rustix::io::read(&self.signals.upgrade, &mut [0; 64]);
        if self.former.is_some() {
            info!("an upgrade is in progress already");
            return;
        }
        let installed = match self.program.installed() {
            Ok(installed) => installed,
            Err(error) => {
                error!(%error, "no upgrade: the installed program cannot be opened");
                return;
            }
        };
        info!("upgrade: replacing the worker");
        self.former = Some(std::mem::replace(&mut self.program, installed));
        if let Some(worker) = &mut serving.worker {
            worker.is_replaced = true;
            worker.terminate();
        }
    }

    /// A worker of a new program that serves confirms the program.
    fn confirm(&mut self, serving: &Serving) {
        let serves = |worker: &Worker| worker.is_ready && worker.serves() && !worker.is_replaced;
        if self.former.is_some() && serving.worker.as_ref().is_some_and(serves) {
            info!("upgrade done");
            self.former = None;
        }
    }

    fn accept(&mut self, serving: &mut Serving) -> io::Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        info!("virtual machine monitor connected to the supervisor");
        serving.session = Some(Session::new(Channel::new(stream)?));
        if !self.options.keep_running {
            self.listener = None;
        }
        Ok(())
    }

    /// Takes what the worker says beside vhost-user. Returns whether it has said something.
    fn hear(&mut self, serving: &mut Serving) -> bool {
        let Some(worker) = serving.worker.as_mut().filter(|worker| worker.talks) else {
            return false;
        };
        match handover::receive_from_worker(&worker.handover) {
            FromWorker::AskedToEnd => worker.is_asked_to_end = true,
            FromWorker::Unknown => {}
            FromWorker::Later => return false,
            FromWorker::Ready(kept) => {
                worker.is_ready = true;
                if !self.is_ready {
                    self.is_ready = true;
                    self.kept = kept;
                    (self.notify)(Notice::Ready);
                }
                self.confirm(serving);
            }
            FromWorker::Nothing => {
                worker.talks = false;
                return false;
            }
        }
        true
    }

    /// The worker has ended: another one takes over, unless the worker was asked to end.
    fn worker_ended(&mut self, serving: &mut Serving) -> Result<Option<Ended>, Failure> {
        // Its last words, of which the event loop takes one at a time.
        while self.hear(serving) {}
        let Some(worker) = serving.worker.take() else {
            return Ok(None);
        };
        if let Some(session) = &mut serving.session {
            session.worker_ended();
        }
        let (is_ready, is_replaced, was_killed) =
            (worker.is_ready, worker.is_replaced, worker.was_killed);
        let is_asked_to_end = worker.is_asked_to_end;
        let status = worker.status()?;
        // Before the upgrade, which may be in progress: nobody asks again.
        if is_asked_to_end {
            info!("the worker was asked to end");
            return match status.success() {
                true => Ok(Some(Ended::Asked)),
                false => Err(Failure::Device(io::Error::other(format!(
                    "the device failed: {status}"
                )))),
            };
        }
        serving.start_at = Instant::now();
        if is_replaced {
            if !status.success() {
                error!(%status, "the worker that was replaced has failed");
            }
            return Ok(None);
        }
        // Nobody but the supervisor hangs up, so it was asked to end: through the control socket,
        // or by a signal. A program that is no device may end well before it is ready.
        if is_ready && status.success() {
            info!("the worker was asked to end");
            return Ok(Some(Ended::Asked));
        }
        if let Some(former) = self.former.take() {
            error!(%status, "the installed program does not serve: back to the former");
            self.program = former;
            return Ok(None);
        }
        if !self.is_ready {
            let text = format!("the device did not start: {status}");
            return Err(io::Error::other(text).into());
        }
        // From outside: by an administrator, or for lack of memory.
        if status.signal() == Some(Signal::KILL.as_raw()) && !was_killed {
            warn!("the worker was killed: starting another one");
            return Ok(None);
        }
        error!(%status, "the worker has crashed");
        self.delay_start(serving, &format!("the worker has crashed: {status}"))?;
        Ok(None)
    }

    /// A worker has failed, for this reason: the next one starts later.
    ///
    /// # Errors
    ///
    /// Where too many have failed.
    fn delay_start(&mut self, serving: &mut Serving, reason: &str) -> Result<(), Failure> {
        match self.restarts.crashed(Instant::now()) {
            Some(at) => {
                serving.start_at = at;
                Ok(())
            }
            None => {
                let text = format!(
                    "given up after {MAX_CRASHES} failures of the device within {} s ({reason}); \
                     the log above says more, and the guest has lost the device",
                    WINDOW.as_secs()
                );
                Err(Failure::Device(io::Error::other(text)))
            }
        }
    }

    /// Ends a connection that is broken, for this reason.
    fn give_up(&mut self, error: io::Error, mut serving: Serving) -> Result<Ended, Failure> {
        // The monitor may never close it, and the worker may wait for a reply.
        serving.session = None;
        match self.finish(Ended::Hangup, serving) {
            Ok(Ended::Hangup) | Err(Failure::Connection(_)) => Err(Failure::Connection(error)),
            asked => {
                error!("{error}");
                asked
            }
        }
    }

    /// Ends the worker of a connection that has ended. The device ends as well if somebody has
    /// asked for that meanwhile: nobody asks again.
    fn finish(&mut self, mut ended: Ended, mut serving: Serving) -> Result<Ended, Failure> {
        // Without a listener there is no other connection.
        let is_last = ended == Ended::Asked || self.listener.is_none();
        if is_last {
            (self.notify)(Notice::Stopping);
        }
        let Some(worker) = &mut serving.worker else {
            return Ok(ended);
        };
        let is_signalled = ended == Ended::Asked;
        if is_signalled {
            info!("asked to end");
            worker.terminate();
        }
        worker.hang_up();
        let status = worker.wait()?;
        // It may have had no time to catch the signal.
        let is_term = status.signal() == Some(Signal::TERM.as_raw());
        let was_early = is_signalled && !worker.is_ready && is_term;
        // It may have been asked while it wrote the last data.
        worker.hear_last();
        if worker.is_asked_to_end && !is_signalled {
            info!("the worker was asked to end");
            ended = Ended::Asked;
            if !is_last {
                (self.notify)(Notice::Stopping);
            }
        }
        // The monitor sees the end of the connection when the device has ended.
        drop(serving);
        if status.success() || was_early {
            return Ok(ended);
        }
        let error = io::Error::other(format!("the device failed: {status}"));
        Err(match ended {
            Ended::Asked => Failure::Device(error),
            Ended::Hangup => Failure::Connection(error),
        })
    }
}

#[cfg(test)]
mod tests;
