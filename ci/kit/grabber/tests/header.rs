// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the C header and the Rust side of the interface to user space agree: a C program
//! fills in the structures and prints them, with all constants.

use std::fs;
use std::process::Command;

use grabber::uapi::{Buffers, Frame, IOC_INFO, IOC_POST, IOC_REGISTER, IOC_UNREGISTER, Info};

const PROGRAM: &str = r#"
#include <stdio.h>
#include "grabber.h"

static void print(const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const unsigned char *)from)[i]);
    printf("\n");
}

int main(void)
{
    struct grabber_info info = { .frame_bytes = 0x81818181, .dropped = 0x82828282 };
    struct grabber_buffers buffers = {
        .address = 0x8383838383838383, .bytes = 0x84848484, .count = 0x85858585,
    };
    struct grabber_frame frame = {
        .buffer = 0x86868686, .bytes = 0x87878787, .sequence = 0x8888888888888888,
        .dropped = 0x8989898989898989, .checksum = 0x8a8a8a8a,
    };

    print(&info, sizeof(info));
    print(&buffers, sizeof(buffers));
    print(&frame, sizeof(frame));
    printf("%u %u %u %u\n", (unsigned)GRABBER_IOC_INFO, (unsigned)GRABBER_IOC_REGISTER,
           (unsigned)GRABBER_IOC_UNREGISTER, (unsigned)GRABBER_IOC_POST);
    return 0;
}
"#;

#[test]
fn c_and_rust_agree() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (
        directory.path().join("layout.c"),
        directory.path().join("layout"),
    );
    fs::write(&source, PROGRAM).unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/uapi");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Werror", "-I", include, "-o"])
        .args([&program, &source])
        .status()
        .expect("cc");
    assert!(compiled.success());
    let output = Command::new(&program).output().unwrap();

    let info = Info {
        frame_bytes: 0x8181_8181,
        dropped: 0x8282_8282,
    };
    let buffers = Buffers {
        address: 0x8383_8383_8383_8383,
        bytes: 0x8484_8484,
        count: 0x8585_8585,
    };
    let frame = Frame {
        buffer: 0x8686_8686,
        bytes: 0x8787_8787,
        sequence: 0x8888_8888_8888_8888,
        dropped: 0x8989_8989_8989_8989,
        checksum: 0x8a8a_8a8a,
    };
    let expected = format!(
        "{}\n{}\n{}\n{IOC_INFO} {IOC_REGISTER} {IOC_UNREGISTER} {IOC_POST}\n",
        hex(&info.to_bytes()),
        hex(&buffers.to_bytes()),
        hex(&frame.to_bytes()),
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(Info::from_bytes(&info.to_bytes()), info);
    assert_eq!(Buffers::from_bytes(&buffers.to_bytes()), buffers);
    assert_eq!(Frame::from_bytes(&frame.to_bytes()), frame);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
