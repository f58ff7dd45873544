// SPDX-License-Identifier: Apache-2.0 OR MIT

//! See `ringbar_fuzz::control_commands`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbar_fuzz::control_commands::run(data));
