// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device's commands, compared with a model.

mod bench;
mod block;
mod effects;
mod large;
mod refusals;
mod uring;

pub(super) use bench::crc32c;
pub(super) use effects::random;

use ringbar_uapi::{self as uapi, Info};

use crate::case::{Case, Context, Suite, Verdict};
use crate::needs::Needs;
use crate::sys;
use crate::{check, check_eq};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "commands",
        about: "commands within the device, by ioctl and io_uring, against a model",
        needs: Needs::default(),
        cases: vec![
            Case::new("b14_info", info),
            Case::new("b14_discard", effects::discard),
            Case::new("b14_write_zeroes", effects::write_zeroes),
            Case::new("b14_fill_repeats_the_pattern_from_the_start", effects::fill),
            Case::new("b14_copy_overlapping_both_ways", effects::copy),
            Case::new("b14_compare_finds_the_first_difference", effects::compare),
            Case::new("b14_crc32c_of_known_data_and_in_parts", effects::crc32c),
            Case::new("b14_flush_is_a_request", effects::flush),
            Case::new("b14_durable_commands", effects::durable),
            Case::new("b14_ranges_up_to_the_end", effects::up_to_the_end),
            Case::new("b14_random_commands_against_a_model", effects::random),
            Case::new("b14_ranges_beyond_the_end_are_enxio", refusals::ranges),
            Case::new("b14_unknown_arguments_are_einval", refusals::arguments),
            Case::new("b14_access_mode_is_checked", refusals::access_mode),
            Case::new("b14_bad_pointer_is_efault", refusals::bad_pointer),
            Case::new("b14_unknown_ioctl_is_enotty", refusals::unknown_ioctl),
            Case::new("b14_block_ioctls_that_query", block::queries),
            Case::new("b14_block_ioctls_of_32_bit_programs", block::compat_queries)
                // No CONFIG_IA32_EMULATION.
                .not_on_debug_kernel(),
            Case::new("b14_block_ioctls_that_change_a_range", block::changes),
            Case::new(
                "b14_block_ioctls_refuse_as_block_devices_do",
                block::refusals,
            ),
            Case::new("b14_blockdev", block::blockdev),
            Case::new("b14_blkdiscard_of_busybox", block::blkdiscard),
            Case::new("b14_trim_of_fio", block::fio).left_to_test_all(),
            Case::new("b14_copy_larger_than_a_command", large::copy),
            Case::new("b14_fill_larger_than_a_command", large::fill),
            Case::new("b14_crc32c_larger_than_a_command", large::crc32c),
            Case::new("b14_compare_larger_than_a_command", large::compare),
            Case::new("b14_uring_each_command", uring::each),
            Case::new("b14_uring_64_in_flight", uring::in_flight),
            Case::new("b14_uring_more_than_the_queues_hold", uring::many),
            Case::new("b14_uring_linked_write_and_crc32c", uring::linked),
            Case::new("b14_uring_larger_than_a_command", uring::large),
            Case::new("b14_uring_errors", uring::errors),
            Case::new("b14_uring_entries_of_other_sizes", uring::entry_sizes),
        ],
    }
}

fn info(context: &Context) -> Verdict {
    let file = context.open()?;
    let bytes = sys::info(&file)?;
    let info = Info::from_bytes(&bytes);
    check_eq!(bytes[48..], [0; 16], "the reserved bytes");
    check_eq!(info.capacity, context.size(), "capacity");
    for opcode in bench::ALL {
        check!(
            info.capabilities & 1 << opcode != 0,
            "opcode {opcode} is not among the capabilities {:#x}",
            info.capabilities
        );
    }
    // Neither read nor write is a command, but both are opcodes.
    let known = bench::ALL
        .iter()
        .fold(0b110, |bits, opcode| bits | 1 << opcode)
        | uapi::CAP_MMAP
        | uapi::CAP_IOPOLL;
    check_eq!(info.capabilities & !known, 0, "unknown capabilities");
    check!(
        info.capabilities & uapi::CAP_MMAP != 0 && context.map().is_ok(),
        "the device memory cannot be mapped"
    );
    check_eq!(info.aperture, context.size(), "bytes that can be mapped");
    check!(
        info.max_request >= 4096 && info.max_command >= info.max_request,
        "largest request {}, largest command {}",
        info.max_request,
        info.max_command
    );
    check!(
        info.io_queues > 0 && info.max_segments > 0,
        "{} queues, {} segments",
        info.io_queues,
        info.max_segments
    );
    // A write-only descriptor may query, too.
    let writer = context.open_with(libc::O_WRONLY)?;
    check_eq!(sys::info(&writer)?, bytes, "what a writer learns");
    Ok(())
}
