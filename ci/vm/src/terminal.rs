// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Settings of a terminal that another program changes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal and its saved settings.
#[derive(Debug)]
pub struct SavedTerminal {
    terminal: OwnedFd,
    settings: Termios,
    flags: OFlags,
}

impl SavedTerminal {
    /// Reads the settings; `None` if the descriptor is not a terminal.
    pub fn of(terminal: impl AsFd) -> Option<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
        Some(Self {
            settings: tcgetattr(&terminal).ok()?,
            flags: fcntl_getfl(&terminal).ok()?,
            terminal,
        })
    }

    /// Restores the settings. A terminal that is gone is ignored.
    pub fn restore(&self) {
        // Immediately, without waiting for output that nobody reads.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.settings);
        let _ = fcntl_setfl(&self.terminal, self.flags);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    /// Both ends of a pseudoterminal.
    pub fn terminal() -> (OwnedFd, OwnedFd) {
        let other = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&other).unwrap();
        unlockpt(&other).unwrap();
        let name = ptsname(&other, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let terminal = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
        (terminal, other)
    }

    /// Changes the settings as QEMU does.
    pub fn make_raw(terminal: &OwnedFd) {
        let mut settings = tcgetattr(terminal).unwrap();
        settings.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &settings).unwrap();
        fcntl_setfl(terminal, fcntl_getfl(terminal).unwrap() | OFlags::NONBLOCK).unwrap();
    }

    /// Whether the terminal has its default settings.
    pub fn is_ordinary(terminal: &OwnedFd) -> bool {
        let settings = tcgetattr(terminal).unwrap();
        let echoes = settings
            .local_modes
            .contains(rustix::termios::LocalModes::ECHO);
        echoes && !fcntl_getfl(terminal).unwrap().contains(OFlags::NONBLOCK)
    }

    #[test]
    fn a_terminal_gets_its_settings_back() {
        let (terminal, _other) = terminal();
        let saved = SavedTerminal::of(&terminal).unwrap();
        make_raw(&terminal);
        assert!(!is_ordinary(&terminal));
        saved.restore();
        assert!(is_ordinary(&terminal));
        assert!(SavedTerminal::of(tempfile::tempfile().unwrap()).is_none());
    }
}
