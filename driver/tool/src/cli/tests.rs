// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Command lines that are accepted and refused.

use super::*;

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
}

fn map(arguments: &[&str]) -> Result<MapArgs, clap::Error> {
    let all = ["ringbar", "map"].iter().chain(arguments);
    match Cli::try_parse_from(all)?.command {
        Command::Map(args) => Ok(args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn arguments_of_a_map_are_parsed() {
    let args = map(&["x"]).unwrap();
    assert_eq!((args.offset, args.length), (0, None));
    assert_eq!(args.format, Format::Hex);
    assert_eq!(args.region, Region::Memory);

    let args = map(&[
        "x",
        "--offset",
        "0x10",
        "--length=4K",
        "--region=used-rings:3",
        "--format=raw",
    ])
    .unwrap();
    assert_eq!((args.offset, args.length), (16, Some(4096)));
    assert_eq!(args.format, Format::Raw);
    assert_eq!(args.region, Region::UsedRing(3));
    assert_eq!(
        map(&["x", "--write", "-"]).unwrap().write,
        Some(PathBuf::from("-"))
    );
}

#[test]
fn invalid_arguments_are_refused() {
    for arguments in [
        &[][..],
        &["x", "--offset", "-1"],
        &["x", "--length", "1X"],
        &["x", "--region", "nowhere"],
        &["x", "--format", "octal"],
        &["x", "--write", "-", "--format", "raw"],
    ] {
        assert!(map(arguments).is_err(), "{arguments:?}");
    }
}

#[test]
fn an_interval_is_a_positive_number_of_seconds() {
    assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
    assert_eq!(interval("2"), Ok(Duration::from_secs(2)));
    for text in [
        "", "0", "-1", "nan", "inf", "1s", "1e-12", "1000001", "1e18",
    ] {
        assert!(interval(text).is_err(), "{text:?}");
    }
}

/// Parses a whole command line; `None` if it is refused.
fn accepted(line: &str) -> Option<Cli> {
    let cli = Cli::try_parse_from(line.split(' ')).ok()?;
    cli.problem().is_none().then_some(cli)
}

#[test]
fn a_transfer_has_defaults() {
    let Some(Cli {
        json: false,
        command: Command::Dma {
            operation: DmaOperation::Write { args, data },
        },
    }) = accepted("ringbar dma write --offset 1M --block-size 4K")
    else {
        panic!("not a transfer");
    };
    assert_eq!(args.device, Path::new("/dev/ringbar0"));
    assert_eq!((args.offset, args.length), (1 << 20, None));
    assert_eq!((data.from, data.seed), (None, 1));
    assert_eq!(
        (args.queue.engine, args.queue.depth()),
        (Engine::IoUring, 8)
    );
    assert_eq!(args.queue.block_size, 4096);
}

#[test]
fn combinations_without_a_meaning_are_refused() {
    for line in [
        "ringbar dma read --engine sync",
        "ringbar dma read --engine sync --depth 1",
        "ringbar dma read --engine libaio --depth 4096 --json",
        "ringbar dma read --to - --length 5",
        "ringbar dma verify --from - --length 5",
        "ringbar dma verify --from file",
        "ringbar dma write --from -",
        "ringbar --json dma write x --block-size 1G",
        "ringbar bench --engine sync",
        "ringbar bench --write --rounds 1",
        "ringbar top --count 3 --interval 0.1 --json",
        "ringbar map x --json",
        "ringbar map x --json --write -",
    ] {
        assert!(accepted(line).is_some(), "{line}");
    }
    for line in [
        "ringbar dma",
        "ringbar dma read --engine sync --depth 2",
        "ringbar dma read --to - --json",
        "ringbar dma read --depth 0",
        "ringbar dma read --depth 4097",
        "ringbar dma read --block-size 0",
        "ringbar dma read --block-size 1025M",
        "ringbar dma read --from x",
        "ringbar dma verify --from -",
        "ringbar dma write --from x --seed 2",
        "ringbar dma write --engine aio",
        "ringbar bench --engine sync --depth 8",
        "ringbar bench --rounds 0",
        "ringbar top --count 0",
        "ringbar top --interval 0",
        "ringbar top --interval 1e18",
        "ringbar map x --json --format raw",
    ] {
        assert!(accepted(line).is_none(), "{line}");
    }
}
