// SPDX-License-Identifier: Apache-2.0 OR MIT

//! See `ringbar_fuzz::fault_rules`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbar_fuzz::fault_rules::run(data));
