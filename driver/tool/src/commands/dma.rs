// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar dma`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{ContentArgs, DmaArgs, DmaOperation};
use crate::commands::run_job;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::output;
use crate::range::Range;
use crate::region::Region;
use crate::source::Source;
use crate::sys::mapping::Access;
use crate::sys::queue::{Direction, Engine};
use crate::transfer::job::{Data, Job};
use crate::transfer::measurement::{Measurement, Rates};
use crate::transfer::pattern::{Differences, Pattern};

/// The result for JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    operation: &'static str,
    device: &'a Path,
    offset: u64,
    engine: Engine,
    depth: u32,
    block_size: u32,
    #[serde(flatten)]
    rates: Rates,
    /// Only of verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong_bytes: Option<u64>,
}

/// Executes a transfer, and prints its rates.
pub fn run(operation: &DmaOperation, json: bool) -> Result<()> {
    match operation {
        DmaOperation::Read { args, to } => {
            let device = Device::open(&args.device, Access::Read)?;
            let range = range(args, &device, args.length)?;
            let mut sink = Sink::create(to.as_deref())?;
            let done = transfer(args, &device, Direction::Read, range, &mut sink)?;
            sink.finish()?;
            let report = Report::new("read", args, range, &done);
            // Standard output has the data.
            match to.as_deref() == Some(Path::new("-")) {
                true => eprintln!("{}", report.text(&done)),
                false => report.print(&done, json)?,
            }
            Ok(())
        }
        DmaOperation::Write { args, data } => {
            let mut content = Content::new(data, args.length)?;
            let device = Device::open(&args.device, Access::ReadWrite)?;
            let range = range(args, &device, args.length.or(content.length()))?;
            let done = transfer(args, &device, Direction::Write, range, &mut content)?;
            content.finish(args.length)?;
            Report::new("write", args, range, &done).print(&done, json)?;
            Ok(())
        }
        DmaOperation::Verify { args, data } => {
            let content = Content::new(data, args.length)?;
            let device = Device::open(&args.device, Access::Read)?;
            let range = range(args, &device, args.length.or(content.length()))?;
            let mut verifier = Verifier::new(content);
            let done = transfer(args, &device, Direction::Read, range, &mut verifier)?;
            let differences = verifier.differences;
            Report {
                wrong_bytes: Some(differences.bytes),
                ..Report::new("verify", args, range, &done)
            }
            .print(&done, json)?;
            let Some((offset, expected, found)) = differences.first else {
                return Ok(());
            };
            Err(Error::Verify {
                path: args.device.clone(),
                expected_data: verifier.content.name(),
                bytes: differences.bytes,
                blocks: differences.blocks,
                offset,
                expected,
                found,
            })
        }
    }
}

/// The range of the arguments.
fn range(args: &DmaArgs, device: &Device, length: Option<u64>) -> Result<Range> {
    let size = device.size()?;
    Range::new(args.offset, length, size).map_err(|source| Error::Range {
        path: args.device.clone(),
        region: Region::Memory,
        source,
    })
}

/// Transfers a range, with a progress bar if standard error is a terminal.
fn transfer(
    args: &DmaArgs,
    device: &Device,
    direction: Direction,
    range: Range,
    data: &mut impl Data<Error = Error>,
) -> Result<Measurement> {
    let job = Job {
        direction,
        range,
        block: args.queue.block_size,
        time: None,
    };
    let bar = ProgressBar::new(range.length).with_style(
        ProgressStyle::with_template(
            "{bytes} of {total_bytes} [{wide_bar}] {bytes_per_sec}, {eta}",
        )
        .expect("a valid template"),
    );
    let result = run_job(device, &args.queue, &job, data, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    result
}

impl<'a> Report<'a> {
    fn new(
        operation: &'static str,
        args: &'a DmaArgs,
        range: Range,
        measurement: &Measurement,
    ) -> Self {
        Self {
            operation,
            device: &args.device,
            offset: range.start,
            engine: args.queue.engine,
            depth: args.queue.depth(),
            block_size: args.queue.block_size,
            rates: measurement.rates(),
            wrong_bytes: None,
        }
    }

    fn text(&self, measurement: &Measurement) -> String {
        format!(
            "{} {} at {:#x} of {} ({}, depth {}, blocks of {})\n{measurement}",
            match self.operation {
                "read" => "read",
                "write" => "wrote",
                _ => "compared",
            },
            ringbar_size::describe(self.rates.bytes),
            self.offset,
            self.device.display(),
            self.engine,
            self.depth,
            ringbar_size::format(self.block_size.into()),
        )
    }

    fn print(&self, measurement: &Measurement, json: bool) -> io::Result<()> {
        if json {
            return output::json(self);
        }
        let mut text = output::text();
        writeln!(text, "{}", self.text(measurement))?;
        text.flush()
    }
}

/// The destination of what is read.
struct Sink {
    name: String,
    writer: Box<dyn Write>,
    done: u64,
}

impl Sink {
    /// Creates a file, or takes standard output for `-`; without a path the data is discarded.
    fn create(path: Option<&Path>) -> Result<Self> {
        let writer: Box<dyn Write> = match path {
            None => Box::new(io::sink()),
            Some(path) if path == Path::new("-") => Box::new(io::stdout().lock()),
            Some(path) => {
                let file = File::create(path).map_err(|source| Error::Destination {
                    name: path.display().to_string(),
                    done: 0,
                    source,
                })?;
                Box::new(file)
            }
        };
        Ok(Self {
            name: match path {
                Some(path) if path != Path::new("-") => path.display().to_string(),
                _ => "standard output".into(),
            },
            writer,
            done: 0,
        })
    }

    fn fail(&self, source: io::Error) -> Error {
        Error::Destination {
            name: self.name.clone(),
            done: self.done,
            source,
        }
    }

    fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(|source| self.fail(source))
    }
}

