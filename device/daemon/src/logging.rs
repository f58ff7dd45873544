// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Messages on standard error.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tracing::warn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::cli::LogFormat;
use crate::rate_limit::RateLimit;

/// What the rate limit has swallowed.
#[derive(Debug)]
pub struct Suppressed(Arc<AtomicU64>);

impl Suppressed {
    /// Says so, if it is anything.
    pub fn report(&self) {
        let messages = self.0.load(Ordering::Relaxed);
        if messages > 0 {
            warn!(messages, "repeated messages were not logged");
        }
    }
}

/// Starts logging.
pub fn init(filter: &str, format: LogFormat) -> anyhow::Result<Suppressed> {
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("\"{filter}\" is no log filter; try --log debug"))?;
    let limit = RateLimit::default();
    let suppressed = Suppressed(limit.suppressed());
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Text => layer
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer.with_filter(limit))
        .try_init()
        .context("cannot start logging")?;
    Ok(suppressed)
}
