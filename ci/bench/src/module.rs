// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The addresses of the driver's code in the guest.

use std::fmt;

use ringbar_vm::agent::Agent;
use ringbar_vm::error::{Error, Result};

/// Name of the driver's module.
const MODULE: &str = "ringbar";

/// Lowest address of the kernel's half of the address space.
const UPPER_HALF: u64 = 1 << 63;

/// Byte addresses of the guest, all in the kernel's half; never empty. Formatted as the
/// QEMU plugin reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    start: u64,
    /// The first address behind the range.
    end: u64,
}

impl AddressRange {
    /// The addresses from `start` to before `end`.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start >= UPPER_HALF && start < end).then_some(Self { start, end })
    }

    /// The addresses of the driver's code. The driver and those of the peers are loaded.
    pub fn of_driver(agent: &Agent) -> Result<Self> {
        let modules = agent.read_text("/proc/modules")?;
        code_of(&modules, MODULE).ok_or_else(|| {
            Error::Protocol(format!(
                "/proc/modules has no address of {MODULE}: {modules:?}"
            ))
        })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

/// The code of the module `name`, from the text of `/proc/modules`.
///
/// The file has the address of a module's code, but the size of its code and data together.
/// The kernel places the data elsewhere, and the code of another module may follow. So the
/// range ends where the next module's code begins, if that is within the size.
fn code_of(modules: &str, name: &str) -> Option<AddressRange> {
    let modules: Vec<_> = modules.lines().map(parse_line).collect::<Option<_>>()?;
    let module = modules.iter().find(|module| module.name == name)?;
    let size_end = module.start.checked_add(module.size)?;
    let next = modules
        .iter()
        .map(|other| other.start)
        .filter(|start| *start > module.start)
        .min();
    AddressRange::new(
        module.start,
        next.map_or(size_end, |next| next.min(size_end)),
    )
}

/// A line of `/proc/modules`.
struct Module<'a> {
    name: &'a str,
    /// Bytes of code and data.
    size: u64,
    /// Address of the code; 0 for readers that may not see addresses.
    start: u64,
}

/// Reads "name size references dependents state address [taints]".
fn parse_line(line: &str) -> Option<Module<'_>> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next()?;
    let size = words.next()?.parse().ok()?;
    let address = words.nth(3)?.strip_prefix("0x")?;
    let start = u64::from_str_radix(address, 16).ok()?;
    Some(Module { name, size, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = "nvme 69632 0 - Live 0xffffffffc02a4000\n\
        ringbar 135168 1 - Live 0xffffffffc0280000 (OE)\n\
        nvme_core 233472 1 nvme, Live 0xffffffffc0230000\n";

    fn code(modules: &str) -> Option<String> {
        code_of(modules, MODULE).map(|range| range.to_string())
    }

    #[test]
    fn the_code_has_an_address_and_a_size() {
        // 135168 is 0x21000.
        assert_eq!(
            code(MODULES).as_deref(),
            Some("ffffffffc0280000-ffffffffc02a1000")
        );
    }

    #[test]
    fn the_code_ends_where_that_of_the_next_module_begins() {
        let packed = MODULES.replace("0xffffffffc02a4000", "0xffffffffc0290000");
        assert_eq!(
            code(&packed).as_deref(),
            Some("ffffffffc0280000-ffffffffc0290000")
        );
    }

    #[test]
    fn a_file_without_the_address_is_refused() {
        assert_eq!(code(""), None);
        assert_eq!(code(&MODULES.replace("ringbar", "ringbar2")), None);
        assert_eq!(code("ringbar 4096 0 - Live 0x0000000000000000\n"), None);
        assert_eq!(code("ringbar 4096 0 - Live 0x00007fffc0280000\n"), None);
        assert_eq!(code("ringbar 0 0 - Live 0xffffffffc0280000\n"), None);
        assert_eq!(code("ringbar 4096 0 - Live 0xfffffffffffff000\n"), None);
        assert_eq!(code("ringbar 4096 0 - Live\n"), None);
        assert_eq!(code("ringbar x 0 - Live 0xffffffffc0280000\n"), None);
    }
}
