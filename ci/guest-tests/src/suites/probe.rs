// SPDX-License-Identifier: Apache-2.0 OR MIT

//! State of the system after the driver was loaded.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use ringbar_agent_protocol::machine::Transport;
use ringbar_spec::{PCI_DEVICE_ID, PCI_DEVICE_ID_VFIO_USER, PCI_VENDOR_ID};

use crate::case::{Case, Context, During, Stop, Suite, Verdict};
use crate::needs::Needs;
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "probe",
        about: "what the system shows of the device once the driver is loaded",
        needs: Needs::each_transport(),
        cases: vec![
            Case::new("a1_pci_identity", pci_identity),
            Case::new("a1_aperture_in_proc_iomem", aperture_in_iomem),
            Case::new("a1_all_bars_are_claimed", bars_are_claimed),
            Case::new("c3_msix_vector_in_proc_interrupts", msix_vector),
            Case::new("c3_interrupts_complete_requests", large_requests_interrupt),
            Case::new("c4_small_requests_are_polled_for", |context| {
                are_polled_for(context, 2000, 4 << 10)
            })
            .not_on_debug_kernel(),
            Case::new("c4_larger_requests_are_polled_for", |context| {
                are_polled_for(context, 400, 256 << 10)
            })
            .not_on_debug_kernel(),
            Case::new("c4_counters_rise_with_requests", counters_rise),
            Case::new("b12_device_node_and_size", node_and_size),
            Case::new("d1_node_in_sysfs", node_in_sysfs),
        ],
    }
}

fn read_hex(path: &Path) -> Verdict<u64> {
    let text = fs::read_to_string(path).during(|| format!("reading {}", path.display()))?;
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16)
        .map_err(|_| Stop::Failed(format!("{} holds {text:?}", path.display())))
}

fn pci_identity(context: &Context) -> Verdict {
    let device = context.pci_device()?;
    check_eq!(
        read_hex(&device.join("vendor"))?,
        u64::from(PCI_VENDOR_ID),
        "vendor"
    );
    check_eq!(
        read_hex(&device.join("device"))?,
        u64::from(match context.transport()? {
            Transport::VhostUser => PCI_DEVICE_ID,
            Transport::VfioUser => PCI_DEVICE_ID_VFIO_USER,
        }),
        "device"
    );
    // DMA needs bus mastering.
    let config = fs::read(device.join("config"))?;
    let command = config
        .get(4..6)
        .map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    check!(
        command & 0x4 != 0,
        "bus master is off: command {command:#x}"
    );
    check!(
        command & 0x2 != 0,
        "memory space is off: command {command:#x}"
    );
    Ok(())
}

/// A line of `/proc/iomem`: depth, first and last address, name.
fn parse_iomem(line: &str) -> Option<(usize, u64, u64, &str)> {
    let text = line.trim_start();
    let (range, name) = text.split_once(" : ")?;
    let (start, end) = range.split_once('-')?;
    Some((
        line.len() - text.len(),
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
        name,
    ))
}

/// Memory resources that the driver has claimed.
fn claimed() -> Verdict<Vec<(u64, u64)>> {
    let table = fs::read_to_string("/proc/iomem")?;
    Ok(table
        .lines()
        .filter_map(parse_iomem)
        .filter(|(_, _, _, name)| name.contains("ringbar"))
        .map(|(_, start, end, _)| (start, end))
        .collect())
}

fn aperture_in_iomem(context: &Context) -> Verdict {
    let claimed = claimed()?;
    check!(!claimed.is_empty(), "/proc/iomem names no ringbar");
    check!(
        claimed
            .iter()
            .any(|&(start, end)| end - start + 1 >= context.size()),
        "no range of ringbar's in /proc/iomem is as large as the device: {claimed:x?}"
    );
    Ok(())
}

fn bars_are_claimed(context: &Context) -> Verdict {
    let claimed = claimed()?;
    let resources = fs::read_to_string(context.pci_device()?.join("resource"))?;
    let mut bars = 0;
    // The first six lines are the BARs: start, end, flags.
    for (i, line) in resources.lines().take(6).enumerate() {
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .filter_map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok())
            .collect();
        let [start, end, flags] = fields[..] else {
            return Err(Stop::Failed(format!("line {line:?} of resource")));
        };
        // `IORESOURCE_MEM`. BAR 1 holds the MSI-X table, which the kernel maps
        // for itself.
        if flags & 0x200 != 0 && i != 1 {
            bars += 1;
            check!(
                claimed.iter().any(|&(s, e)| s <= end && start <= e),
                "BAR {i} at {start:#x} is not claimed by ringbar"
            );
        }
    }
    check!(bars >= 2, "only {bars} memory BARs besides the MSI-X table");
    Ok(())
}

