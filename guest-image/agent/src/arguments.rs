// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The parameters of PID 1 on the kernel command line.

use std::{fs, io};

use ringbar_agent_protocol::{LINE_PARAMETER, MODE_PARAMETER, MODE_SHELL, TERM_PARAMETER};

/// Task of PID 1 after the set-up of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Execute the host's requests.
    Serve,
    /// Run a shell on the serial console.
    Shell,
}

/// Parameters of the kernel command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Task.
    pub mode: Mode,
    /// Value of `TERM` for the shell.
    pub terminal: Option<String>,
    /// Serial line for the host's requests.
    pub line: Option<String>,
}

impl Arguments {
    /// Reads `/proc/cmdline`.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/cmdline")?))
    }

    fn parse(line: &str) -> Self {
        let value = |name| {
            line.split_ascii_whitespace()
                .filter_map(|word| word.split_once('='))
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value)
                .next_back()
        };
        Self {
            mode: match value(MODE_PARAMETER) {
                Some(MODE_SHELL) => Mode::Shell,
                _ => Mode::Serve,
            },
            terminal: value(TERM_PARAMETER).map(str::to_owned),
            line: value(LINE_PARAMETER).map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serving_is_the_default() {
        let arguments = Arguments::parse("console=ttyS0 quiet panic=-1\n");
        assert_eq!(arguments.mode, Mode::Serve);
        assert_eq!(arguments.terminal, None);
        assert_eq!(arguments.line, None);
    }

    #[test]
    fn a_serial_line_is_named_by_its_device() {
        let arguments = Arguments::parse("quiet agent.line=/dev/ttyS1");
        assert_eq!(arguments.line.as_deref(), Some("/dev/ttyS1"));
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let arguments =
            Arguments::parse("ringbar.mode=serve ringbar.mode=shell agent.term=xterm-256color");
        assert_eq!(arguments.mode, Mode::Shell);
        assert_eq!(arguments.terminal.as_deref(), Some("xterm-256color"));
    }
}
