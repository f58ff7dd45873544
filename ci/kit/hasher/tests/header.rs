// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the C header and the Rust side of the interface to user space agree: a C program
//! fills in a structure and prints it, with all constants.

use std::fs;
use std::process::Command;

use hasher::uapi::{IOC_INFO, IOC_SHA256, Info, Sha256};

const PROGRAM: &str = r#"
#include <stdio.h>
#include "hasher.h"

static void print(const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const unsigned char *)from)[i]);
    printf("\n");
}

int main(void)
{
    struct hasher_info info = { .max_bytes = 0x8181818181818181 };
    struct hasher_sha256 sha256 = {
        .address = 0x8282828282828282, .length = 0x8383838383838383,
    };

    for (int i = 0; i < 32; i++)
        sha256.digest[i] = 0x84 + i;
    print(&info, sizeof(info));
    print(&sha256, sizeof(sha256));
    printf("%u %u\n", (unsigned)HASHER_IOC_INFO, (unsigned)HASHER_IOC_SHA256);
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
        max_bytes: 0x8181_8181_8181_8181,
    };
    let sha256 = Sha256 {
        address: 0x8282_8282_8282_8282,
        length: 0x8383_8383_8383_8383,
        digest: std::array::from_fn(|at| 0x84 + at as u8),
    };
    let expected = format!(
        "{}\n{}\n{IOC_INFO} {IOC_SHA256}\n",
        hex(&info.to_bytes()),
        hex(&sha256.to_bytes()),
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(Info::from_bytes(&info.to_bytes()), info);
    assert_eq!(Sha256::from_bytes(&sha256.to_bytes()), sha256);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
