// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci`: the program behind `make run`, `make exec`, `make shell`, `make test`
//! and `make bench`.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringbar_vm::process;
use ringbar_vm::setup::Setup;

/// Runs Ringbar in a virtual machine.
#[derive(Debug, Parser)]
#[command(name = "ringbar-ci", version)]
struct Cli {
    /// Record of `make setup` [default: build/setup.json of this checkout]
    #[arg(long, global = true, env = "RINGBAR_SETUP", value_name = "FILE")]
    setup: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(commands::bench::Options),
    Run(commands::run::Options),
    Exec(commands::exec::Options),
    Shell(commands::shell::Options),
    Test(commands::test::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = process::clean_up_on_signals()
        .and_then(|()| Setup::load(cli.setup.as_deref()))
        .map_err(anyhow::Error::from)
        .and_then(|setup| match cli.command {
            Command::Bench(options) => commands::bench::run(&setup, &options),
            Command::Run(options) => commands::run::run(&setup, &options),
            Command::Exec(options) => commands::exec::run(&setup, &options),
            Command::Test(options) => commands::test::run(&setup, &options),
            Command::Shell(options) => commands::shell::run(&setup, &options),
        });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ringbar-ci: {error:#}");
            ExitCode::from(commands::FAILURE)
        }
    }
}
