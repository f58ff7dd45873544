// SPDX-License-Identifier: Apache-2.0 OR MIT

//! See `ringbar_fuzz::requests`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbar_fuzz::requests::run(data));
