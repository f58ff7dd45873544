#!/bin/bash
# Runs cargo, the host's where it will do and that of a second root otherwise.
#
# Usage:   cargo.sh ARGUMENT...
# Inputs:  RINGBAR_RUST=host|toolbox forces a choice.
# Output:  that of cargo.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

# Settings of the caller's that would put results elsewhere or build them
# differently, and those of the make that started us.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET CARGO_BUILD_TARGET_DIR
unset CARGO_BUILD_RUSTFLAGS MAKEFLAGS MFLAGS MAKELEVEL

root=$("$here/rust.sh")
if [[ -z $root ]]; then
    exec cargo "$@"
fi
export CARGO_HOME=$cache/cargo
mkdir -p "$CARGO_HOME"
exec "$here/enter.sh" "$root" --network -- cargo "$@"
