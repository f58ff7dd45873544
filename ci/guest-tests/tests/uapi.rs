// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The C header of the driver says the same as the driver's own constants.

#[path = "../../../driver/uapi.rs"]
mod uapi;

use std::collections::BTreeMap;

/// The value of a constant as the header writes it: `5ULL`, `56`, `(1ULL << 20)`.
fn value(text: &str) -> u64 {
    let text = text.trim_matches(['(', ')']);
    let number = |text: &str| text.trim().trim_end_matches("ULL").parse::<u64>().unwrap();
    match text.split_once("<<") {
        Some((left, right)) => number(left) << number(right),
        None => number(text),
    }
}

fn header() -> BTreeMap<&'static str, u64> {
    include_str!("../../../driver/uapi/ringbar.h")
        .lines()
        .filter_map(|line| line.strip_prefix("#define RINGBAR_"))
        .map(|line| {
            let (name, text) = line.split_once(char::is_whitespace).unwrap();
            (name, value(text.trim()))
        })
        .collect()
}

macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        BTreeMap::from([$((stringify!($name), uapi::$name as u64)),*])
    };
}

#[test]
fn header_and_driver_agree() {
    let driver = constants![
        MAP_SHIFT,
        MAP_MEMORY,
        MAP_MEMORY_UNCACHED,
        MAP_MEMORY_CACHED,
        MAP_STATISTICS,
        MAP_EVENTS,
        MAP_USED_RINGS,
        USED_RING_STRIDE,
        COUNTER_REQUESTS,
        COUNTER_DOORBELLS,
        COUNTER_INTERRUPTS,
        EVENT_LOG_PAGES,
        EVENT_RECORD_WORDS,
        EVENT_STARTED,
        EVENT_CAPACITY,
        EVENT_QUEUE_BROKEN,
        EVENT_STOPPED,
    ];
    assert_eq!(header(), driver);
    // None is missing above.
    let in_driver = include_str!("../../../driver/uapi.rs")
        .lines()
        .filter(|line| line.starts_with("pub(crate) const "))
        .count();
    assert_eq!(driver.len(), in_driver);
}
