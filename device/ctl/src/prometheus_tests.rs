// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The text is read by a parser that was written from the description of the format.

use std::collections::{BTreeMap, BTreeSet};

use ringbar_control::reply::{Bucket, QueueRole};

use super::*;

type Labels = BTreeMap<String, String>;

/// A metric: its type, and its lines.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: Vec<(String, Labels, f64)>,
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// Parses `{name="value",...}`; returns the rest.
fn labels(text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return (labels, text);
    };
    loop {
        let (name, after) = rest.split_once("=\"").expect(rest);
        assert!(is_name(name) && !name.contains(':'), "{name}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        rest = loop {
            let (at, c) = chars.next().expect("a label ends");
            match c {
                '"' => break &after[at + 1..],
                '\\' => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c}"),
                }),
                '\n' => panic!("a line feed in a label"),
                c => value.push(c),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name}");
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return (labels, rest.strip_prefix('}').expect(rest)),
        }
    }
}

/// Parses a text, and checks what the format requires.
fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'));
    let mut families = BTreeMap::<String, Family>::new();
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, _) = help.split_once(' ').unwrap();
            assert!(is_name(name), "{name}");
            // All lines of a metric are one group, and the help comes once.
            assert!(!families.contains_key(name), "{name} comes twice");
            current = name.to_owned();
            families.insert(current.clone(), Family::default());
            continue;
        }
        let family = families.get_mut(&current).unwrap();
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(family.kind.is_empty() && family.samples.is_empty());
            assert!(["counter", "gauge", "histogram"].contains(&kind));
            kind.clone_into(&mut family.kind);
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let (name, rest) = line.split_at(end);
        let (labels, rest) = labels(rest);
        let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
        let suffix = name.strip_prefix(&current[..]).expect(line);
        match &family.kind[..] {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            kind => {
                assert_eq!(suffix, "");
                assert_eq!(kind == "counter", current.ends_with("_total"), "{line}");
            }
        }
        assert!(
            seen.insert((name.to_owned(), labels.clone())),
            "{line} comes twice"
        );
        family.samples.push((suffix.to_owned(), labels, value));
    }
    families
}

/// Checks that each histogram has buckets that rise to `+Inf`, which is its count.
fn check_histograms(family: &Family) {
    type Series = (Vec<(f64, f64)>, Option<f64>, Option<f64>);
    let mut all = BTreeMap::<Labels, Series>::new();
    for (suffix, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        let (buckets, sum, count) = all.entry(labels).or_default();
        match &suffix[..] {
            "_bucket" => buckets.push((le.unwrap().parse().unwrap(), *value)),
            "_sum" => *sum = Some(*value),
            _ => *count = Some(*value),
        }
    }
    assert!(!all.is_empty());
    for (labels, (buckets, sum, count)) in all {
        for pair in buckets.windows(2) {
            assert!(
                pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1,
                "{labels:?}: {pair:?}"
            );
        }
        let (bound, last) = buckets.last().unwrap();
        assert!(bound.is_infinite() && Some(*last) == count && sum.is_some());
    }
}

fn example() -> (Status, Statistics) {
    let status = Status {
        version: "1.2.3".into(),
        pid: 5,
        uptime_seconds: 61,
        bytes: 1 << 28,
        io_queues: 1,
        storage: "file:/a \"b\"\\c\nd".into(),
        storage_failure: Some("gone".into()),
        transport: "vhost-user".into(),
        socket: "/tmp/s".into(),
        connected: true,
        log: "info".into(),
    };
    let bucket = |le_ns, count| Bucket { le_ns, count };
    let queue = |queue, role, latencies| QueueStatistics {
        queue,
        role,
        in_flight: 3,
        counts: Counts {
            requests: 10 + u64::from(queue),
            writes: 5,
            ..Counts::default()
        },
        latencies,
    };
    let write = Histogram {
        operation: "write".into(),
        sum_ns: 1_500_000_256,
        buckets: vec![
            bucket(Some(256), 1),
            bucket(Some(320), 2),
            bucket(Some(1 << 9), 4),
            bucket(None, 8),
        ],
    };
    let statistics = Statistics {
        total: Counts::default(),
        queues: vec![
            queue(0, QueueRole::Control, vec![]),
            queue(2, QueueRole::Io, vec![write]),
        ],
    };
    (status, statistics)
}

#[test]
fn text_is_what_the_format_says() {
    let (status, statistics) = example();
    let families = parse(&text("a \"device\"", &status, &statistics));
    for family in families.values() {
        assert!(!family.samples.is_empty());
        assert!(
            family
                .samples
                .iter()
                .all(|sample| sample.1["device"] == "a \"device\"")
        );
    }
    let info = &families["ringbar_device_info"].samples[0].1;
    assert_eq!(info["storage"], status.storage);
    let value = |name: &str| families[name].samples[0].2;
    assert_eq!(value("ringbar_device_memory_bytes"), 268_435_456.0);
    assert_eq!(value("ringbar_device_storage_failed"), 1.0);
    let requests = &families["ringbar_requests_total"].samples;
    let found: Vec<_> = requests
        .iter()
        .map(|(_, labels, value)| (&labels["queue"][..], &labels["role"][..], *value))
        .collect();
    assert_eq!(found, [("0", "control", 10.0), ("2", "io", 12.0)]);

    let latency = &families["ringbar_request_latency_seconds"];
    check_histograms(latency);
    let bucket = |le: &str| {
        let mut samples = latency.samples.iter();
        samples
            .find(|(_, labels, _)| labels.get("le").is_some_and(|bound| bound == le))
            .map(|sample| sample.2)
    };
    assert_eq!(bucket("0.000000256"), Some(1.0));
    assert_eq!(bucket("0.000000512"), Some(7.0));
    assert_eq!(bucket("68.719476736"), Some(7.0));
    assert_eq!(bucket("+Inf"), Some(15.0));
    let sum = latency.samples.iter().find(|sample| sample.0 == "_sum");
    assert_eq!(sum.unwrap().2, 1.500_000_256);
}

#[test]
fn seconds_are_exact() {
    for (nanoseconds, text) in [
        (0, "0"),
        (1, "0.000000001"),
        (1_000_000_000, "1"),
        (10_000_000_000, "10"),
        (1_500_000_000, "1.5"),
    ] {
        assert_eq!(seconds(nanoseconds), text);
    }
}
