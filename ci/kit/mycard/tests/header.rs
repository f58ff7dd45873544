// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the C header and the Rust side of the interface to user space agree: a C program
//! fills in a structure and prints it, with all constants.

use std::fs;
use std::process::Command;

use mycard::protocol::Opcode;
use mycard::uapi::{IOC_INFO, IOC_RUN, Info, Run};

const PROGRAM: &str = r#"
#include <stdio.h>
#include "mycard.h"

static void print(const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const unsigned char *)from)[i]);
    printf("\n");
}

int main(void)
{
    struct mycard_info info = { .max_bytes = 0x81818181 };
    struct mycard_run run = {
        .opcode = 0x81818181, .reserved = 0x82828282, .source = 0x8383838383838383,
        .destination = 0x8484848484848484, .length = 0x8585858585858585,
        .key = 0x8686868686868686, .result = 0x8787878787878787,
    };

    print(&info, sizeof(info));
    print(&run, sizeof(run));
    printf("%u %u %u %u\n", (unsigned)MYCARD_IOC_INFO, (unsigned)MYCARD_IOC_RUN,
           MYCARD_OP_CRC32C, MYCARD_OP_XOR);
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
        max_bytes: 0x8181_8181,
    };
    let run = Run {
        opcode: 0x8181_8181,
        reserved: 0x8282_8282,
        source: 0x8383_8383_8383_8383,
        destination: 0x8484_8484_8484_8484,
        length: 0x8585_8585_8585_8585,
        key: 0x8686_8686_8686_8686,
        result: 0x8787_8787_8787_8787,
    };
    let expected = format!(
        "{}\n{}\n{IOC_INFO} {IOC_RUN} {} {}\n",
        hex(&info.to_bytes()),
        hex(&run.to_bytes()),
        Opcode::Crc32c as u32,
        Opcode::Xor as u32,
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(Info::from_bytes(&info.to_bytes()), info);
    assert_eq!(Run::from_bytes(&run.to_bytes()), run);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
