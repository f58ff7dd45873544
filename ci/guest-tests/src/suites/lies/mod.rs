// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that lies. The host falsifies the device's output on its way to the driver.
//! The driver must detect each lie and recover.
//!
//! | module | what the device lies about |
//! |---|---|
//! | `ring` | used rings: the driver takes the device out of service |
//! | `status` | results of requests: the request fails, or gets the false result |
//! | `events` | events, and interrupts |
//! | `start` | configuration and answers at the start |
//! | `stop` | the end of DMA |
//! | `recovery` | the same; these tests cover the return to service |

mod device;
mod events;
mod recovery;
mod ring;
mod start;
mod status;
mod stop;

use ringbar_agent_protocol::machine::Transport;

use self::device::QUEUE_SIZE;
use crate::case::Suite;
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};

/// The suite.
pub fn suite() -> Suite {
    let mut cases = ring::cases();
    cases.extend(status::cases());
    cases.extend(events::cases());
    cases.extend(start::cases());
    cases.extend(stop::cases());
    cases.extend(recovery::cases());
    Suite {
        name: "lies",
        about: "the device says what is not so, and works again afterwards",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                lies: true,
                transports: Transports::Only(Transport::VhostUser, "the proxy speaks vhost-user"),
                queue_size: Some(QUEUE_SIZE),
                ..Daemon::default()
            }),
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases,
    }
}
