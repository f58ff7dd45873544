// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An opened device or file.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ringbar_uapi as uapi;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::param::page_size;

use crate::error::{Error, Result};
use crate::output;
use crate::range::Range;
use crate::region::Region;
use crate::sys::control;
use crate::sys::mapping::{Access, Mapping};
use crate::sys::queue::{Engine, Queue};
use crate::sys::sigbus;

/// Name of the driver.
const DRIVER: &str = "ringbar";

/// A device, or a file in place of its memory.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
    access: Access,
}

/// State of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    InService,
    /// It has failed, and waits for a reset.
    OutOfService,
    /// A state that this program does not know.
    Unknown,
}

impl State {
    /// The state in the information of the driver.
    pub fn of(info: &uapi::Info) -> Self {
        match info.state {
            uapi::STATE_IN_SERVICE => Self::InService,
            uapi::STATE_OUT_OF_SERVICE => Self::OutOfService,
            _ => Self::Unknown,
        }
    }

    /// Name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::InService => "in_service",
            Self::OutOfService => "out_of_service",
            Self::Unknown => "unknown",
        }
    }

    /// Name for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::InService => "in service",
            Self::OutOfService => "out of service",
            Self::Unknown => "unknown",
        }
    }

    /// Style of the text.
    pub fn style(self) -> anstyle::Style {
        match self {
            Self::InService => output::GOOD,
            _ => output::BAD,
        }
    }
}

/// Attributes of a device in sysfs.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Folder of the PCI function in sysfs.
    pub folder: PathBuf,
    /// Address on the PCI bus.
    pub pci_address: String,
    /// Name of the driver.
    pub driver: String,
}

