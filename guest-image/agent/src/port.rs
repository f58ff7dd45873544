// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The connection to the host: a virtio-serial port, or a serial line.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ringbar_agent_protocol::{PORT_NAME, Reply, find_port, write_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, inotify};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Longest time until the port appears. The kernel adds the port after the host's reply to the
/// driver's first message, some time after boot.
const PORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of the searches for the port. The kernel learns the name of a port some time after
/// it has made the port's node, and there is no event for the name.
const SEARCH_INTERVAL: Duration = Duration::from_millis(20);

/// Opens a serial line for bytes of any kind.
pub fn open_line(device: &str) -> anyhow::Result<File> {
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(device)
        .with_context(|| format!("opening {device}"))?;
    let mut settings = tcgetattr(&line).with_context(|| format!("settings of {device}"))?;
    settings.make_raw();
    tcsetattr(&line, OptionalActions::Now, &settings)
        .with_context(|| format!("setting {device} up"))?;
    Ok(line)
}

/// Opens the virtio-serial port.
pub fn open() -> anyhow::Result<File> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .context("creating an inotify instance")?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE).context("watching /dev")?;
    let deadline = Instant::now() + PORT_TIMEOUT;

    // The watch is set up before the search, so that no port is missed in between.
    loop {
        if let Some(device) = find_port(PORT_NAME) {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("opening {}", device.display()));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "no virtio-serial port named {PORT_NAME} within {} s",
                PORT_TIMEOUT.as_secs()
            );
        }
        let timeout = Timespec::try_from(left.min(SEARCH_INTERVAL)).context("the time left")?;
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("watching /dev"),
        }
        // The events are discarded: each one only causes another search.
        let mut events = [0; 4096];
        while matches!(rustix::io::read(&watch, &mut events), Ok(n) if n > 0) {}
    }
}

/// The writing side of the port, shared by all threads that reply to the host.
#[derive(Clone, Debug)]
pub struct ReplyPort {
    file: Arc<Mutex<File>>,
}

impl ReplyPort {
    /// Wraps a port that was opened for writing.
    pub fn new(file: File) -> Self {
        Self {
            file: Arc::new(Mutex::new(file)),
        }
    }

    /// Sends one message; waits while the host does not read.
    pub fn send(&self, reply: &Reply) -> anyhow::Result<()> {
        // After a panic there is at worst an incomplete frame, which the host reports.
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&*file, reply).context("answering the host")
    }
}
