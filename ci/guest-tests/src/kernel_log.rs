// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads the kernel log (`Documentation/ABI/testing/dev-kmsg`).

use std::fs::File;
use std::io::{self, Read};

use crate::case::{During, Verdict};
use crate::sys;

/// Maximum length of a record in bytes.
const RECORD: usize = 8192;

/// The kernel log from a position on.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// The kernel log from now on.
    pub fn from_now() -> Verdict<Self> {
        let path = std::path::Path::new("/dev/kmsg");
        let file = sys::open(path, libc::O_RDONLY | libc::O_NONBLOCK)
            .during(|| format!("opening {}", path.display()))?;
        sys::lseek(&file, 0, libc::SEEK_END)?;
        Ok(Self(file))
    }

    /// Texts of the driver's messages since the last call.
    pub fn of_driver(&mut self) -> Verdict<Vec<String>> {
        let mut texts = self.lines()?;
        texts.retain(|text| text.starts_with("ringbar"));
        Ok(texts)
    }

    /// Texts of all messages since the last call.
    pub fn lines(&mut self) -> Verdict<Vec<String>> {
        let mut texts = Vec::new();
        let mut record = [0; RECORD];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => texts.extend(text(&record[..length]).map(str::to_owned)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).during(|| "reading the kernel log".into()),
            }
        }
        Ok(texts)
    }
}

/// The text of a record: between its prefix and the lines with its properties.
fn text(record: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(record).ok()?.split_once(';')?;
    rest.lines().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_a_text() {
        let record = b"3,512,98765,-;ringbar 0000:00:03.0: a; b\n SUBSYSTEM=pci\n";
        assert_eq!(text(record), Some("ringbar 0000:00:03.0: a; b"));
        assert_eq!(text(b"no record"), None);
    }
}
