// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar map`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::cli::{Format, MapArgs};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::hexdump::HexDump;
use crate::output;
use crate::range::Range;
use crate::source::Source;
use crate::sys::mapping::{Access, Mapping};
use crate::sys::sigbus;

/// Number of bytes that are copied at a time.
const CHUNK: usize = 64 << 10;

/// Dumps a range, or writes to it.
pub fn run(args: &MapArgs, json: bool) -> Result<()> {
    match &args.write {
        Some(from) => write(args, from, json),
        None => dump(args, json),
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

fn dump(args: &MapArgs, json: bool) -> Result<()> {
    let device = Device::open(&args.file, Access::Read)?;
    let (map, range) = map(args, &device, args.length)?;
    let output = io::stdout().lock();
    match args.format {
        _ if json => dump_json(args, &map, range, output)?,
        Format::Raw => dump_raw(&map, output)?,
        Format::Hex => dump_hex(&map, range.start, output)?,
    }
    Ok(())
}

/// One object. The bytes are its last member, and are not kept in memory.
fn dump_json(args: &MapArgs, map: &Mapping, range: Range, output: impl Write) -> io::Result<()> {
    let mut output = BufWriter::new(output);
    let head = json!({
        "file": args.file.to_string_lossy(),
        "region": args.region.to_string(),
        "offset": range.start,
        "length": range.length,
    })
    .to_string();
    write!(output, "{},\"hex\":\"", head.trim_end_matches('}'))?;
    for_each_chunk(map, |chunk| {
        chunk
            .iter()
            .try_for_each(|byte| write!(output, "{byte:02x}"))
    })?;
    writeln!(output, "\"}}")?;
    output.flush()
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

fn write(args: &MapArgs, from: &Path, json: bool) -> Result<()> {
    if !args.region.is_memory() {
        return Err(Error::ReadOnly {
            path: args.file.clone(),
            region: args.region,
        });
    }
    let mut source = Source::open(from)?;
    // A known length is checked before anything is written.
    source.check_length(args.length)?;
    let device = Device::open(&args.file, Access::ReadWrite)?;
    let (map, range) = map(args, &device, args.length.or(source.length))?;
    let written = store(&map, &mut source, args.length)?;
    if json {
        output::json(&json!({
            "file": args.file.to_string_lossy(),
            "region": args.region.to_string(),
            "offset": range.start,
            "written": written,
        }))?;
    } else {
        writeln!(
            io::stdout(),
            "{written} bytes written at {:#x}",
            range.start
        )?;
    }
    Ok(())
}

/// Stores the bytes of `source` at the start of the map. With `length`, stores exactly that
/// number of bytes, which is the size of the map.
fn store(map: &Mapping, source: &mut Source, length: Option<u64>) -> Result<usize> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let wanted = buffer.len().min(map.len() - written);
        let count = source.fill(&mut buffer[..wanted], written as u64)?;
        map.store(written, &buffer[..count]);
        written += count;
        if count == 0 {
            break;
        }
    }
    match length {
        Some(wanted) if (written as u64) < wanted => {
            Err(source.too_short(written as u64, wanted, written as u64))
        }
        Some(_) => Ok(written),
        None => source.check_end(written as u64).map(|()| written),
    }
}
