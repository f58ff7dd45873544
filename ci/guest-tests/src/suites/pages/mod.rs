// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The pages of callers: the effect of slow page faults, and the number of pins.

mod faults;
mod pins;

use crate::case::{Case, Suite};
use crate::needs::Needs;

/// The suite.
pub fn suite() -> Suite {
    let mut cases = vec![
        Case::new(
            "dr7_readers_in_a_page_fault_block_no_other_caller",
            faults::blocked_readers,
        ),
        Case::new(
            "dr7_a_fault_handler_may_read_the_device",
            faults::handler_reads_the_device,
        ),
    ];
    for call in faults::Call::ALL {
        cases.push(Case::new(
            format!("dr7_unbind_does_not_wait_for_a_page_of_{}", call.name()),
            move |context| faults::unbind(context, call),
        ));
    }
    for requests in pins::REQUESTS {
        cases.push(Case::new(
            format!("dr9_call_of_{requests}_requests_pins_each_page_once"),
            move |context| pins::each_page_once(context, requests),
        ));
    }
    cases.push(Case::new(
        "dr9_unaligned_call_pins_each_page_once",
        pins::unaligned,
    ));
    cases.push(Case::new(
        "dr9_nowait_call_of_several_requests_succeeds",
        pins::nowait,
    ));
    Suite {
        name: "pages",
        about: "pages of callers: who waits while they are brought, how often they are pinned",
        needs: Needs::default(),
        cases,
    }
}
