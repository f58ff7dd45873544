#!/bin/bash
# Runs fuzz targets with libFuzzer.
#
# Usage:   run.sh TARGET...       (no target: all of them)
# Inputs:  RINGBAR_SECONDS=N runs each target for N seconds on every processor and keeps what
#          it finds in build/fuzz/corpus; RINGBAR_MINIMIZE=1 copies the fewest inputs of that and
#          of the committed corpus that execute the same edges to build/fuzz/minimized;
#          RINGBAR_INPUT=FILE executes one input and prints all that it prints; otherwise each
#          target executes RINGBAR_RUNS inputs (20000), the same ones each time.
# Output:  a line for each target, as of a test, with the number of executions and the coverage
#          (edges, as libFuzzer counts them), then what was found, and how many passed and
#          failed. The input that shows a fault is left in build/fuzz/found. Exit status 1 after a
#          fault.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../../guest-image/toolbox/lib.sh
. "$here/../../guest-image/toolbox/lib.sh"
cd "$checkout"

targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cd "$here/targets" && printf '%s\n' *.rs | sed 's/\.rs$//')
for target in "${targets[@]}"; do
    [[ -e $here/targets/$target.rs ]] || die "there is no fuzz target $target: $(cd "$here/targets" && echo *.rs | sed 's/\.rs//g')"
done

# libFuzzer is written in C++. The toolbox's Rust has a compiler for it beside it, which is not
# there under its other name, c++.
if [[ -z ${RINGBAR_RUST:-} ]] && ! g++ --version >/dev/null 2>&1; then
    export RINGBAR_RUST=toolbox
fi

# What cargo-fuzz sets, without what only an unstable compiler has (AddressSanitizer). The
# instrumentation is a pass of LLVM's that any rustc has.
flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
list=$(printf '"%s",' "${flags[@]}")
out=$checkout/build/fuzz
mkdir -p "$out/found"
# cargo COMMAND [ARGUMENT...]: with these settings. libFuzzer does not run in a static program,
# and from / cargo does not see the checkout's configuration, which asks for one. So the
# programs need the C library that they were linked with, and cargo starts them too.
cargo() {
    (
        cd /
        "$checkout/guest-image/toolbox/cargo.sh" --config "target.x86_64-unknown-linux-gnu.rustflags=[${list%,}]" \
            --config 'env.CXX="g++"' "$1" --quiet --manifest-path "$checkout/Cargo.toml" \
            --target x86_64-unknown-linux-gnu --profile fuzz --target-dir "$out/target" \
            -p ringbar-fuzz --features libfuzzer "${@:2}"
    )
}
cargo build --bins

# An input that takes 10 s hangs.
common=(-timeout=10 -rss_limit_mb=2048 -max_len=4096 -use_value_profile=0 -print_final_stats=1)
failed=0
for target in "${targets[@]}"; do
    seeds=$here/corpus/$target
    log=$out/$target.log
    arguments=("${common[@]}" "-artifact_prefix=$out/found/$target-")
    if [[ -n ${RINGBAR_INPUT:-} ]]; then
        cargo run --bin "$target" -- "${common[@]}" "$(readlink -f "$RINGBAR_INPUT")"
        continue
    fi
    if [[ -n ${RINGBAR_MINIMIZE:-} ]]; then
        fresh "$out/minimized/$target"
        mkdir -p "$out/corpus/$target"
        cargo run --bin "$target" -- -set_cover_merge=1 -use_counters=0 \
            "$out/minimized/$target" "$out/corpus/$target" "$seeds" >"$log" 2>&1
        echo "$target: $(find "$out/minimized/$target" -type f | wc -l) inputs in $out/minimized/$target"
        continue
    fi
    if [[ -n ${RINGBAR_SECONDS:-} ]]; then
        corpus=$out/corpus/$target
        mkdir -p "$corpus"
        arguments+=("-max_total_time=$RINGBAR_SECONDS" "-fork=$(nproc)" -ignore_crashes=0)
    else
        corpus=$out/bounded/$target
        fresh "$corpus"
        arguments+=("-runs=${RINGBAR_RUNS:-20000}" -seed=1)
    fi
    started=$SECONDS
    result=ok
    cargo run --bin "$target" -- "${arguments[@]}" "$corpus" "$seeds" >"$log" 2>&1 || result=FAILED
    # Of a single process, and of one with -fork.
    executions=$(sed -nE 's/^stat::number_of_executed_units: ([0-9]+)$/\1/p; s/^#([0-9]+): cov: .*/\1/p' "$log" | sort -n | tail -n 1)
    coverage=$(grep -oE 'cov: [0-9]+' "$log" | cut -d' ' -f2 | sort -n | tail -n 1 || true)
    echo "test fuzz::$target ... $result (${executions:-no} executions, ${coverage:-no} edges covered, $((SECONDS - started)) s)"
    if [[ $result != ok ]]; then
        grep -E 'panicked at|^ *(left|right): |ERROR: libFuzzer|Test unit written' "$log" | head -n 8 || tail -n 5 "$log"
        echo "  log: $log"
        failed=$((failed + 1))
    fi
done
# There was no test.
[[ -z ${RINGBAR_INPUT:-}${RINGBAR_MINIMIZE:-} ]] || exit 0
if ((failed)); then
    echo "test result: FAILED. $((${#targets[@]} - failed)) passed; $failed failed"
    exit 1
fi
echo "test result: ok. ${#targets[@]} passed; 0 failed"
