// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Messages on standard error.
//!
//! A thread writes the lines. Logging never waits, because workers log and the reader of
//! standard error may be stuck. Lines that exceed the buffer are lost; a later message says how
//! many.
//!
//! [`set_filter`] changes at any time which messages there are.

use std::io::{self, IsTerminal, Stderr, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail};
use tracing::warn;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::args::LogFormat;
use crate::rate_limit::RateLimit;
use crate::sandbox::Confinement;

/// Greatest number of lines that wait to be written.
const MAX_WAITING_LINES: usize = 1024;

/// The filter of the log of this process, once there is a log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The log. Dropping it writes the remaining lines, unless the reader of standard error is
/// stuck.
pub(crate) struct Log {
    suppressed: Arc<AtomicU64>,
    _writer: WorkerGuard,
}

impl Log {
    /// Logs the number of messages that the rate limit has suppressed, if any.
    pub(crate) fn report(&self) {
        let messages = self.suppressed.load(Ordering::Relaxed);
        if messages > 0 {
            warn!(messages, "repeated messages were not logged");
        }
    }
}

/// Parses a filter: a level, or levels for modules. The filter of a module has its level, because
/// a level that is misspelt would be the name of a module.
pub(crate) fn parse_filter(filter: &str) -> anyhow::Result<EnvFilter> {
    for part in filter.split(',').map(str::trim) {
        // The empty text would be a level.
        let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !is_level && !part.contains(['=', '[']) {
            bail!(
                "\"{part}\" is no log filter: give off, error, warn, info, debug or trace, \
                 or a module with one of these, for example ringbar_engine=debug"
            );
        }
    }
    EnvFilter::try_new(filter).with_context(|| format!("\"{filter}\" is no log filter; try debug"))
}

/// Changes which messages the log has.
///
/// # Errors
///
/// `filter` is no log filter, or the process has no log.
pub fn set_filter(filter: &str) -> anyhow::Result<()> {
    let filter = parse_filter(filter)?;
    let handle = FILTER.get().context("this process has no log")?;
    handle.reload(filter).context("cannot change the log")
}

/// Which messages the log has; empty where there is no log.
pub fn filter() -> String {
    FILTER
        .get()
        .and_then(|handle| handle.with_current(EnvFilter::to_string).ok())
        .unwrap_or_default()
}

/// Starts logging, on a thread that restricts itself before this returns.
pub(crate) fn init(
    filter: EnvFilter,
    format: LogFormat,
    confinement: &Confinement,
) -> anyhow::Result<Log> {
    let (filter, handle) = reload::Layer::new(filter);
    let limit = RateLimit::default();
    let suppressed = limit.suppressed();
    let lost = Arc::new(OnceLock::new());
    let (started, wait_started) = sync_channel(1);
    let (mut lines, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(Writer {
            stderr: io::stderr(),
            lost: Arc::clone(&lost),
            reported: 0,
            start: Some((confinement.clone(), started)),
        });
    // The thread flushes its writer after any line, also after none.
    lines.write_all(b"").context("cannot start logging")?;
    wait_started.recv().context("cannot start logging")??;
    lost.get_or_init(|| lines.error_counter());
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer.with_filter(limit))
        .try_init()
        .context("cannot start logging")?;
    // There is one log: `try_init` has failed otherwise.
    FILTER.get_or_init(|| handle);
    Ok(Log {
        suppressed,
        _writer: writer,
    })
}

/// Writer to standard error, on the thread of the log.
struct Writer {
    stderr: Stderr,
    /// Number of lost lines; set once the thread exists.
    lost: Arc<OnceLock<ErrorCounter>>,
    /// Number of lost lines that were reported.
    reported: usize,
    /// What its thread does first, and whom it tells.
    start: Option<(Confinement, SyncSender<anyhow::Result<()>>)>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stderr.write(bytes)?;
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        if lost > self.reported {
            // This message waits behind the others. If it is lost too, the next report
            // includes it.
            warn!(
                lines = lost - self.reported,
                "log lines were lost: nobody read them in time"
            );
            self.reported = lost;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some((confinement, started)) = self.start.take() {
            // Somebody waits.
            let _ = started.send(confinement.restrict_log());
        }
        self.stderr.flush()
    }
}
