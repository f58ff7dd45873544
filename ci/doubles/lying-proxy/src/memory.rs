// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory of the guest, and the region of the shadow rings.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::message::{Message, invalid};

/// Guest address of the shadow region: above the memory of any guest, so that the table
/// stays sorted.
const SHADOW_GUEST: u64 = 1 << 60;

/// User address of the shadow region in the monitor's address space, where no process has
/// a mapping.
const SHADOW_USER: u64 = 1 << 60;

/// Bytes of the shadow rings of one queue with at most 1024 entries.
const STRIDE: u64 = 0x4000;

/// Offset of the used ring in them.
const USED: u64 = 0x1000;

/// Maximum number of queues.
pub(crate) const MAX_QUEUES: usize = 64;

const SHADOW_SIZE: u64 = STRIDE * MAX_QUEUES as u64;

/// Offsets and sizes in the body of `SET_MEM_TABLE`.
const TABLE_HEADER: usize = 8;
const REGION: usize = 32;

/// A region as the monitor sees it.
#[derive(Clone, Copy, Debug)]
struct Region {
    guest: u64,
    size: u64,
    user: u64,
}

/// Guest memory and shadow region. All accesses are bounds-checked.
#[derive(Debug)]
pub(crate) struct Memory {
    shadow: File,
    regions: Vec<Region>,
    map: GuestMemoryMmap,
}

impl Memory {
    /// The shadow region without guest memory.
    pub(crate) fn new() -> io::Result<Self> {
        let shadow = memfd_create("lying-proxy", MemfdFlags::CLOEXEC)?;
        ftruncate(&shadow, SHADOW_SIZE)?;
        Ok(Self {
            shadow: shadow.into(),
            regions: Vec::new(),
            map: GuestMemoryMmap::new(),
        })
    }

    /// Adopts the memory table of a message, and adds the shadow region to the message.
    pub(crate) fn update(&mut self, message: &mut Message) -> io::Result<()> {
        let count = message.word(0)? as usize;
        if count != message.files.len() {
            return Err(invalid(format!(
                "{count} memory regions, but not as many files"
            )));
        }
        let mut ranges = Vec::new();
        self.regions.clear();
        for (i, file) in message.files.iter().enumerate() {
            let at = TABLE_HEADER + i * REGION;
            let region = Region {
                guest: message.long(at)?,
                size: message.long(at + 8)?,
                user: message.long(at + 16)?,
            };
            let offset = FileOffset::new(file.try_clone()?.into(), message.long(at + 24)?);
            ranges.push((
                GuestAddress(region.guest),
                region.size as usize,
                Some(offset),
            ));
            self.regions.push(region);
        }
        let shadow = FileOffset::new(self.shadow.try_clone()?, 0);
        ranges.push((
            GuestAddress(SHADOW_GUEST),
            SHADOW_SIZE as usize,
            Some(shadow),
        ));
        self.map = GuestMemoryMmap::from_ranges_with_files(&ranges).map_err(io::Error::other)?;

        message.body.truncate(TABLE_HEADER + count * REGION);
        for word in [SHADOW_GUEST, SHADOW_SIZE, SHADOW_USER, 0] {
            message.body.extend(word.to_ne_bytes());
        }
        message.body[..4].copy_from_slice(&(count as u32 + 1).to_ne_bytes());
        message.files.push(OwnedFd::from(self.shadow.try_clone()?));
        Ok(())
    }

    /// Translates a user address of the monitor to a guest address.
    pub(crate) fn to_guest(&self, user: u64) -> io::Result<u64> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = user.checked_sub(region.user)?;
                (offset < region.size).then_some(region.guest + offset)
            })
            .ok_or_else(|| invalid(format!("no memory region has the address {user:#x}")))
    }

    /// Reads a value.
    pub(crate) fn read<T: ByteValued>(&self, at: u64) -> io::Result<T> {
        self.map
            .read_obj(GuestAddress(at))
            .map_err(io::Error::other)
    }

    /// Writes a value.
    pub(crate) fn write<T: ByteValued>(&self, at: u64, value: T) -> io::Result<()> {
        self.map
            .write_obj(value, GuestAddress(at))
            .map_err(io::Error::other)
    }

    /// Reads a value with acquire ordering.
    pub(crate) fn load<T: AtomicAccess>(&self, at: u64) -> io::Result<T> {
        self.map
            .load(GuestAddress(at), Ordering::Acquire)
            .map_err(io::Error::other)
    }

    /// Writes a value with release ordering.
    pub(crate) fn store<T: AtomicAccess>(&self, at: u64, value: T) -> io::Result<()> {
        self.map
            .store(value, GuestAddress(at), Ordering::Release)
            .map_err(io::Error::other)
    }
}

/// Addresses of the shadow available ring of queue `index`: guest address and user
/// address.
pub(crate) const fn shadow_avail(index: usize) -> (u64, u64) {
    let at = index as u64 * STRIDE;
    (SHADOW_GUEST + at, SHADOW_USER + at)
}

/// Addresses of the shadow used ring of queue `index`.
pub(crate) const fn shadow_used(index: usize) -> (u64, u64) {
    let (guest, user) = shadow_avail(index);
    (guest + USED, user + USED)
}
