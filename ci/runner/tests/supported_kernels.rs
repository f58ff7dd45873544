// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the driver does not build for unsupported kernels.

use std::path::Path;
use std::process::Command;

const CONFIG_64BIT: &str = "--cfg=CONFIG_64BIT";

/// The compiler's errors about `driver/supported.rs` for a kernel with this
/// configuration; `None` if it is supported.
fn refusal(arguments: &[&str]) -> Option<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../driver/supported.rs");
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--crate-type=lib", "--emit=metadata", "--cap-lints=allow"])
        .args(["--cfg=CONFIG_SMP", "-o"])
        .arg(directory.path().join("out"))
        .args(arguments)
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(text)
}

#[test]
fn ordinary_kernels_are_supported() {
    assert_eq!(refusal(&[CONFIG_64BIT]), None);
}

#[test]
fn preempt_rt_is_refused() {
    let text = refusal(&[CONFIG_64BIT, "--cfg=CONFIG_PREEMPT_RT"]).unwrap();
    assert!(
        text.contains("ringbar does not support PREEMPT_RT"),
        "{text}"
    );
}

#[test]
fn kernels_of_32_bits_are_refused() {
    let text = refusal(&[]).unwrap();
    assert!(text.contains("ringbar needs a 64-bit kernel"), "{text}");
}