impl Data for Sink {
    type Error = Error;

    fn prepare(&mut self, _: u64, _: &mut [u8]) -> Result<usize> {
        unreachable!("data is only read")
    }

    fn consume(&mut self, _: u64, bytes: &[u8]) -> Result<()> {
        let result = self.writer.write_all(bytes);
        result.map_err(|source| self.fail(source))?;
        self.done += bytes.len() as u64;
        Ok(())
    }
}

/// The bytes that are to be in the range.
enum Content {
    Pattern(Pattern),
    Source { source: Source, done: u64 },
}

impl Content {
    fn new(args: &ContentArgs, length: Option<u64>) -> Result<Self> {
        let Some(path) = &args.from else {
            return Ok(Self::Pattern(Pattern { seed: args.seed }));
        };
        let source = Source::open(path)?;
        source.check_length(length)?;
        Ok(Self::Source { source, done: 0 })
    }

    fn name(&self) -> String {
        match self {
            Self::Pattern(Pattern { seed }) => format!("the pattern of seed {seed}"),
            Self::Source { source, .. } => source.name.clone(),
        }
    }

    /// Number of bytes, if it is known.
    fn length(&self) -> Option<u64> {
        match self {
            Self::Pattern(_) => None,
            Self::Source { source, .. } => source.length,
        }
    }

    /// Puts the bytes of `offset` into `bytes`, as many as there are.
    fn fill(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize> {
        match self {
            Self::Pattern(pattern) => {
                pattern.fill(offset, bytes);
                Ok(bytes.len())
            }
            Self::Source { source, done } => {
                let count = source.fill(bytes, *done)?;
                *done += count as u64;
                Ok(count)
            }
        }
    }

    /// Checks that the source had as many bytes as `length` says, or as fit into the range.
    fn finish(&mut self, length: Option<u64>) -> Result<()> {
        match (self, length) {
            (Self::Source { source, done }, Some(wanted)) if *done < wanted => {
                Err(source.too_short(*done, wanted, *done))
            }
            (Self::Source { source, done }, None) if source.length.is_none() => {
                source.check_end(*done)
            }
            _ => Ok(()),
        }
    }
}

impl Data for Content {
    type Error = Error;

    fn prepare(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize> {
        self.fill(offset, bytes)
    }

    fn consume(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Compares what is read with what is to be there.
struct Verifier {
    content: Content,
    expected: Vec<u8>,
    done: u64,
    differences: Differences,
}

impl Verifier {
    fn new(content: Content) -> Self {
        Self {
            content,
            expected: Vec::new(),
            done: 0,
            differences: Differences::default(),
        }
    }
}

impl Data for Verifier {
    type Error = Error;

    fn prepare(&mut self, _: u64, _: &mut [u8]) -> Result<usize> {
        unreachable!("data is only read")
    }

    fn consume(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.expected.resize(bytes.len(), 0);
        let count = self.content.fill(offset, &mut self.expected)?;
        let wanted = self.done + bytes.len() as u64;
        if let Content::Source { source, done } = &self.content
            && count < bytes.len()
        {
            return Err(source.too_short(*done, wanted, self.done));
        }
        self.differences.compare(offset, &self.expected, bytes);
        self.done = wanted;
        Ok(())
    }
}
