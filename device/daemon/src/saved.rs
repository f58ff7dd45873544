// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a worker leaves to the next one, beside the storage and the record of what is in flight:
//! sizes that have changed since the start.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use ringbar_model::Resumed;
use rustix::fs::{MemfdFlags, memfd_create};

/// A number in the file.
#[derive(Clone, Copy)]
enum Field {
    Capacity = 0,
    Aperture = 8,
    IsResized = 16,
}

/// A file in memory that outlives the process.
#[derive(Debug)]
pub struct Saved(File);

impl Saved {
    /// For a device of this capacity.
    pub fn new(capacity: u64) -> io::Result<Self> {
        let saved = Self(memfd_create("ringbar-saved", MemfdFlags::CLOEXEC)?.into());
        saved.set(Field::Capacity, capacity)?;
        Ok(saved)
    }

    /// The file that another process has left.
    pub const fn adopt(file: File) -> Self {
        Self(file)
    }

    fn set(&self, field: Field, value: u64) -> io::Result<()> {
        self.0.write_all_at(&value.to_ne_bytes(), field as u64)
    }

    fn get(&self, field: Field) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, field as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// A connection has begun, on which the monitor can map so many bytes.
    pub fn connected(&self, aperture: u64) -> io::Result<()> {
        self.set(Field::Aperture, aperture)?;
        self.set(Field::IsResized, 0)
    }

    /// The device has another capacity.
    pub fn resized(&self, capacity: u64) -> io::Result<()> {
        self.set(Field::Capacity, capacity)?;
        self.set(Field::IsResized, 1)
    }

    /// Capacity of the device.
    pub fn capacity(&self) -> io::Result<u64> {
        self.get(Field::Capacity)
    }

    /// The connection that another process has begun.
    pub fn connection(&self) -> io::Result<Resumed> {
        Ok(Resumed {
            aperture: self.get(Field::Aperture)?,
            is_resized: self.get(Field::IsResized)? != 0,
        })
    }
}

impl AsFd for Saved {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_finds_what_was_saved() {
        let saved = Saved::new(5000).unwrap();
        saved.connected(4096).unwrap();
        let other = Saved::adopt(saved.0.try_clone().unwrap());
        let resumed = |is_resized| Resumed {
            aperture: 4096,
            is_resized,
        };
        assert_eq!(other.capacity().unwrap(), 5000);
        assert_eq!(other.connection().unwrap(), resumed(false));
        saved.resized(9000).unwrap();
        assert_eq!(other.capacity().unwrap(), 9000);
        assert_eq!(other.connection().unwrap(), resumed(true));
        other.connected(8192).unwrap();
        assert!(!saved.connection().unwrap().is_resized);
    }
}
