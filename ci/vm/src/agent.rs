// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The host's end of the agent port.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::{
    ExitStatus, FrameError, Reply, Request, RequestId, VERSION, read_frame, write_frame,
};

use crate::error::{Error, Result};

/// Maximum time for a request that the guest answers at once, such as reading a file.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A command for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestCommand {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    directory: Option<String>,
}

impl GuestCommand {
    /// A program, looked up in the guest's `PATH`.
    pub fn new(program: &str) -> Self {
        Self {
            argv: vec![program.to_owned()],
            ..Self::default()
        }
    }

    /// A line for the guest's shell.
    pub fn shell(line: &str) -> Self {
        Self::new("sh").args(["-c", line])
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the working directory.
    pub fn directory(mut self, directory: &str) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }
}

impl std::fmt::Display for GuestCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

/// An event of a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The command wrote to its standard output.
    Stdout(Vec<u8>),
    /// The command wrote to its standard error.
    Stderr(Vec<u8>),
    /// The command ended. This is the last event.
    Exited(ExitStatus),
}

/// The complete result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit status.
    pub status: ExitStatus,
}

/// Connection to PID 1 of a guest.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    next: AtomicU32,
    kernel_release: String,
    /// The greetings of later boots.
    hello: Mutex<Receiver<(u32, String)>>,
}

#[derive(Debug)]
struct Shared {
    port: Mutex<UnixStream>,
    /// Senders for the replies to each pending request, which another boot ends; `None` after the
    /// guest has gone.
    pending: Mutex<Option<HashMap<RequestId, Sender<Reply>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave the map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Waits on a fresh connection until the guest has booted.
    pub fn connect(port: UnixStream, timeout: Duration) -> Result<Self> {
        let incoming = port
            .try_clone()
            .map_err(Error::io("duplicating the agent port"))?;
        let shared = Arc::new(Shared {
            port: Mutex::new(port),
            pending: Mutex::new(Some(HashMap::new())),
        });
        let (sender, hello) = mpsc::channel();
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("agent".into())
            .spawn(move || dispatch(&incoming, &reader, &sender))
            .map_err(Error::io("starting the agent thread"))?;

        let kernel_release = booted(&hello, timeout)?;
        Ok(Self {
            shared,
            next: AtomicU32::new(1),
            kernel_release,
            hello: Mutex::new(hello),
        })
    }

