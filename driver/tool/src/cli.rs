// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::region::Region;

const EXIT_STATUS: &str = "\
Exit status:
  0  success, also if the reader of the output closed the pipe
  1  an operation failed; the message says which
  2  wrong arguments";

const MAP_HELP: &str = "\
Offsets and lengths are bytes, decimal or 0x..., or have a unit: K, M, G, T (powers
of 1024). They need not be page-aligned.

Regions of a device (a file has only the region memory):
  memory        the device memory, write-combining
  uncached      the device memory, uncached
  cached        the device memory, cached; correct only if it is RAM, as in a virtual machine
  statistics    the page of counters, read-only; see also: ringbar stats
  events        the event log, read-only; see also: ringbar events
  used-rings:N  used ring of queue N, read-only

Examples:
  The first 256 bytes of the device memory:
    ringbar map /dev/ringbar0 --length 256

  Copy 1 MiB of the device memory to a file:
    ringbar map /dev/ringbar0 --offset 16M --length 1M --format raw > copy

  Write through the map:
    echo hello | ringbar map /dev/ringbar0 --offset 0x1003 --write -

  Dump a file, or the BAR of any PCI device:
    ringbar map /etc/os-release
    ringbar map /sys/bus/pci/devices/0000:00:04.0/resource2 --length 64

Exit status:
  0  success, also if the reader of the output closed the pipe
  1  an operation failed, or the map was removed meanwhile; the message says which
  2  wrong arguments";

/// Inspects and resets Ringbar devices: maps, counters, event log.
#[derive(Debug, Parser)]
#[command(name = "ringbar", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub struct Cli {
    /// Command to execute
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Map a range of a device or file, and dump it or write to it
    ///
    /// Maps the range with mmap (MAP_SHARED), and dumps it to standard output. With
    /// --write, stores to it instead.
    Map(MapArgs),
    /// Print the counters of a device, one a line
    Stats(StatsArgs),
    /// Print the event log of a device: starts, resizes, suspends, resets, faults
    Events(DeviceArgs),
    /// Print size, state, PCI address, driver and counters of a device
    Info(DeviceArgs),
    /// Reset a device and put it back into service (administrators only)
    ///
    /// A device that has broken the protocol is out of service: requests fail with an
    /// input/output error, see "ringbar info" and "ringbar events". This command resets the
    /// device and sets it up again. Requests in flight fail. The driver removes all maps of the
    /// device memory: access to them raises SIGBUS, and processes can map the memory again
    /// afterwards. Open files stay usable.
    Reset(DeviceArgs),
}

/// Format of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Offset, 16 bytes and their characters in each line, `*` for repeated lines
    Hex,
    /// The bytes without any formatting
    Raw,
}

/// Range to map, and the operation on it.
#[derive(Debug, Args)]
#[command(after_help = MAP_HELP)]
pub struct MapArgs {
    /// Device or file to map
    pub file: PathBuf,

    /// First byte, counted from the start of the region
    #[arg(long, value_name = "N", default_value = "0", value_parser = ringbar_size::parse)]
    pub offset: u64,

    /// Number of bytes. The default is all bytes up to the end of the region; with --write,
    /// all bytes of FILE
    #[arg(long, value_name = "N", value_parser = ringbar_size::parse)]
    pub length: Option<u64>,

    /// Format of the dump
    #[arg(long, value_enum, default_value = "hex", conflicts_with = "write")]
    pub format: Format,

    /// Write the bytes of this file, or of standard input for "-", to the range, and dump
    /// nothing
    #[arg(long, value_name = "FILE|-")]
    pub write: Option<PathBuf>,

    /// Region to map: memory, uncached, cached, statistics, events or used-rings:N
    #[arg(long, value_name = "REGION", default_value = "memory")]
    pub region: Region,
}

/// A device.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct DeviceArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,
}

/// Device whose counters to print, and the interval.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct StatsArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// Print the counters repeatedly at this interval, each with the increase since the
    /// previous time
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub watch: Option<Duration>,
}

/// Parses an interval in seconds, which may have a fraction.
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
    fn arguments_of_a_map_are_parsed() {
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
    fn invalid_arguments_are_refused() {
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
