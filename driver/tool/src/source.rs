// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The source of bytes to write: a file, or standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// A source.
pub struct Source {
    /// Name for messages.
    pub name: String,
    /// Number of bytes of an ordinary file.
    pub length: Option<u64>,
    reader: Box<dyn Read>,
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> Result<Self> {
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

    /// Fails if the source is known to be shorter than `wanted` bytes.
    pub fn check_length(&self, wanted: Option<u64>) -> Result<()> {
        match (wanted, self.length) {
            (Some(wanted), Some(found)) if found < wanted => Err(self.too_short(found, wanted, 0)),
            _ => Ok(()),
        }
    }

    /// Reads until `buffer` is full, or the end of the source. `done` is the number of bytes that
    /// were read before, for the message.
    pub fn fill(&mut self, buffer: &mut [u8], done: u64) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Source {
                        name: self.name.clone(),
                        done,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }

    /// Fails if the source has more bytes.
    pub fn check_end(&mut self, done: u64) -> Result<()> {
        match self.fill(&mut [0], done)? {
            0 => Ok(()),
            _ => Err(Error::SourceTooLong {
                name: self.name.clone(),
                done,
            }),
        }
    }

    /// The error of a source that ends after `found` of `wanted` bytes.
    pub fn too_short(&self, found: u64, wanted: u64, done: u64) -> Error {
        Error::SourceTooShort {
            name: self.name.clone(),
            found,
            wanted,
            done,
        }
    }
}
