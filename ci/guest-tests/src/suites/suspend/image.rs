// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Hibernation without the power-off: the kernel writes its memory to a disk and reads it
//! back (`Documentation/power/basic-pm-debugging.rst`, `test_resume`).

use std::fs;
use std::path::Path;
use std::process::Command;

use super::busy::with_io;
use super::power::{set, sleep};
use crate::case::{Context, During, Verdict, eventually};
use crate::check;
use crate::fixtures::driver::modprobe;
use crate::kernel_log::KernelLog;

/// The disk, which the harness provides for this.
const DISK: &str = "vda";

/// Mode of hibernation.
const MODE: &str = "/sys/power/disk";

/// Whether the kernel describes the steps of a suspend in its log.
const MESSAGES: &str = "/sys/power/pm_debug_messages";

/// Swap space on the disk, until dropped.
struct Swap;

impl Swap {
    fn on_disk() -> Verdict<Self> {
        let node = format!("/dev/{DISK}");
        check!(modprobe(&["virtio_blk"])?, "modprobe virtio_blk failed");
        eventually("the disk", || Ok(Path::new(&node).exists()))?;
        run("mkswap", &node)?;
        run("swapon", &node)?;
        Ok(Self)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(stop) = run("swapoff", &format!("/dev/{DISK}")) {
            eprintln!("{stop:?}");
        }
    }
}

fn run(program: &str, node: &str) -> Verdict {
    let output = Command::new(program)
        .arg(node)
        .output()
        .during(|| format!("running {program}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    check!(output.status.success(), "{program} {node}: {message}");
    Ok(())
}

pub(super) fn written_and_read(context: &Context) -> Verdict {
    let _swap = Swap::on_disk()?;
    let number = fs::read_to_string(format!("/sys/block/{DISK}/dev"))?;
    set("/sys/power/resume", number.trim())?;
    set(MODE, "test_resume")?;
    set(MESSAGES, "1")?;
    let mut log = KernelLog::from_now()?;
    let slept = with_io(context, 1, || sleep("disk").during(|| "hibernation".into()));
    set(MESSAGES, "0")?;
    set(MODE, "platform")?;
    slept?;
    let lines = log.lines()?;
    let said = |words: &str| lines.iter().any(|line| line.contains(words));
    check!(
        said("image restored successfully"),
        "no image was written and read: {lines:?}"
    );
    // The image does not contain the kernel's messages about writing the image.
    check!(!said("Image saving"), "the image was not read back");
    Ok(())
}
