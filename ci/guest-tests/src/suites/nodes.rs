// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device nodes on file systems other than devtmpfs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::{Case, Context, During, Stop, Verdict, expect_bytes, expect_errno};
use crate::fixtures::device::{reachable, statistics};
use crate::fixtures::driver::{bind, expect_working, modprobe, unbind};
use crate::pattern;
use crate::sys::{self, PAGE, Region};
use crate::{check, check_eq};

/// The cases, for the suite of maps.
pub fn cases() -> Vec<Case> {
    ["ramfs", "tmpfs", "ext4", "overlay"]
        .into_iter()
        .map(|kind| {
            let case = Case::new(format!("dr2_node_on_{kind}"), move |context| {
                node_on(context, kind)
            });
            match kind {
                "ext4" => case,
                _ => case.left_to_test_all(),
            }
        })
        .collect()
}

fn run(program: &str, arguments: &[&str]) -> Verdict {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .during(|| format!("running {program}"))?;
    check!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn text(path: &Path) -> Verdict<&str> {
    path.to_str()
        .ok_or_else(|| Stop::Failed("a name that is no text".into()))
}

/// A mounted file system, unmounted when dropped.
struct Mounted {
    folder: PathBuf,
    top: PathBuf,
}

impl Mounted {
    fn new(kind: &str) -> Verdict<Self> {
        let folder = PathBuf::from(format!("/dev/shm/node-{}", std::process::id()));
        let mounted = Self {
            top: folder.join("top"),
            folder,
        };
        fs::create_dir_all(&mounted.top)?;
        let top = text(&mounted.top)?;
        // A built-in file system is no module; mount reports a missing one.
        let _ = modprobe(&["-q", kind]);
        match kind {
            "ext4" => {
                let _ = modprobe(&["-q", "loop"]);
                let image = mounted.folder.join("image");
                File::create(&image)?.set_len(8 << 20)?;
                let image = text(&image)?;
                run("mke2fs", &["-q", "-t", "ext4", image])?;
                run("mount", &["-t", kind, "-o", "loop", image, top])?;
            }
            "overlay" => {
                let mut options = String::new();
                for layer in ["lowerdir", "upperdir", "workdir"] {
                    let layer_path = mounted.folder.join(layer);
                    fs::create_dir(&layer_path)?;
                    options += &format!("{layer}={},", layer_path.display());
                }
                let options = options.trim_end_matches(',');
                run("mount", &["-t", kind, "-o", options, "none", top])?;
            }
            _ => run("mount", &["-t", kind, "none", top])?,
        }
        Ok(mounted)
    }

    /// Makes a node of the same device as `node`.
    fn node_of(&self, node: &Path) -> Verdict<PathBuf> {
        let number = fs::metadata(node)?.rdev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        let node = self.top.join("node");
        let numbers = [major.to_string(), minor.to_string()];
        run("mknod", &[text(&node)?, "c", &numbers[0], &numbers[1]])?;
        Ok(node)
    }

    fn unmount(&self) -> Verdict {
        run("umount", &[text(&self.top)?])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // An error is harmless, because the machine ends soon.
        let _ = self.unmount();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A field in kB of the map at `address` in `/proc/self/smaps`.
fn kilobytes(address: usize, what: &str) -> Verdict<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let start = format!("{address:08x}-");
    smaps
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| Stop::Failed(format!("smaps has no {what} for {address:#x}")))
}

fn node_on(context: &Context, kind: &str) -> Verdict {
    let mounted = Mounted::new(kind)?;
    let file = sys::open(&mounted.node_of(context.path())?, libc::O_RDWR)?;
    let map = Region::shared(&file, 0, 2 * PAGE)?;
    let counters = statistics(&file)?;
    counters.load(0, 8);

    // The file is not a tmpfs file, whatever its file system is.
    expect_errno(sys::seals(&file), &[libc::EINVAL], "F_GET_SEALS")?;
    let sealed = sys::add_seals(&file, libc::F_SEAL_SEAL);
    expect_errno(sealed, &[libc::EINVAL], "F_ADD_SEALS")?;
    for (map, resident) in [(&map, 0), (&counters, 4)] {
        check_eq!(kilobytes(map.address(), "Rss")?, resident, "kB resident");
        check_eq!(kilobytes(map.address(), "Swap")?, 0, "kB swapped");
    }
    let hole = sys::punch_hole(&file, 0, PAGE as u64);
    expect_errno(hole, &[libc::ENODEV, libc::EOPNOTSUPP], "a hole")?;
    let removed = map.advise(libc::MADV_REMOVE);
    expect_errno(removed, &[libc::EINVAL, libc::ENODEV], "MADV_REMOVE")?;

    // The node works like the device's own.
    let data = pattern::bytes(kind.len() as u64, 2 * PAGE);
    let memory = Region::anonymous(2 * PAGE)?;
    memory.store(0, data);
    check_eq!(
        sys::pwrite(&file, memory.buffer(0, 2 * PAGE), 0)?,
        2 * PAGE,
        "bytes written"
    );
    expect_bytes(&map.load(0, 2 * PAGE), data, "the map")?;
    check_eq!(context.counter("maps")?, 2, "maps of the device");
    drop((map, counters, file));
    mounted.unmount()
}

/// Maps of another node are removed with the device, too.
pub(super) fn map_of_another_node(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let mounted = Mounted::new("ramfs")?;
    let file = sys::open(&mounted.node_of(context.path())?, libc::O_RDWR)?;
    let map = Region::shared(&file, 0, PAGE)?;
    map.store(0, b"mapped");
    unbind(&address)?;
    let there = reachable(&map, 0);
    bind(context, &address)?;
    check!(!there?, "the map is still there");
    expect_working(context, 84)
}
