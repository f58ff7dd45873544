#!/bin/bash
# The checks that need no virtual machine and no test: format, lints, scripts, spelling, links,
# licences.
#
# Usage:   check.sh [NAME...]
# Inputs:  names of checks, all without; the files of the checkout that git knows.
# Output:  a line for each check with its time, the messages of those that fail, and failure if
#          there is one.
#
# The programs that do this are fetched or built once, and kept in the cache.
#
# shellcheck disable=SC2317  # The checks are called by their names.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=toolbox/lib.sh
. "$here/toolbox/lib.sh"
cd "$checkout"

typos_version=1.42.3 # the last one for the Rust of Cargo.toml
deny_version=0.20.2
all=(format format-driver lints scripts spelling links licences)

format() {
    "$toolbox/cargo.sh" fmt --all --check
}

format-driver() {
    "$here/kernel/fmt-driver.sh" --check
}

lints() {
    "$toolbox/cargo.sh" clippy --quiet --workspace --all-targets -- -D warnings
}

# The files that bash executes, by their first line. lib.sh and guest-files.sh are sourced: they are
# checked with those.
scripts() {
    local root files
    root=$("$toolbox/root.sh" check)
    mapfile -t files < <(git grep -lIE '^#!.*\b(ba)?sh$' -- ':!*.rs')
    "$toolbox/enter.sh" "$root" -- shellcheck --external-sources "${files[@]}"
}

spelling() {
    "$toolbox/program.sh" typos-cli "$typos_version" typos --config guest-image/typos.toml
}

links() {
    "$toolbox/cargo.sh" test --quiet -p ringbar-runner --test links --test crates --test features
}

# Licences, duplicates and sources of crates. Vulnerabilities need a database of the network:
# `make advisories`.
licences() {
    "$toolbox/program.sh" cargo-deny "$deny_version" cargo-deny \
        --log-level error --config guest-image/deny.toml check bans licenses sources
}

advisories() {
    "$toolbox/program.sh" cargo-deny "$deny_version" cargo-deny \
        --log-level error --config guest-image/deny.toml check advisories
}

# One check, in a process of its own, which ends with the first command that fails.
if [[ ${1:-} == --one ]]; then
    "$2"
    exit
fi

output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
for check in "${@:-${all[@]}}"; do
    [[ " ${all[*]} advisories " == *" $check "* ]] ||
        die "check.sh: no check is called $check: choose from ${all[*]} advisories"
    started=$SECONDS
    if "$here/check.sh" --one "$check" >"$output" 2>&1; then
        note "$check: ok ($((SECONDS - started)) s)"
    else
        note "$check: FAILED"
        cat "$output" >&2
        status=1
    fi
done
exit "$status"
