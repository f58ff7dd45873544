// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci`: the program behind `make run`, `make exec`, `make shell`, `make test`,
//! `make bench` and `make new`, and behind `make test` of other cards.

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
    Card(commands::card::Options),
    Run(commands::run::Options),
    Exec(commands::exec::Options),
    New(commands::new::Options),
    Shell(commands::shell::Options),
    Test(commands::test::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ringbar-ci: {error:#}");
            ExitCode::from(commands::FAILURE)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // Needs no machine.
    if let Command::New(options) = &cli.command {
        return commands::new::run(options);
    }
    process::clean_up_on_signals()?;
    let setup = Setup::load(cli.setup.as_deref())?;
    match &cli.command {
        Command::Bench(options) => commands::bench::run(&setup, options),
        Command::Card(options) => commands::card::run(&setup, options),
        Command::Exec(options) => commands::exec::run(&setup, options),
        Command::New(options) => commands::new::run(options),
        Command::Run(options) => commands::run::run(&setup, options),
        Command::Shell(options) => commands::shell::run(&setup, options),
        Command::Test(options) => commands::test::run(&setup, options),
    }
}
