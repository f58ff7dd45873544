// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Executes another kernel without a reset of the machine (`kexec(8)` is not in the guest).

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::sys;

/// The two steps.
#[derive(Clone, Debug, Subcommand)]
pub enum Step {
    /// Prepare a kernel
    Load {
        /// Its image
        kernel: PathBuf,
        /// Its initramfs
        initramfs: PathBuf,
        /// Its command line
        command_line: String,
    },
    /// Shut the devices down and execute the prepared kernel, at once: processes are not ended,
    /// file systems are not synced
    Execute,
}

/// Executes a step. [`Step::Execute`] returns only an error.
///
/// # Errors
///
/// A file cannot be opened, or the kernel refuses the step.
pub fn run(step: &Step) -> Result<(), String> {
    let open = |path: &Path| {
        File::open(path).map_err(|error| format!("opening {}: {error}", path.display()))
    };
    match step {
        Step::Load {
            kernel,
            initramfs,
            command_line,
        } => {
            let line = CString::new(command_line.as_str()).map_err(|error| error.to_string())?;
            sys::kexec_file_load(&open(kernel)?, &open(initramfs)?, &line)
                .map_err(|error| format!("preparing {}: {error}", kernel.display()))
        }
        Step::Execute => Err(format!("executing the prepared kernel: {}", sys::kexec())),
    }
}
