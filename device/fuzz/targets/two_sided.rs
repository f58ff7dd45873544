// SPDX-License-Identifier: Apache-2.0 OR MIT

//! See `ringbar_fuzz::two_sided`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbar_fuzz::two_sided::run(data));
