#!/bin/bash
# Chooses the Rust for user space: the host's where it will do, a second root's otherwise.
#
# Usage:   rust.sh
# Inputs:  RINGBAR_RUST=host|toolbox forces a choice.
# Output:  the path of the root on stdout, which is made if necessary; an empty line for the
#          host's Rust. Which Rust of the host's will do is kept in build/rust-host.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

# What is wrong with the host's Rust; nothing when it will do.
problem_with_host() {
    local wanted found try
    command -v cargo >/dev/null || { echo 'there is no cargo' && return; }
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$checkout/Cargo.toml")
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    [[ -n $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]] ||
        { echo "cargo is ${found:-broken} and $wanted is needed" && return; }
    cargo fmt --version >/dev/null 2>&1 || { echo 'rustfmt is missing' && return; }
    cargo clippy --version >/dev/null 2>&1 || { echo 'clippy is missing' && return; }
    try=$(mktemp -d)
    echo 'fn main() {}' >"$try/main.rs"
    rustc --target x86_64-unknown-linux-gnu -C target-feature=+crt-static -o "$try/main" "$try/main.rs" >/dev/null 2>&1 ||
        echo 'a static program does not link (a C compiler or libc.a is missing)'
    rm -rf "$try"
}

# host_problem: the same. That there is none is remembered until the host's Rust changes;
# what was wrong may be put right by other means.
host_problem() {
    local known=$checkout/build/rust-host identity problem
    identity="$(command -v cargo || true) $(cargo --version 2>/dev/null || true)"
    [[ ! -e $known || $(cat "$known") != "$identity" ]] || return 0
    problem=$(problem_with_host)
    if [[ -n $problem ]]; then
        echo "$problem"
        return
    fi
    mkdir -p "$checkout/build"
    echo "$identity" >"$known.$$"
    mv "$known.$$" "$known"
}

case ${RINGBAR_RUST:-} in
    toolbox) use=toolbox ;;
    host)
        problem=$(host_problem)
        [[ -z $problem ]] || die "RINGBAR_RUST=host, but $problem; unset it to use the toolbox's Rust"
        use=host
        ;;
    '')
        use=host
        problem=$(host_problem)
        [[ -z $problem ]] || use=toolbox
        ;;
    *) die "RINGBAR_RUST is '$RINGBAR_RUST': it takes host or toolbox" ;;
esac

if [[ $use == host ]]; then
    echo
else
    "$here/root.sh" rust
fi
