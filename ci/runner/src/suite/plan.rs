// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests of a suite that are to run, and their results.

use std::path::PathBuf;

use ringbar_agent_protocol::machine::Transport;
use ringbar_guest_tests::case::Provoked;
use ringbar_guest_tests::needs::Needs;
use ringbar_vm::setup::Kernel;

use crate::ktap::Outcome;

/// The tests to run of a suite.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the suite.
    pub suite: &'static str,
    /// What the suite needs.
    pub needs: Needs,
    /// The kernel, which must be the set-up's.
    pub kernel: Kernel,
    /// Protocol between the device and QEMU.
    pub transport: Transport,
    /// Names of the tests, in order.
    pub tests: Vec<String>,
    /// The lines that tests provoke in the kernel log, each with its test.
    pub provoked: Vec<(String, Provoked)>,
    /// Directory of the logs.
    pub log_dir: PathBuf,
}

/// Result of a test or check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Name of the test or check.
    pub name: String,
    /// Outcome.
    pub outcome: Outcome,
    /// Message.
    pub message: String,
}
