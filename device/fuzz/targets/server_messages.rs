// SPDX-License-Identifier: Apache-2.0 OR MIT

//! See `ringbar_fuzz::server_messages`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbar_fuzz::server_messages::run(data));