impl Device {
    /// Opens a device or file.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .open(path)
            .and_then(|file| match file.metadata()?.is_dir() {
                // A directory can be opened for reading, and has a size without meaning.
                true => Err(io::ErrorKind::IsADirectory.into()),
                false => Ok(file),
            })
            .map_err(|source| Error::Open {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            access,
        })
    }

    /// Path of the device or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the device memory or file in bytes; `None` if it is unknown.
    pub fn size(&self) -> Result<Option<u64>> {
        let fail = |source: io::Error| Error::Size {
            path: self.path.clone(),
            source,
        };
        let kind = self.file.metadata().map_err(fail)?.file_type();
        match rustix::fs::seek(&self.file, SeekFrom::End(0)) {
            // The result for character devices without an end (/dev/zero, /dev/mem).
            Ok(0) | Err(Errno::INVAL) if kind.is_char_device() => Ok(None),
            Ok(size) => Ok(Some(size)),
            Err(error) => Err(fail(error.into())),
        }
    }

    /// Size of a region in bytes; `None` if it is unknown. Only a Ringbar device has regions other
    /// than [`Region::Memory`].
    pub fn region_size(&self, region: Region) -> Result<Option<u64>> {
        if region != Region::Memory {
            self.place()?;
        }
        let page = page_size() as u64;
        match region {
            Region::Memory | Region::Uncached | Region::Cached => self.size(),
            Region::Statistics => Ok(Some(page)),
            Region::Events => Ok(Some(uapi::EVENT_LOG_PAGES as u64 * page)),
            Region::UsedRing(_) => self.used_ring_size(region).map(Some),
        }
    }

    /// Size of a used ring in bytes, in whole pages. The driver has no call for the size, but
    /// refuses a map of the first page behind the ring.
    fn used_ring_size(&self, region: Region) -> Result<u64> {
        let page = page_size() as u64;
        let mut size = 0;
        while size < uapi::USED_RING_STRIDE {
            let range = Range {
                start: size,
                length: page,
            };
            match self.map(region, range) {
                Ok(_) => size += page,
                Err(Error::Map {
                    source: Errno::INVAL | Errno::NXIO,
                    ..
                }) if size > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(size)
    }

    /// Maps a range of a region. If the map is removed, an access to it ends the program: see
    /// [`sigbus`].
    pub fn map(&self, region: Region, range: Range) -> Result<Mapping> {
        Mapping::new(&self.file, region.base(), range, self.access).map_err(|source| Error::Map {
            path: self.path.clone(),
            region,
            range,
            access: self.access,
            source,
        })
    }

    /// Maps all of a region of fixed size, of a Ringbar device.
    pub fn map_all(&self, region: Region) -> Result<Mapping> {
        let size = self.region_size(region)?;
        let range = Range::new(0, None, size).map_err(|source| Error::Range {
            path: self.path.clone(),
            region,
            source,
        })?;
        sigbus::install(&self.path).map_err(Error::Handler)?;
        self.map(region, range)
    }

    /// Information of the driver about the device.
    pub fn info(&self) -> Result<uapi::Info> {
        self.place()?;
        control::info(&self.file).map_err(|source| Error::Info {
            path: self.path.clone(),
            source,
        })
    }

    /// Another descriptor of the open device.
    pub fn try_clone(&self) -> Result<File> {
        self.file.try_clone().map_err(|source| Error::Open {
            path: self.path.clone(),
            source,
        })
    }

    /// State of the device.
    pub fn state(&self) -> Result<State> {
        Ok(State::of(&self.info()?))
    }

    /// A queue for transfers: see [`Queue::new`].
    pub fn queue(&self, engine: Engine, depth: u32, block: u32) -> Result<Queue> {
        self.file
            .try_clone()
            .and_then(|file| Queue::new(file, engine, depth, block))
            .map_err(|source| Error::Engine { engine, source })
    }

    /// Resets the device and puts it into service again.
    pub fn reset(&self) -> Result<()> {
        self.place()?;
        control::reset(&self.file).map_err(|source| Error::Reset {
            path: self.path.clone(),
            source,
        })
    }

    /// Attributes of the device in sysfs. Fails for a file that is not a device of the driver.
    pub fn place(&self) -> Result<Place> {
        let place = self
            .file
            .metadata()
            .map_err(|error| error.to_string())
            .and_then(|metadata| Place::find(Path::new("/sys"), &metadata));
        place.map_err(|reason| Error::NotADevice {
            path: self.path.clone(),
            reason,
        })
    }
}

impl Place {
    /// Finds a device by the number of its node. An error is the reason why the node is no device
    /// of the driver.
    fn find(sysfs: &Path, metadata: &Metadata) -> std::result::Result<Self, String> {
        if !metadata.file_type().is_char_device() {
            return Err("it is not a character device".into());
        }
        let number = metadata.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        Self::of_parent(&sysfs.join(format!("dev/char/{major}:{minor}/device")))
    }

    /// Attributes of the hardware device to which a node in sysfs belongs.
    fn of_parent(parent: &Path) -> std::result::Result<Self, String> {
        let name = |path: PathBuf| {
            fs::canonicalize(&path)
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .ok_or_else(|| format!("there is no {}", path.display()))
        };
        let place = Self {
            folder: parent.to_owned(),
            pci_address: name(parent.to_owned())?,
            driver: name(parent.join("driver"))?,
        };
        if place.driver != DRIVER {
            return Err(format!("its driver is {}", place.driver));
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_ordinary_file_has_memory_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(12345).unwrap();
        let device = Device::open(file.path(), Access::Read).unwrap();
        assert_eq!(device.size().unwrap(), Some(12345));
        assert_eq!(device.region_size(Region::Memory).unwrap(), Some(12345));
        for region in [Region::Uncached, Region::Statistics, Region::UsedRing(0)] {
            let error = device.region_size(region).unwrap_err();
            assert!(matches!(error, Error::NotADevice { .. }), "{error}");
        }
    }

    #[test]
    fn a_device_without_an_end_has_no_size() {
        let zero = Device::open(Path::new("/dev/zero"), Access::Read).unwrap();
        assert_eq!(zero.size().unwrap(), None);
        assert!(zero.place().is_err());
    }

    #[test]
    fn what_is_not_there_is_not_opened() {
        let error = Device::open(Path::new("/dev/ringbar-none"), Access::Read).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("/dev/ringbar-none"), "{message}");
        assert!(message.contains("modprobe ringbar"), "{message}");
    }

    #[test]
    fn the_place_is_read_from_links() {
        let sysfs = tempfile::tempdir().unwrap();
        let at = |path: &str| sysfs.path().join(path);
        for folder in ["pci0/0000:00:04.0", "drivers/ringbar", "drivers/other"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        symlink(at("pci0/0000:00:04.0"), at("device")).unwrap();
        let error = Place::of_parent(&at("device")).unwrap_err();
        assert!(error.starts_with("there is no "), "{error}");

        let driver = at("pci0/0000:00:04.0/driver");
        symlink(at("drivers/other"), &driver).unwrap();
        assert_eq!(
            Place::of_parent(&at("device")),
            Err("its driver is other".into())
        );
        fs::remove_file(&driver).unwrap();
        symlink(at("drivers/ringbar"), &driver).unwrap();
        assert_eq!(
            Place::of_parent(&at("device")),
            Ok(Place {
                folder: at("device"),
                pci_address: "0000:00:04.0".into(),
                driver: "ringbar".into()
            })
        );
    }
}
