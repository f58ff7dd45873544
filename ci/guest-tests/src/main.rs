// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-guest-tests`: runs tests of the driver and prints KTAP.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringbar_guest_tests::case::{Context, Stop};
use ringbar_guest_tests::{bar_check, canary, kexec, ktap, memcpy, suites};

/// Path of the kernel log, for reading and writing.
const KERNEL_LOG: &str = "/dev/kmsg";

/// Tests the Ringbar driver from user space.
#[derive(Debug, Parser)]
#[command(name = "ringbar-guest-tests", version)]
struct Cli {
    /// Device node to test
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/dev/ringbar0"
    )]
    device: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests of a suite and print the results in KTAP
    Run {
        /// Name of the suite
        suite: String,
        /// Run only these tests
        #[arg(value_name = "TEST")]
        tests: Vec<String>,
    },
    /// List all suites and their tests
    List,
    /// Compare DMA with the BAR map, in both directions
    BarCheck,
    /// Copy memory for some time and print the number of copies per second; does not use
    /// the device
    Memcpy(memcpy::Options),
    /// Fill most of the free memory, and later report whether anybody has written to it; does not
    /// use the device
    Canary(canary::Options),
    /// Execute another kernel without a reset of the machine
    #[command(subcommand)]
    Kexec(kexec::Step),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("ringbar-guest-tests: {message}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all tests passed; an error says why they could not run.
fn run(cli: &Cli) -> Result<bool, String> {
    let context =
        || Context::new(&cli.device).map_err(|error| format!("{}: {error}", cli.device.display()));
    match &cli.command {
        Command::List => {
            for suite in suites::stock().into_iter().chain(suites::debug()) {
                println!("{}: {}", suite.name, suite.about);
                for case in suite.cases {
                    println!("  {}", case.name);
                }
            }
            Ok(true)
        }
        Command::Run { suite, tests } => {
            let mut cases = suites::stock()
                .into_iter()
                .chain(suites::debug())
                .find(|known| known.name == *suite)
                .ok_or_else(|| format!("there is no suite {suite}"))?
                .cases;
            for test in tests {
                if !cases.iter().any(|case| case.name == *test) {
                    return Err(format!("suite {suite} has no test {test}"));
                }
            }
            if !tests.is_empty() {
                cases.retain(|case| tests.contains(&case.name));
            }
            let mut log = File::options()
                .write(true)
                .open(KERNEL_LOG)
                .map_err(|error| format!("{KERNEL_LOG}: {error}"))?;
            ktap::run(&cases, &context()?, &mut io::stdout().lock(), &mut log)
                .map_err(|error| format!("writing the results: {error}"))
        }
        Command::Memcpy(options) => {
            println!("{:.1}", memcpy::run(options)?);
            Ok(true)
        }
        Command::Canary(options) => {
            println!("{} bytes unchanged", canary::run(options)?);
            Ok(true)
        }
        Command::Kexec(step) => kexec::run(step).map(|()| true),
        Command::BarCheck => match bar_check::run(&context()?) {
            Ok(bytes) => {
                println!("{bytes} bytes compared");
                Ok(true)
            }
            Err(Stop::Failed(message) | Stop::Skipped(message)) => {
                eprintln!("{message}");
                Ok(false)
            }
        },
    }
}
