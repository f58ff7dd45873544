// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device behind an IOMMU: it reaches only the memory that the driver maps for it.
//!
//! An address that is not mapped is an error in the kernel log, which the check at the end of
//! each suite finds.

use std::fs;

use ringbar_agent_protocol::machine::{Iommu, Transport};

use super::{commands, data};
use crate::case::{Case, Context, During, Suite, Verdict};
use crate::check_eq;
use crate::fio::{ENGINES, Fio, verified};
use crate::fixtures::driver::{bind, expect_working, load, remove, rounds, unbind};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};

/// A machine with an IOMMU.
#[derive(Clone, Copy, Debug)]
struct Variant {
    /// Name of the suite.
    suite: &'static str,
    about: &'static str,
    /// Part of the names of its tests.
    name: &'static str,
    iommu: Iommu,
    /// Type of the device's domain (`iommu_group/type` of sysfs).
    domain: &'static str,
    /// Parameters of the kernel.
    kernel_args: &'static [&'static str],
    kernels: Kernels,
}

const VARIANTS: [Variant; 3] = [
    Variant {
        suite: "iommu_intel",
        about: "a device behind an intel-iommu, each mapping of which is invalidated at once",
        name: "intel",
        iommu: Iommu::Intel,
        domain: "DMA",
        kernel_args: &[],
        kernels: Kernels::Own,
    },
    Variant {
        suite: "iommu_virtio",
        about: "a device behind a virtio-iommu, whose mappings are invalidated in batches",
        name: "virtio",
        iommu: Iommu::Virtio,
        domain: "DMA-FQ",
        kernel_args: &[],
        kernels: Kernels::Own,
    },
    Variant {
        suite: "iommu_swiotlb",
        about: "a device behind an intel-iommu, in a machine with bounce buffers",
        name: "swiotlb",
        iommu: Iommu::Intel,
        domain: "DMA",
        kernel_args: &["swiotlb=force"],
        kernels: Kernels::OwnInTestAll,
    },
];

/// The suites.
pub fn suites() -> impl Iterator<Item = Suite> {
    VARIANTS.into_iter().map(suite)
}

fn suite(variant: Variant) -> Suite {
    let name = |what: &str| format!("c2_{}_{what}", variant.name);
    let mut cases = vec![Case::new(
        name("translates_for_the_device"),
        move |context| translates(context, &variant),
    )];
    cases.extend(data::suite().cases.into_iter().map(|case| Case {
        name: name(&case.name),
        ..case
    }));
    cases.extend([
        Case::new(name("random_commands"), commands::random),
        Case::new(name("verified_by_fio"), fio),
        Case::new(name("unbind_and_bind"), bound_again),
        Case::new(name("rmmod_and_modprobe"), loaded_again),
    ]);
    Suite {
        name: variant.suite,
        about: variant.about,
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                transports: Transports::Only(
                    Transport::VfioUser,
                    "the driver refuses a vhost-user device behind an IOMMU",
                ),
                ..Daemon::default()
            }),
            iommu: variant.iommu,
            kernel_args: variant
                .kernel_args
                .iter()
                .copied()
                .map(String::from)
                .collect(),
            kernels: variant.kernels,
            ..Needs::default()
        },
        cases,
    }
}

fn translates(context: &Context, variant: &Variant) -> Verdict {
    let path = context.pci_device()?.join("iommu_group/type");
    let domain = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
    check_eq!(domain.trim(), variant.domain, "domain of the device");
    Ok(())
}

fn fio(context: &Context) -> Verdict {
    for engine in ENGINES {
        let during = || format!("fio with {}", engine.name());
        let mut fio = Fio::start(&verified(context, engine)).during(during)?;
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}

fn bound_again(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    for round in 0..rounds().min(5) {
        unbind(&address)?;
        bind(context, &address)?;
        expect_working(context, round).during(|| format!("round {round}"))?;
    }
    Ok(())
}

fn loaded_again(context: &Context) -> Verdict {
    for round in 0..rounds().min(5) {
        remove()?;
        load(context)?;
        expect_working(context, round).during(|| format!("round {round}"))?;
    }
    Ok(())
}