    /// Runs a command that makes the guest boot again, and waits until it has. Other commands that
    /// run end with [`Error::GuestGone`]. `meanwhile` is called once the command was sent.
    ///
    /// No output of the guest may be on its way: half a message would end the connection.
    pub fn reboot(
        &self,
        command: &GuestCommand,
        timeout: Duration,
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        let running = self.start(command, timeout)?;
        meanwhile();
        match running.output() {
            // Either the guest has booted, or its machine has gone.
            Err(Error::GuestGone(_)) => self.wait_for_boot(timeout),
            Err(error) => Err(error),
            Ok(output) => Err(Error::Guest {
                what: format!("`{command}`"),
                message: format!(
                    "{}, and the guest still runs\n{}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                ),
            }),
        }
    }

    /// Waits until the guest has booted again. Each boot is reported once.
    pub fn wait_for_boot(&self, timeout: Duration) -> Result<()> {
        booted(&lock(&self.hello), timeout).map(drop)
    }

    /// Forgets the boots that nobody has waited for. Of those before the guest's last answer, none is
    /// missed: the greeting comes first.
    pub fn forget_boots(&self) {
        while lock(&self.hello).try_recv().is_ok() {}
    }

    /// Release of the guest's kernel.
    pub fn kernel_release(&self) -> &str {
        &self.kernel_release
    }

    /// Sends a request and returns the receiver of its replies.
    fn request(
        &self,
        what: &str,
        build: impl FnOnce(RequestId) -> Request,
    ) -> Result<(RequestId, Receiver<Reply>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        match &mut *lock(&self.shared.pending) {
            Some(pending) => pending.insert(id, sender),
            None => return Err(Error::GuestGone(what.to_owned())),
        };
        match write_frame(&*lock(&self.shared.port), &build(id)) {
            Ok(()) => Ok((id, receiver)),
            // The connection is closed; the reading thread reports it as well.
            Err(FrameError::Io(_)) => Err(Error::GuestGone(what.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a request and waits for its single reply.
    fn call(
        &self,
        what: String,
        timeout: Duration,
        build: impl FnOnce(RequestId) -> Request,
    ) -> Result<Vec<u8>> {
        let (_, replies) = self.request(&what, build)?;
        match receive(&replies, &what, timeout, timeout)? {
            Reply::Done { .. } => Ok(Vec::new()),
            Reply::Content { bytes, .. } => Ok(bytes),
            Reply::Failed { message, .. } => Err(Error::Guest { what, message }),
            other => Err(Error::Protocol(format!("{other:?} to {what}"))),
        }
    }

    /// Starts a command.
    pub fn start(&self, command: &GuestCommand, timeout: Duration) -> Result<RunningCommand<'_>> {
        let what = format!("running `{}`", shorten(&command.to_string()));
        let (id, replies) = self.request(&what, |id| Request::Exec {
            id,
            argv: command.argv.clone(),
            env: command.env.clone(),
            directory: command.directory.clone(),
        })?;
        Ok(RunningCommand {
            agent: self,
            id,
            replies,
            what,
            deadline: Instant::now() + timeout,
            timeout,
        })
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &GuestCommand, timeout: Duration) -> Result<Output> {
        self.start(command, timeout)?.output()
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub fn check(&self, command: &GuestCommand, timeout: Duration) -> Result<String> {
        let output = self.run(command, timeout)?;
        if !output.status.success() {
            return Err(Error::Guest {
                what: format!("`{command}`"),
                message: format!(
                    "{}\n{}{}",
                    output.status,
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                )
                .trim_end()
                .to_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Reads a file of the guest.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.call(format!("reading {path}"), REQUEST_TIMEOUT, |id| {
            Request::ReadFile {
                id,
                path: path.to_owned(),
            }
        })
    }

    /// Reads a text file of the guest.
    pub fn read_text(&self, path: &str) -> Result<String> {
        let bytes = self.read_file(path)?;
        String::from_utf8(bytes).map_err(|error| Error::Protocol(format!("{path}: {error}")))
    }

    /// The guest's kernel log since boot. Each line begins with its level: `<6>[
    /// 5.140900] text`.
    pub fn kernel_log(&self) -> Result<String> {
        let bytes = self.call("reading the kernel log".into(), REQUEST_TIMEOUT, |id| {
            Request::KernelLog { id }
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Mounts a 9p share.
    pub fn mount_share(&self, tag: &str, target: &str) -> Result<()> {
        self.call(
            format!("mounting the share on {target}"),
            REQUEST_TIMEOUT,
            |id| Request::MountShare {
                id,
                tag: tag.to_owned(),
                target: target.to_owned(),
            },
        )?;
        Ok(())
    }

    /// Tells the guest the size of the terminal behind its serial console.
    pub fn resize_console(&self, rows: u16, columns: u16) -> Result<()> {
        self.call("resizing the console".into(), REQUEST_TIMEOUT, |id| {
            Request::ResizeConsole { id, rows, columns }
        })?;
        Ok(())
    }

    /// Asks the guest to power off; does not wait for it.
    pub fn power_off(&self) -> Result<()> {
        Ok(write_frame(&*lock(&self.shared.port), &Request::PowerOff)?)
    }
}

/// A command that runs in the guest.
#[derive(Debug)]
pub struct RunningCommand<'a> {
    agent: &'a Agent,
    id: RequestId,
    replies: Receiver<Reply>,
    what: String,
    deadline: Instant,
    timeout: Duration,
}

impl RunningCommand<'_> {
    /// Waits for the next event, until the command's timeout.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator over results would invite going on after an error"
    )]
    pub fn next(&mut self) -> Result<Event> {
        self.next_timeout(self.timeout)
    }

    /// As [`Self::next`], but waits at most `timeout` for one event.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Event> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Otherwise a command that writes without a pause would never time out.
        if left.is_zero() {
            return Err(Error::Timeout {
                what: self.what.clone(),
                after: self.timeout,
            });
        }
        let (wait, limit) = if timeout < left {
            (timeout, timeout)
        } else {
            (left, self.timeout)
        };
        match receive(&self.replies, &self.what, wait, limit)? {
            Reply::Stdout { bytes, .. } => Ok(Event::Stdout(bytes)),
            Reply::Stderr { bytes, .. } => Ok(Event::Stderr(bytes)),
            Reply::Exited { status, .. } => Ok(Event::Exited(status)),
            Reply::Failed { message, .. } => Err(Error::Guest {
                what: self.what.clone(),
                message,
            }),
            other => Err(Error::Protocol(format!("{other:?} while {}", self.what))),
        }
    }

    /// Waits for the end, and returns the output from now on.
    pub fn output(self) -> Result<Output> {
        self.output_with(|_| ())
    }

    /// As [`Self::output`]. `on_stdout` gets the standard output as it arrives, too.
    pub fn output_with(mut self, mut on_stdout: impl FnMut(&[u8])) -> Result<Output> {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        loop {
            match self.next()? {
                Event::Stdout(bytes) => {
                    on_stdout(&bytes);
                    stdout.extend(bytes);
                }
                Event::Stderr(bytes) => stderr.extend(bytes),
                Event::Exited(status) => {
                    return Ok(Output {
                        stdout,
                        stderr,
                        status,
                    });
                }
            }
        }
    }

    /// Sends a signal to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.agent.call(
            format!("stopping what was {}", self.what),
            REQUEST_TIMEOUT,
            |id| Request::Signal {
                id,
                target: self.id,
                signal,
            },
        )?;
        Ok(())
    }
}

/// Waits for the greeting of a guest, and returns the release of its kernel.
fn booted(hello: &Receiver<(u32, String)>, timeout: Duration) -> Result<String> {
    let what = "the guest to boot";
    match hello.recv_timeout(timeout) {
        Ok((VERSION, kernel_release)) => Ok(kernel_release),
        Ok((version, _)) => Err(Error::Protocol(format!(
            "the guest image speaks version {version} of the protocol, not {VERSION}"
        ))),
        Err(RecvTimeoutError::Timeout) => Err(Error::Timeout {
            what: what.into(),
            after: timeout,
        }),
        Err(RecvTimeoutError::Disconnected) => Err(Error::GuestGone(format!("waiting for {what}"))),
    }
}

/// Shortens a command line for a message.
fn shorten(line: &str) -> String {
    const MAX_LENGTH: usize = 100;
    match line.char_indices().nth(MAX_LENGTH) {
        None => line.to_owned(),
        Some((end, _)) => format!("{} ...", &line[..end]),
    }
}

fn receive(
    replies: &Receiver<Reply>,
    what: &str,
    wait: Duration,
    limit: Duration,
) -> Result<Reply> {
    replies.recv_timeout(wait).map_err(|error| match error {
        RecvTimeoutError::Timeout => Error::Timeout {
            what: what.to_owned(),
            after: limit,
        },
        RecvTimeoutError::Disconnected => Error::GuestGone(what.to_owned()),
    })
}

/// Passes the guest's messages to their receivers until the connection ends.
fn dispatch(mut incoming: &UnixStream, shared: &Shared, hello: &Sender<(u32, String)>) {
    loop {
        let reply = match read_frame::<Reply>(&mut incoming) {
            Ok(reply) => reply,
            Err(FrameError::Closed | FrameError::Io(_)) => break,
            Err(error) => {
                eprintln!("ringbar-ci: {error}");
                break;
            }
        };
        match reply {
            Reply::Hello {
                version,
                kernel_release,
            } => {
                // Dropping the senders ends every wait for the guest before this boot. Requests to
                // this one follow the greeting.
                if let Some(pending) = &mut *lock(&shared.pending) {
                    pending.clear();
                }
                // The receiver has gone only if the guest was given up.
                let _ = hello.send((version, kernel_release));
            }
            reply => {
                let Some(id) = reply.id() else { continue };
                let last = !matches!(reply, Reply::Stdout { .. } | Reply::Stderr { .. });
                if let Some(pending) = &mut *lock(&shared.pending) {
                    if let Some(sender) = pending.get(&id) {
                        // The receiver may have timed out.
                        let _ = sender.send(reply);
                    }
                    if last {
                        pending.remove(&id);
                    }
                }
            }
        }
    }
    // Dropping the senders ends every wait.
    *lock(&shared.pending) = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A guest in a thread: `serve` gets the port after the greeting.
    fn guest(serve: impl FnOnce(&UnixStream) + Send + 'static) -> Result<Agent> {
        let (host, guest) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let hello = Reply::Hello {
                version: VERSION,
                kernel_release: "7.3".into(),
            };
            write_frame(&guest, &hello).unwrap();
            serve(&guest);
        });
        Agent::connect(host, TIMEOUT)
    }

    #[test]
    fn output_and_status_of_a_command_arrive() {
        let agent = guest(|port| {
            let Ok(Request::Exec { id, argv, .. }) = read_frame(port) else {
                panic!("not a command");
            };
            assert_eq!(argv, ["sh", "-c", "x"]);
            for reply in [
                Reply::Stdout {
                    id,
                    bytes: b"out".to_vec(),
                },
                Reply::Stderr {
                    id,
                    bytes: b"err".to_vec(),
                },
                Reply::Exited {
                    id,
                    status: ExitStatus::Exited(4),
                },
            ] {
                write_frame(port, &reply).unwrap();
            }
        })
        .unwrap();
        assert_eq!(agent.kernel_release(), "7.3");
        let output = agent.run(&GuestCommand::shell("x"), TIMEOUT).unwrap();
        assert_eq!(output.stdout, b"out");
        assert_eq!(output.stderr, b"err");
        assert_eq!(output.status, ExitStatus::Exited(4));
    }

    #[test]
    fn a_guest_that_dies_ends_every_wait() {
        let agent = guest(|port| {
            let _: Request = read_frame(port).unwrap();
        })
        .unwrap();
        let error = agent.run(&GuestCommand::new("x"), TIMEOUT).unwrap_err();
        assert!(matches!(error, Error::GuestGone(_)), "{error}");
        let error = agent.read_file("/x").unwrap_err();
        assert!(matches!(error, Error::GuestGone(_)), "{error}");
    }

    #[test]
    fn another_boot_ends_every_wait() {
        let agent = guest(|port| {
            let greet = |kernel_release: &str| {
                let hello = Reply::Hello {
                    version: VERSION,
                    kernel_release: kernel_release.into(),
                };
                write_frame(port, &hello).unwrap();
            };
            let _: Request = read_frame(port).unwrap();
            let _: Request = read_frame(port).unwrap();
            greet("7.4");
            let Ok(Request::ReadFile { id, .. }) = read_frame(port) else {
                panic!("not a file");
            };
            let bytes = b"new".to_vec();
            write_frame(port, &Reply::Content { id, bytes }).unwrap();
            // This one ends, and the guest does not.
            let Ok(Request::Exec { id, .. }) = read_frame(port) else {
                panic!("not a command");
            };
            let status = ExitStatus::Exited(1);
            write_frame(port, &Reply::Exited { id, status }).unwrap();
            let _: Request = read_frame(port).unwrap();
        })
        .unwrap();
        let mut load = agent.start(&GuestCommand::new("load"), TIMEOUT).unwrap();
        let reboot = GuestCommand::new("reboot");
        agent.reboot(&reboot, TIMEOUT, || {}).unwrap();
        assert!(matches!(load.next(), Err(Error::GuestGone(_))));
        assert_eq!(agent.read_file("/x").unwrap(), b"new");
        let error = agent.reboot(&reboot, TIMEOUT, || {}).unwrap_err();
        assert!(error.to_string().contains("still runs"), "{error}");
        // Its machine ends.
        let error = agent.reboot(&reboot, TIMEOUT, || {}).unwrap_err();
        assert!(matches!(error, Error::GuestGone(_)), "{error}");
    }

    #[test]
    fn boots_can_be_forgotten() {
        let agent = guest(|port| {
            let hello = Reply::Hello {
                version: VERSION,
                kernel_release: "7.4".into(),
            };
            write_frame(port, &hello).unwrap();
            while let Ok(Request::ReadFile { id, .. }) = read_frame(port) {
                let bytes = Vec::new();
                write_frame(port, &Reply::Content { id, bytes }).unwrap();
            }
        })
        .unwrap();
        // The greeting ends the first one, if it comes after it.
        while agent.read_file("/x").is_err() {}
        agent.forget_boots();
        let error = agent.wait_for_boot(Duration::ZERO).unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }

    #[test]
    fn a_silent_guest_is_not_waited_for_beyond_the_limit() {
        let (_keep_open, port) = UnixStream::pair().unwrap();
        let error = Agent::connect(port, Duration::from_millis(1)).unwrap_err();
        assert!(error.is_timeout());
        assert!(error.to_string().contains("the guest to boot"));
    }

    #[test]
    fn a_command_that_writes_without_end_runs_out_of_time() {
        let agent = guest(|port| {
            let Ok(Request::Exec { id, .. }) = read_frame(port) else {
                panic!("not a command");
            };
            let Ok(Request::ReadFile { id: file, .. }) = read_frame(port) else {
                panic!("not a file");
            };
            let bytes = b"y".to_vec();
            write_frame(
                port,
                &Reply::Stdout {
                    id,
                    bytes: bytes.clone(),
                },
            )
            .unwrap();
            write_frame(port, &Reply::Content { id: file, bytes }).unwrap();
        })
        .unwrap();
        let mut running = agent
            .start(&GuestCommand::shell("yes"), Duration::ZERO)
            .unwrap();
        // The reply comes after output that is still unread.
        agent.read_file("/x").unwrap();
        let error = running.next().unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }

    #[test]
    fn a_stale_guest_image_is_named() {
        let (host, guest) = UnixStream::pair().unwrap();
        let hello = Reply::Hello {
            version: VERSION + 1,
            kernel_release: String::new(),
        };
        write_frame(&guest, &hello).unwrap();
        let error = Agent::connect(host, TIMEOUT).unwrap_err();
        assert!(error.to_string().contains("guest image"), "{error}");
    }

    #[test]
    fn long_commands_are_cut_in_messages() {
        assert_eq!(shorten("echo ä"), "echo ä");
        assert_eq!(
            shorten(&"ä".repeat(101)),
            format!("{} ...", "ä".repeat(100))
        );
    }

    #[test]
    fn a_refused_request_says_what_was_asked() {
        let agent = guest(|port| {
            let Ok(Request::ReadFile { id, .. }) = read_frame(port) else {
                panic!("not a file");
            };
            let message = "no such file".into();
            write_frame(port, &Reply::Failed { id, message }).unwrap();
        })
        .unwrap();
        let text = agent.read_file("/x").unwrap_err().to_string();
        assert_eq!(text, "the guest failed at reading /x: no such file");
    }
}
