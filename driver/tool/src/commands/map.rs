// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar map`.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use crate::cli::{Format, MapArgs};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::hexdump::HexDump;
use crate::range::Range;
use crate::sys::mapping::{Access, Mapping};
use crate::sys::sigbus;

/// Number of bytes that are copied at a time.
const CHUNK: usize = 64 << 10;

/// Dumps a range, or writes to it.
pub fn run(args: &MapArgs) -> Result<()> {
    match &args.write {
        Some(from) => write(args, from),
        None => dump(args),
    }
}

/// Maps the range of the arguments; returns the map and the range.
fn map(args: &MapArgs, device: &Device, length: Option<u64>) -> Result<(Mapping, Range)> {
    let size = device.region_size(args.region)?;
    let range = Range::new(args.offset, length, size).map_err(|source| Error::Range {
        path: args.file.clone(),
        region: args.region,
        source,
    })?;
    sigbus::install(&args.file).map_err(Error::Handler)?;
    Ok((device.map(args.region, range)?, range))
}

fn dump(args: &MapArgs) -> Result<()> {
    let device = Device::open(&args.file, Access::Read)?;
    let (map, range) = map(args, &device, args.length)?;
    let output = io::stdout().lock();
    match args.format {
        Format::Raw => dump_raw(&map, output)?,
        Format::Hex => dump_hex(&map, range.start, output)?,
    }
    Ok(())
}

/// Passes the bytes of a map to `sink` in chunks.
fn for_each_chunk(map: &Mapping, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min(map.len())];
    let mut at = 0;
    while at < map.len() {
        let count = buffer.len().min(map.len() - at);
        let chunk = &mut buffer[..count];
        map.load(at, chunk);
        sink(chunk)?;
        at += count;
    }
    Ok(())
}

fn dump_raw(map: &Mapping, mut output: impl Write) -> io::Result<()> {
    for_each_chunk(map, |chunk| output.write_all(chunk))?;
    output.flush()
}

fn dump_hex(map: &Mapping, offset: u64, output: impl Write) -> io::Result<()> {
    let mut dump = HexDump::new(BufWriter::new(output), offset);
    for_each_chunk(map, |chunk| dump.push(chunk))?;
    dump.finish()?.flush()
}

/// Source of the bytes to write.
struct Source {
    name: String,
    reader: Box<dyn Read>,
    /// Number of bytes of an ordinary file.
    length: Option<u64>,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self {
                name: "standard input".into(),
                reader: Box::new(io::stdin()),
                length: None,
            });
        }
        let fail = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        Ok(Self {
            name: path.display().to_string(),
            length: metadata.is_file().then_some(metadata.len()),
            reader: Box::new(file),
        })
    }

    /// Reads until `buffer` is full, or the end of the source.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

fn write(args: &MapArgs, from: &Path) -> Result<()> {
    if !args.region.is_memory() {
        return Err(Error::ReadOnly {
            path: args.file.clone(),
            region: args.region,
        });
    }
    let mut source = Source::open(from)?;
    // A known length is checked before anything is written.
    if let (Some(wanted), Some(found)) = (args.length, source.length)
        && found < wanted
    {
        return Err(Error::SourceTooShort {
            name: source.name,
            found,
            wanted,
            written: 0,
        });
    }
    let device = Device::open(&args.file, Access::ReadWrite)?;
    let (map, range) = map(args, &device, args.length.or(source.length))?;
    let written = store(&map, &mut source, args.length)?;
    writeln!(
        io::stdout(),
        "{written} bytes written at {:#x}",
        range.start
    )?;
    Ok(())
}

/// Stores the bytes of `source` at the start of the map. With `length`, stores exactly that
/// number of bytes, which is the size of the map.
fn store(map: &Mapping, source: &mut Source, length: Option<u64>) -> Result<usize> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let wanted = buffer.len().min(map.len() - written);
        // At the end of the map, checks whether the source has more bytes.
        let probe = usize::from(wanted == 0 && length.is_none());
        let count = source
            .fill(&mut buffer[..wanted.max(probe)])
            .map_err(|error| Error::Source {
                name: source.name.clone(),
                written: written as u64,
                source: error,
            })?;
        if count > wanted {
            return Err(Error::SourceTooLong {
                name: source.name.clone(),
                written: written as u64,
            });
        }
        map.store(written, &buffer[..count]);
        written += count;
        match length {
            Some(wanted) if count == 0 && (written as u64) < wanted => {
                return Err(Error::SourceTooShort {
                    name: source.name.clone(),
                    found: written as u64,
                    wanted,
                    written: written as u64,
                });
            }
            _ if count == 0 => return Ok(written),
            _ => {}
        }
    }
}
