// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What direct I/O on a file or block device wants, and how large that is.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::ffi::c_int;
use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};
use rustix::ioctl::{Getter, ioctl, opcode};

use crate::error::OpenError;

/// What is assumed where the kernel says nothing, in bytes: more than any usual disk wants.
const ASSUMED: u32 = 4096;

/// What direct I/O wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Offsets and lengths are multiples of this, a power of two, in bytes.
    pub(super) granularity: u64,
    /// Addresses in memory are multiples of this, a power of two, in bytes.
    pub(super) align: usize,
    /// Whether it is a block device, whose size is what it is.
    pub(super) is_device: bool,
}

impl Geometry {
    /// Asks the kernel (`BLKSSZGET`, and `STATX_DIOALIGN` since Linux 6.1).
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, OpenError> {
        let open_error = |source: io::Error| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        let is_device = file
            .metadata()
            .map_err(open_error)?
            .file_type()
            .is_block_device();
        if is_device && is_read_only(file).map_err(open_error)? {
            return Err(OpenError::ReadOnly(path.to_owned()));
        }
        // The mask says whether the kernel knows the fields.
        let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|told| {
                StatxFlags::from_bits_retain(told.stx_mask).contains(StatxFlags::DIOALIGN)
            });
        let told = told.map(|told| (told.stx_dio_offset_align, told.stx_dio_mem_align));
        let (granularity, align) = match told {
            Some((0, _) | (_, 0)) if !is_device => {
                return Err(OpenError::NoDirectIo {
                    path: path.to_owned(),
                    source: None,
                });
            }
            Some((offset, memory)) if offset > 0 && memory > 0 => (offset, memory),
            _ if is_device => {
                let block = ioctl_blksszget(file).map_err(|errno| open_error(errno.into()))?;
                (block, block.max(ASSUMED))
            }
            _ => (ASSUMED, ASSUMED),
        };
        if !granularity.is_power_of_two() || !align.is_power_of_two() {
            let what = format!("blocks of {granularity} bytes in memory at multiples of {align}");
            return Err(open_error(io::Error::other(what)));
        }
        Ok(Self {
            granularity: granularity.into(),
            align: align as usize,
            is_device,
        })
    }

    /// Bytes of the file or device.
    pub(super) fn length(mut file: &File) -> io::Result<u64> {
        // Also of a block device, unlike its metadata.
        file.seek(SeekFrom::End(0))
    }

    /// `OpenError::Granularity` for what is no number of whole blocks.
    pub(super) fn check(self, path: &Path, size: u64) -> Result<(), OpenError> {
        match size.is_multiple_of(self.granularity) {
            true => Ok(()),
            false => Err(OpenError::Granularity {
                path: path.to_owned(),
                size,
                granularity: self.granularity,
            }),
        }
    }
}

/// Whether a block device takes no writes, though it may be open for them.
fn is_read_only(file: &File) -> io::Result<bool> {
    /// `BLKROGET` of `include/uapi/linux/fs.h`.
    const READ_ONLY: rustix::ioctl::Opcode = opcode::none(0x12, 94);
    // SAFETY: The request returns an int.
    let get = unsafe { Getter::<READ_ONLY, c_int>::new() };
    // SAFETY: The request changes nothing, and other memory than its result is not involved.
    Ok(unsafe { ioctl(file, get) }? != 0)
}
