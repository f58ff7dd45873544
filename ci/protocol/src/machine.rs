// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Properties of the virtual machine that the harness chooses and test programs know.

use std::fmt;
use std::str::FromStr;

/// Environment variable with the name of the [`Transport`]: that of the command line for
/// `ringbar-ci`, and that of the device for test programs in the guest.
pub const TRANSPORT_VARIABLE: &str = "RINGBAR_TRANSPORT";

/// Protocol between the device daemon and QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QEMU presents the PCI function, the daemon processes its virtqueues.
    #[default]
    VhostUser,
    /// The daemon presents the PCI function.
    VfioUser,
}

impl Transport {
    /// All transports, the default one first.
    pub const ALL: [Self; 2] = [Self::VhostUser, Self::VfioUser];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::VfioUser => "vfio-user",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Transport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name() == text)
            .ok_or("neither vhost-user nor vfio-user")
    }
}

/// IOMMU of the virtual machine. The guest uses it for DMA of the device, with a domain of
/// its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Iommu {
    /// None.
    #[default]
    None,
    /// QEMU's `intel-iommu`. The guest invalidates each mapping when it is removed (strict).
    Intel,
    /// QEMU's `virtio-iommu-pci`. The guest invalidates mappings in batches (lazy), which is
    /// the kernel's default.
    Virtio,
}

impl Iommu {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Intel, Self::Virtio];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Intel => "intel-iommu",
            Self::Virtio => "virtio-iommu",
        }
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Iommu {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|iommu| iommu.name() == text)
            .ok_or("none of none, intel-iommu and virtio-iommu")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        for iommu in Iommu::ALL {
            assert_eq!(iommu.to_string().parse(), Ok(iommu));
        }
        assert!("intel".parse::<Iommu>().is_err());
        for transport in Transport::ALL {
            assert_eq!(transport.to_string().parse(), Ok(transport));
        }
        for text in ["", "vfio", "vhost", "VFIO-USER", "vfio-user "] {
            assert!(text.parse::<Transport>().is_err(), "{text:?}");
        }
    }
}
