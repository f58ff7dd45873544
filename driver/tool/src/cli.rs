// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::region::Region;

const EXIT_STATUS: &str = "\
Exit status:
  0  all went well, or the reader of the output had seen enough
  1  something failed; the message says what
  2  wrong arguments";

const MAP_HELP: &str = "\
Offsets and lengths are bytes, decimal or 0x..., or have a unit: K, M, G, T (powers
of 1024). They need not be page aligned.

Regions of a device:
  memory        the device memory, write-combining; the only one a file has
  uncached      the same, uncached
  cached        the same, cached; only sound while it is RAM, as in a virtual machine
  statistics    the page of counters, read-only; see also: ringbar stats
  events        the event log, read-only; see also: ringbar events
  used-rings:N  used ring of queue N, read-only

Examples:
  The first 256 bytes of the device memory:
    ringbar map /dev/ringbar0 --length 256

  Copy 1 MiB of it to a file:
    ringbar map /dev/ringbar0 --offset 16M --length 1M --format raw > copy

  Write through the map:
    echo hello | ringbar map /dev/ringbar0 --offset 0x1003 --write -

  A file, or the BAR of any PCI device:
    ringbar map /etc/os-release
    ringbar map /sys/bus/pci/devices/0000:00:04.0/resource2 --length 64

Exit status:
  0  all went well, or the reader of the output had seen enough
  1  something failed, or the mapped memory went away; the message says what
  2  wrong arguments";

/// Looks at Ringbar devices: maps, counters, event log. Resets them.
#[derive(Debug, Parser)]
#[command(name = "ringbar", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Map a range of a device or file, and dump it or write to it
    ///
    /// The range is mapped with mmap (MAP_SHARED). It is dumped to standard output or,
    /// with --write, stored to.
    Map(MapArgs),
    /// Print the counters of a device, one in each line
    Stats(StatsArgs),
    /// Print what happened to a device
    Events(DeviceArgs),
    /// Print size, state, PCI address, driver and counters of a device
    Info(DeviceArgs),
    /// Reset a device, which brings it back into service (administrators only)
    ///
    /// A device that has broken the protocol is out of service: requests end with an
    /// input/output error, see "ringbar info" and "ringbar events". This resets it and
    /// sets it up again. Requests that it has not answered yet end with an error. Maps of
    /// the device memory go away, and whoever uses them gets SIGBUS; they can be made
    /// again afterwards. Open files stay as they are.
    Reset(DeviceArgs),
}

/// How a dump looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Offset, 16 bytes and their characters in each line, `*` for repeated lines
    Hex,
    /// The bytes as they are
    Raw,
}

/// What to map, and what to do with it.
#[derive(Debug, Args)]
#[command(after_help = MAP_HELP)]
pub struct MapArgs {
    /// Device or file to map
    pub file: PathBuf,

    /// First byte, counted from the start of the region
    #[arg(long, value_name = "N", default_value = "0", value_parser = ringbar_size::parse)]
    pub offset: u64,

    /// Number of bytes. By default all up to the end of the region; with --write,
    /// all that there is to write
    #[arg(long, value_name = "N", value_parser = ringbar_size::parse)]
    pub length: Option<u64>,

    /// How to dump
    #[arg(long, value_enum, default_value = "hex", conflicts_with = "write")]
    pub format: Format,

    /// Write the bytes of this file, or of standard input for "-", to the range
    /// instead of dumping it
    #[arg(long, value_name = "FILE|-")]
    pub write: Option<PathBuf>,

    /// What to map: memory, uncached, cached, statistics, events or used-rings:N
    #[arg(long, value_name = "REGION", default_value = "memory")]
    pub region: Region,
}

/// A device.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct DeviceArgs {
    /// The device
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,
}

/// Which counters to print, and how often.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct StatsArgs {
    /// The device
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// Print them again and again, this far apart, each with what was added since
    /// the time before
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub watch: Option<Duration>,
}

/// Reads an interval in seconds, which may have a fraction.
fn interval(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| "expected a number of seconds above 0: 1, 0.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    fn map(arguments: &[&str]) -> Result<MapArgs, clap::Error> {
        let all = ["ringbar", "map"].iter().chain(arguments);
        match Cli::try_parse_from(all)?.command {
            Command::Map(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_map_is_described_by_its_arguments() {
        let args = map(&["x"]).unwrap();
        assert_eq!((args.offset, args.length), (0, None));
        assert_eq!(args.format, Format::Hex);
        assert_eq!(args.region, Region::Memory);

        let args = map(&[
            "x",
            "--offset",
            "0x10",
            "--length=4K",
            "--region=used-rings:3",
            "--format=raw",
        ])
        .unwrap();
        assert_eq!((args.offset, args.length), (16, Some(4096)));
        assert_eq!(args.format, Format::Raw);
        assert_eq!(args.region, Region::UsedRing(3));
        assert_eq!(
            map(&["x", "--write", "-"]).unwrap().write,
            Some(PathBuf::from("-"))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for arguments in [
            &[][..],
            &["x", "--offset", "-1"],
            &["x", "--length", "1X"],
            &["x", "--region", "nowhere"],
            &["x", "--format", "octal"],
            &["x", "--write", "-", "--format", "raw"],
        ] {
            assert!(map(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn an_interval_is_a_positive_number_of_seconds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("2"), Ok(Duration::from_secs(2)));
        for text in ["", "0", "-1", "nan", "inf", "1s", "1e-12"] {
            assert!(interval(text).is_err(), "{text:?}");
        }
    }
}
