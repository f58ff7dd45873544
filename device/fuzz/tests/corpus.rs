// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The fuzz targets without libFuzzer: the inputs in `corpus/`, and some at random.
//!
//! `run.sh` does more, and takes a compiler for C++.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ringbar_fuzz::{
    chain, config_space, control_commands, dma_table, fault_rules, function_registers, requests,
    server_messages, two_sided,
};

/// Number of random inputs.
const RANDOM: u64 = 50;

/// Held by the target that runs: one counts the descriptors of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn target(name: &str, run: impl Fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0);

    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..RANDOM {
        println!("random input {number}");
        let length = random() % 512;
        run(&Vec::from_iter((0..length).map(|_| (random() >> 32) as u8)));
    }
}

#[test]
fn chain() {
    target("chain", chain::run);
}

#[test]
fn config_space() {
    target("config_space", config_space::run);
}

#[test]
fn control_commands() {
    target("control_commands", control_commands::run);
}

#[test]
fn dma_table() {
    target("dma_table", dma_table::run);
}

#[test]
fn fault_rules() {
    target("fault_rules", fault_rules::run);
}

#[test]
fn function_registers() {
    target("function_registers", function_registers::run);
}

#[test]
fn requests() {
    target("requests", requests::run);
}

#[test]
fn server_messages() {
    target("server_messages", server_messages::run);
}

#[test]
fn two_sided() {
    target("two_sided", two_sided::run);
}
