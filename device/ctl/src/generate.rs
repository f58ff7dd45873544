// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Completion scripts and manual pages, from the definition of the arguments.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Writes a completion script.
pub fn completions(shell: Shell, output: &mut dyn Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringbarctl", &mut script);
    output.write_all(&script)
}

/// Writes the manual pages of the program and of its commands into a directory.
pub fn manual(directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory)
}