fn msix_vector(context: &Context) -> Verdict {
    context.interrupts()?;
    let table = fs::read_to_string("/proc/interrupts")?;
    let line = table
        .lines()
        .find(|line| line.contains("ringbar"))
        .unwrap_or("");
    check!(line.contains("MSIX"), "no MSI-X vector: {line:?}");
    Ok(())
}

/// Reads of `length` bytes at many places, one at a time.
fn some_io(context: &Context, count: u64, length: usize) -> Verdict {
    let file = context.open()?;
    let memory = Region::anonymous(length)?;
    for i in 0..count {
        let place = i * length as u64 % (context.size() - length as u64);
        let read = sys::pread(&file, memory.buffer(0, length), place)?;
        check_eq!(read, length, "bytes read");
    }
    Ok(())
}

/// Number of interrupts of `count` reads, one at a time.
fn interrupts_of(context: &Context, count: u64, length: usize) -> Verdict<u64> {
    let before = context.interrupts()?;
    some_io(context, count, length)?;
    Ok(context.interrupts()? - before)
}

fn large_requests_interrupt(context: &Context) -> Verdict {
    const READS: u64 = 100;
    /// Larger than the requests for which the driver busy-polls.
    const LENGTH: usize = 2 << 20;
    let interrupts = interrupts_of(context, READS, LENGTH)?;
    check!(
        interrupts > READS / 2,
        "{interrupts} interrupts for {READS} reads of {LENGTH} bytes, one after the other"
    );
    Ok(())
}

/// Checks that the driver busy-polls for reads, one at a time, so that most of them need
/// no interrupt.
fn are_polled_for(context: &Context, reads: u64, length: usize) -> Verdict {
    /// An overloaded host may respond late for a while.
    const ATTEMPTS: usize = 5;
    let mut counts = Vec::new();
    for _ in 0..ATTEMPTS {
        let interrupts = interrupts_of(context, reads, length)?;
        if interrupts < reads * 9 / 10 {
            return Ok(());
        }
        counts.push(interrupts);
    }
    Err(Stop::Failed(format!(
        "{counts:?} interrupts for {reads} reads of {length} bytes each time, one after the other"
    )))
}

fn counters_rise(context: &Context) -> Verdict {
    const READS: u64 = 100;
    let names = ["requests", "doorbells", "interrupts"];
    let mut before = Vec::new();
    for name in names {
        before.push(context.counter(name)?);
    }
    some_io(context, READS, 4 << 10)?;
    let requests = context.counter("requests")? - before[0];
    check_eq!(requests, READS, "requests for {READS} reads of 4 KiB");
    let doorbells = context.counter("doorbells")? - before[1];
    check!(
        (1..=READS).contains(&doorbells),
        "{doorbells} doorbells for {READS} reads"
    );
    let interrupts = context.counter("interrupts")?;
    check!(
        interrupts >= before[2],
        "the interrupts counter went from {} to {interrupts}",
        before[2]
    );
    Ok(())
}

fn node_and_size(context: &Context) -> Verdict {
    let kind = fs::metadata(context.path())?.file_type();
    check!(kind.is_char_device(), "not a character device: {kind:?}");
    check!(
        context.size() >= 4096,
        "the end of the device is at {}",
        context.size()
    );
    // The last byte exists, the next one does not.
    let file = context.open()?;
    let memory = Region::anonymous(4096)?;
    let last = context.size() - 1;
    check_eq!(
        sys::pread(&file, memory.buffer(0, 10), last)?,
        1,
        "bytes from the last one on"
    );
    Ok(())
}

fn node_in_sysfs(context: &Context) -> Verdict {
    let number = fs::metadata(context.path())?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let device = Path::new("/sys/dev/char")
        .join(format!("{major}:{minor}"))
        .join("device");
    let found = device
        .canonicalize()
        .during(|| format!("following {}", device.display()))?;
    check_eq!(found, context.pci_device()?, "device of the node");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iomem_lines_are_read() {
        assert_eq!(
            parse_iomem("    7000000000-700fffffff : ringbar aperture"),
            Some((4, 0x70_0000_0000, 0x70_0fff_ffff, "ringbar aperture"))
        );
        assert_eq!(parse_iomem("nonsense"), None);
    }
}
