// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device behind an IOMMU: it reaches only the memory that the driver maps for it.
//!
//! An address that is not mapped is an error in the kernel log, which the check at the end of
//! each suite finds.

use std::fs;

use ringbar_agent_protocol::machine::{Iommu, Transport};

use super::concurrency::{Worker, positional_free};
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
        kernels: Kernels::OwnInTestAll,
    },
    Variant {
        suite: "iommu_virtio",
        about: "a device behind a virtio-iommu, whose mappings are invalidated in batches",
        name: "virtio",
        iommu: Iommu::Virtio,
        domain: "DMA-FQ",
        kernel_args: &[],
        kernels: Kernels::OwnInTestAll,
    },
    Variant {
        suite: "iommu_swiotlb",
        about: "a device behind an intel-iommu, in a machine with bounce buffers",
        name: "swiotlb",
        iommu: Iommu::Intel,
        domain: "DMA",
        kernel_args: &["swiotlb=force"],
        kernels: Kernels::TestAllOnly,
    },
];

/// The suites: for each IOMMU one for every day, and one with each call, size and alignment,
/// which takes minutes.
pub fn suites() -> impl Iterator<Item = Suite> {
    let matrices = [
        ("iommu_intel_data", VARIANTS[0]),
        ("iommu_virtio_data", VARIANTS[1]),
    ];
    let matrices = matrices.into_iter().map(|(suite, variant)| Variant {
        suite,
        kernels: Kernels::TestAllOnly,
        ..variant
    });
    VARIANTS
        .into_iter()
        .map(ordinary)
        .chain(matrices.map(all_data))
}

impl Variant {
    /// Name of a test.
    fn test(&self, what: &str) -> String {
        format!("c2_{}_{what}", self.name)
    }

    fn needs(&self) -> Needs {
        let kernel_args = self.kernel_args.iter();
        Needs {
            device: DeviceKind::Daemon(Daemon {
                transports: Transports::Only(
                    Transport::VfioUser,
                    "the driver refuses a vhost-user device behind an IOMMU",
                ),
                ..Daemon::default()
            }),
            iommu: self.iommu,
            kernel_args: kernel_args.copied().map(String::from).collect(),
            kernels: self.kernels,
            ..Needs::default()
        }
    }
}

fn ordinary(variant: Variant) -> Suite {
    let name = |what: &str| variant.test(what);
    Suite {
        name: variant.suite,
        about: variant.about,
        needs: variant.needs(),
        cases: vec![
            Case::new(name("translates_for_the_device"), move |context| {
                translates(context, &variant)
            }),
            Case::new(name("random_transfers_by_all_methods"), random_transfers),
            Case::new(name("random_commands"), commands::random),
            Case::new(name("verified_by_fio"), fio),
            Case::new(name("unbind_and_bind"), bound_again),
            Case::new(name("rmmod_and_modprobe"), loaded_again),
        ],
    }
}

fn all_data(variant: Variant) -> Suite {
    let cases = data::suite().cases.into_iter().map(|case| Case {
        name: variant.test(&case.name),
        ..case
    });
    Suite {
        name: variant.suite,
        about: "data by every call, size and alignment through an IOMMU",
        needs: variant.needs(),
        cases: cases.collect(),
    }
}

fn translates(context: &Context, variant: &Variant) -> Verdict {
    let path = context.pci_device()?.join("iommu_group/type");
    let domain = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
    check_eq!(domain.trim(), variant.domain, "domain of the device");
    Ok(())
}

/// Transfers of any size and alignment, by synchronous calls, AIO and io_uring.
fn random_transfers(context: &Context) -> Verdict {
    const STEPS: usize = 300;

    let file = context.open()?;
    let mut worker = Worker::new(5, 4 << 20, 1)?;
    worker.begin(&file)?;
    for _ in 0..STEPS {
        worker.step(&file, &positional_free())?;
    }
    worker.finish(&context.map()?)
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
