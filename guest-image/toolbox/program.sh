#!/bin/bash
# Runs a program of crates.io, which is built once and kept in the cache.
#
# Usage:   program.sh CRATE VERSION PROGRAM [ARGUMENT...]
# Inputs:  RINGBAR_RUST as for cargo.sh.
# Output:  that of the program.
#
# A program runs where its Rust is, because it is linked to the C library there: on the host, or
# in the root with the toolbox's Rust. There it also finds the cargo that it may call.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

crate=$1
version=$2
name=$3
shift 3
root=$("$toolbox/rust.sh")
program=$cache/$crate-$version${root:+-toolbox}
if ! reuse "$program"; then
    lock "$crate"
    if ! reuse "$program"; then
        note "building $crate $version"
        building=$program.tmp
        fresh "$building"
        cd "$building"
        run_logged "$building/log" "$crate" "$toolbox/cargo.sh" install --locked \
            --version "$version" --root "$building" --target-dir "$building/target" "$crate"
        cd "$OLDPWD"
        remove "$building/target"
        finish "$building" "$program"
    fi
    unlock
fi
if [[ -z $root ]]; then
    exec "$program/bin/$name" "$@"
fi
export CARGO_HOME=$cache/cargo
exec "$toolbox/enter.sh" "$root" --network -- "$program/bin/$name" "$@"
