// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wakes the machine up each time it is suspended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use serde_json::json;

use crate::error::{Error, Result};
use crate::process::wait_readable;
use crate::qmp::Monitor;

/// The kernel's message when its devices are suspended and its CPUs are about to idle
/// (`s2idle_loop` of `kernel/power/suspend.c`). The kernel prints it if
/// `/sys/power/pm_debug_messages` is 1 and the console is not suspended. From here on a
/// wake-up interrupt is not lost.
const S2IDLE_MESSAGE: &str = "PM: suspend-to-idle";

/// Wakes the machine behind this monitor up each time it enters S3, until the connection
/// ends.
pub fn wake_from_s3(monitor: UnixStream) -> Result<()> {
    let mut monitor = Monitor::connect(monitor)?;
    spawn("waker", move || {
        // The connection ends with the machine.
        while monitor.wait_for_event("SUSPEND").is_ok() {
            wake(&mut monitor, "system_wakeup");
        }
    })
}

/// Presses the power button of the machine behind this monitor each time its console
/// shows a suspend to idle, which QEMU does not know of. `ended` becomes readable when
/// the machine has ended.
pub fn wake_from_s2idle(monitor: UnixStream, console: &Path, ended: OwnedFd) -> Result<()> {
    let mut monitor = Monitor::connect(monitor)?;
    let mut console = ConsoleLog::open_at_end(console)
        .map_err(Error::io(format!("following {}", console.display())))?;
    spawn("idle-waker", move || {
        while let Ok(true) = console.wait_for(S2IDLE_MESSAGE, &ended) {
            wake(&mut monitor, "system_powerdown");
        }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
        .map_err(Error::io("starting a thread that wakes the machine up"))
}

fn wake(monitor: &mut Monitor, command: &str) {
    if let Err(error) = monitor.execute(command, json!({})) {
        eprintln!("waking the machine up: {error}");
    }
}

/// A growing log file.
struct ConsoleLog {
    file: File,
    events: OwnedFd,
    /// The incomplete last line.
    text: Vec<u8>,
}

impl ConsoleLog {
    /// Timeout of one wait; a machine may never be suspended.
    const POLL_TIMEOUT: Duration = Duration::from_secs(3600);

    fn open_at_end(path: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, path, WatchFlags::MODIFY)?;
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            events,
            text: Vec::new(),
        })
    }

    /// Waits for a line that contains `text`; false once `ended` is readable.
    fn wait_for(&mut self, text: &str, ended: &OwnedFd) -> io::Result<bool> {
        loop {
            // Events are drained before the file is read, so that later changes cause new
            // events.
            self.drain_events()?;
            self.file.read_to_end(&mut self.text)?;
            while let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                if String::from_utf8_lossy(&line).contains(text) {
                    return Ok(true);
                }
            }
            wait_readable(&[&self.events, ended], Instant::now() + Self::POLL_TIMEOUT)?;
            if wait_readable(&[ended], Instant::now())? {
                return Ok(false);
            }
        }
    }

    fn drain_events(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        loop {
            match reader.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    /// The next command on the other end of a monitor.
    struct Qemu(BufReader<UnixStream>);

    impl Qemu {
        /// Greets, and takes the connection out of the negotiation mode.
        fn greet(socket: UnixStream) -> Self {
            let mut qemu = Self(BufReader::new(socket));
            qemu.send(r#"{"QMP": {"version": {}, "capabilities": []}}"#);
            assert!(qemu.next().contains("qmp_capabilities"));
            qemu
        }

        fn next(&mut self) -> String {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            line
        }

        fn send(&self, text: &str) {
            writeln!(self.0.get_ref(), "{text}").unwrap();
        }
    }

    #[test]
    fn each_sleep_is_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let mut qemu = Qemu::greet(theirs);
            // An event before the wait counts, too.
            qemu.send(r#"{"event": "SUSPEND"}"#);
            qemu.send(r#"{"return": {}}"#);
            for _ in 0..2 {
                assert!(qemu.next().contains("system_wakeup"));
                qemu.send(r#"{"event": "WAKEUP"}"#);
                qemu.send(r#"{"return": {}}"#);
                qemu.send(r#"{"event": "SUSPEND"}"#);
            }
            assert!(qemu.next().contains("system_wakeup"));
        });
        wake_from_s3(ours).unwrap();
        qemu.join().unwrap();
    }

    #[test]
    fn the_button_is_pressed_once_for_each_line_that_says_idle() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "[ 1.0] {S2IDLE_MESSAGE} of an earlier machine").unwrap();
        let (ended, end) = io::pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let qemu = Qemu::greet(theirs);
            qemu.send(r#"{"return": {}}"#);
            qemu
        });
        wake_from_s2idle(ours, log.path(), ended.into()).unwrap();
        let mut qemu = qemu.join().unwrap();
        // In pieces, between other lines, and two at once.
        for text in [
            "[ 2.0] PM: suspend entry\n[ 2.1] PM: susp",
            "end-to-idle\n",
            "[ 3.0] PM: resume of devices\n[ 4.0] PM: suspend-to-idle\n[ 5.0] PM: suspend-to-idle\n",
        ] {
            write!(log, "{text}").unwrap();
        }
        for _ in 0..3 {
            assert!(qemu.next().contains("system_powerdown"));
            qemu.send(r#"{"return": {}}"#);
        }
        // The end of the machine ends the thread and the connection.
        drop(end);
        assert_eq!(qemu.next(), "");
    }
}
