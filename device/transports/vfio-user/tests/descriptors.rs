// SPDX-License-Identifier: Apache-2.0 OR MIT

//! No message leaves a descriptor open. One test alone in its process, because it counts the
//! descriptors of the process.

#[path = "server/support.rs"]
mod support;

use std::os::fd::AsRawFd;

use ringbar_vfio_user::server::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{
    Client, DMA_MAP, Device, NO_REPLY, REGION_READ, RESET, Raw, SET_IRQS, VERSION, events, memory,
    raw,
};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

#[test]
fn no_message_leaves_a_descriptor_open() {
    let before = open_descriptors();
    let (client, server) = Client::connect(Device::new());
    // The first reply says that the server has set the connection up.
    assert_eq!(
        client.call(&Raw::new(RESET, []), &[]).error,
        Some(Errno::PROTO)
    );
    let connected = open_descriptors();
    assert!(connected > before);

    // Wrong in one way or another, all of them; the last byte of some never comes.
    for command in [VERSION, DMA_MAP, SET_IRQS, REGION_READ, RESET, 99] {
        for flags in [0, 1, 2, NO_REPLY, NO_REPLY | 1] {
            for count in [1, 2, 16, 17, 200] {
                let files = events(count);
                let message = Raw {
                    flags,
                    ..Raw::new(command, [0; 21])
                };
                client.send(&message, &raw(&files));
                if flags & 0x11 == 0 {
                    assert!(client.receive().error.is_some());
                }
            }
        }
    }
    client.negotiate();
    client.assert_in_step();
    assert_eq!(open_descriptors(), connected);

    // The kernel drops what the process has no room for: an error, not a message with less.
    let mut map = [32u32, 3].map(u32::to_ne_bytes).concat();
    map.extend([0u64, 0x1000, 0x1000].map(u64::to_ne_bytes).concat());
    let map = Raw::new(DMA_MAP, map);
    let file = [memory()];
    let lowest_free = file[0].try_clone().expect("duplicate").as_raw_fd();
    let limit = getrlimit(Resource::Nofile);
    let full = Rlimit {
        current: Some(lowest_free as u64),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, full).expect("setrlimit");
    let answer = client.call(&map, &raw(&file));
    setrlimit(Resource::Nofile, limit).expect("setrlimit");
    assert_eq!(answer.error, Some(Errno::MFILE));
    assert_eq!(client.call(&map, &raw(&file)).error, None);
    drop(file);
    assert_eq!(open_descriptors(), connected);

    // Hang-up with descriptors in a message received in part.
    let files = events(5);
    client.send_bytes(&map.bytes()[..20], &raw(&files));
    drop((client, files));
    server.end().expect("a hang-up is no error");
    drop(server);
    assert_eq!(open_descriptors(), before);
}
