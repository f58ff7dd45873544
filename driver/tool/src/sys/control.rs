// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests to the driver by `ioctl`.

use std::fs::File;

use ringbar_uapi::{self as uapi, Info};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, ioctl};

/// Information of the driver about a device.
pub fn info(file: &File) -> Result<Info, Errno> {
    // SAFETY: this number is that of a call that writes `Info::SIZE` bytes to its argument.
    let call = unsafe { Getter::<{ uapi::IOC_INFO }, [u8; Info::SIZE]>::new() };
    // SAFETY: as above; for another kind of file the number is unknown, or that of a call with an
    // argument of that size.
    let bytes = unsafe { ioctl(file, call) }?;
    Ok(Info::from_bytes(&bytes))
}

/// Resets a device and puts it into service again.
pub fn reset(file: &File) -> Result<(), Errno> {
    // SAFETY: the number is that of a call without argument.
    let call = unsafe { NoArg::<{ uapi::IOC_RESET }>::new() };
    // SAFETY: as above.
    unsafe { ioctl(file, call) }
}
