// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments and help.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

const AFTER_HELP: &str = "\
Examples:
  export RINGBAR_CONTROL_SOCKET=/run/ringbar/0/control.sock
  ringbarctl status
  ringbarctl stats --watch
  ringbarctl fault add read:offset=0..1M:nth=3:error=EIO
  ringbarctl resize 512M

Exit status:
  0  the command was executed
  1  the device refused the command, or the output could not be written
  2  wrong arguments
  3  the device cannot be reached, or did not reply";

/// Controls a running Ringbar device over its control socket (ringbar-device --control-socket).
#[derive(Debug, Parser)]
#[command(name = "ringbarctl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Control socket of the device
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "RINGBAR_CONTROL_SOCKET"
    )]
    pub socket: Option<PathBuf>,

    /// Print what the device returns as one line of JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Seconds to wait for a reply. A resize takes as long as its file system needs for the blocks
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=86400),
    )]
    pub timeout: u64,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the device is and whether a virtual machine is connected
    Status,
    /// Show what the queues have done, and how long requests took
    ///
    /// Latencies are from the moment at which the device took a request to the one at which the
    /// driver could see its result. Of requests that are done at once only some are measured, the
    /// first of each batch and each 16th after it. "<= 14 us" is the upper bound of a bucket, which
    /// is at most a quarter above the latency.
    Stats {
        /// Only this queue; the first I/O queue is 2
        #[arg(long, value_name = "N")]
        queue: Option<u16>,

        /// Show what is done within each interval, until interrupted; the default is 1 second
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "1",
            value_parser = clap::value_parser!(u64).range(1..=3600),
        )]
        watch: Option<u64>,

        /// Number of intervals to show, with --watch
        #[arg(long, value_name = "N", requires = "watch")]
        count: Option<u64>,

        /// Print the text format of Prometheus (version 0.0.4), for example for the textfile
        /// collector of the node exporter
        #[arg(long, conflicts_with_all = ["queue", "watch", "json"])]
        prometheus: bool,

        /// Value of the label "device", with --prometheus; the default is the path of the socket
        #[arg(long, value_name = "NAME", requires = "prometheus")]
        name: Option<String>,
    },
    /// Inject faults, for tests of drivers (docs/faults.md)
    Fault {
        /// What to do with the rules
        #[command(subcommand)]
        command: FaultCommand,
    },
    /// Change the size of the device memory; the driver gets an event
    Resize {
        /// The new size: bytes, or a number with a unit (K, M, G, T, powers of 1024)
        #[arg(value_parser = ringbar_size::parse)]
        size: u64,
    },
    /// Change which messages the log of the device has
    Log {
        /// off, error, warn, info, debug or trace, or levels for modules, for example
        /// "info,ringbar_engine=debug"
        #[arg(value_name = "LEVEL")]
        filter: String,
    },
    /// End the process of the device, as SIGTERM does
    Shutdown,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        directory: PathBuf,
    },
}

/// What to do with the rules for faults.
#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// Add a rule, for requests that the driver submits from now on
    Add {
        /// The rule, for example read:offset=0..1M:nth=3:error=EIO
        rule: String,
    },
    /// List the rules, with the number of requests that each matched and had its effect on
    List,
    /// Clear a rule, or all
    Clear {
        /// Number of the rule
        #[arg(value_name = "ID", required_unless_present = "all")]
        id: Option<u64>,

        /// Clear all rules
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for args in [
            &[][..],
            &["resize"],
            &["resize", "lots"],
            &["log"],
            &["fault"],
            &["fault", "clear"],
            &["fault", "clear", "1", "--all"],
            &["stats", "--watch", "0"],
            &["stats", "--count", "3"],
            &["stats", "--prometheus", "--json"],
            &["stats", "--name", "a"],
            &["status", "--timeout", "0"],
            &["completions", "cmd"],
        ] {
            let parsed = Cli::try_parse_from([&["ringbarctl"], args].concat());
            let error = parsed.expect_err(&format!("{args:?}"));
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn watch_has_a_default() {
        for (args, expected) in [
            (&[][..], None),
            (&["--watch"], Some(1)),
            (&["--watch", "5"], Some(5)),
        ] {
            let cli = Cli::parse_from([&["ringbarctl", "stats"], args].concat());
            let Command::Stats { watch, .. } = cli.command else {
                panic!("{cli:?}");
            };
            assert_eq!(watch, expected);
        }
    }
}
