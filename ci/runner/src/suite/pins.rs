// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Numbers of pages that the guest's kernel has pinned.

use std::time::{Duration, Instant};

use ringbar_guest_tests::pins::{self, Pins};
use ringbar_vm::agent::Agent;
use ringbar_vm::error::{Error, Result};

/// Maximum time for pages to be unpinned after the last process has ended: io_uring
/// releases its registered buffers some time after the ring was closed.
const UNPIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Reads the numbers of pinned and released pages. Waits until both are equal, at most
/// [`UNPIN_TIMEOUT`].
pub(super) fn pins_when_idle(agent: &Agent) -> Result<Pins> {
    let deadline = Instant::now() + UNPIN_TIMEOUT;
    loop {
        // The counters are per CPU; reading this file sums them.
        agent.read_file(pins::REFRESH)?;
        let text = agent.read_text(pins::TABLE)?;
        let pins = Pins::parse(&text).ok_or_else(|| {
            Error::Protocol(format!("{} does not count pinned pages", pins::TABLE))
        })?;
        if pins.balanced() || Instant::now() >= deadline {
            return Ok(pins);
        }
    }
}
