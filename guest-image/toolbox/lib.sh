# shellcheck shell=bash
# What the set-up scripts share: messages, the cache, locks and progress.
# Sourced, not run. Messages go to stderr; a script's result goes to stdout.

# Programs are to say the same in every country. LANGUAGE counts even then.
export LC_ALL=C.UTF-8
unset LANGUAGE

# The folder of this file with its scripts, and the checkout.
toolbox=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
checkout=$(dirname "$(dirname "$toolbox")")

# Where everything that does not depend on the checkout is kept.
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/ringbar

# Some programs answer Ctrl-C with an ordinary failure, after which the shell
# would go on; a set-up that is interrupted stops.
trap 'exit 130' INT
trap 'exit 143' TERM

# die MESSAGE: ends the script with one line that says what to do.
die() {
    printf 'ringbar: %s\n' "$*" >&2
    exit 1
}

# note MESSAGE: says what is being done.
note() {
    printf '  %s\n' "$*" >&2
}

# digest: a short name for the content on stdin.
digest() {
    sha256sum | cut -c1-16
}

# lock NAME: waits until no other run makes NAME. The lock is held until the
# script and every program it started have ended, so that what an interrupted
# run has left behind can no longer be in use once the lock is ours.
lock() {
    mkdir -p "$cache/locks"
    exec {lock_fd}>"$cache/locks/$1"
    if ! flock --nonblock "$lock_fd"; then
        note "$1: waiting for another set-up run, or what is left of one, to finish"
        flock "$lock_fd"
    fi
}

# unlock: gives up the lock.
unlock() {
    exec {lock_fd}>&-
}

# remove PATH...: deletes trees, also those with folders we may not write to.
remove() {
    rm -rf -- "$@" 2>/dev/null || {
        chmod -R u+rwX -- "$@" && rm -rf -- "$@"
    }
}

# reuse DIR: whether DIR is there; if so, notes that it was used (see update.sh).
reuse() {
    [[ -d $1 ]] && touch "$1"
}

# finish NEW FINAL: gives what was made its name, by which it counts as complete.
# The content is on the disk before: a power failure must not leave the name of
# something that is incomplete.
finish() {
    sync -f "$1" && mv -T -- "$1" "$2"
}

# fresh DIR: an empty folder DIR.
fresh() {
    [[ ! -e $1 ]] || remove "$1"
    mkdir -p "$1"
}

# progress WHAT [TOTAL]: counts the lines on stdin and shows the count, in place
# on a terminal, otherwise every few seconds; without a total, the line reached
# as well. Speaks up too when no line comes.
progress() {
    local what=$1 total=${2:-} every=10 count=0 status line='' latest='' words shown=$SECONDS started=$SECONDS
    [[ ! -t 2 ]] || every=1
    while true; do
        status=0
        IFS= read -r -t "$every" line || status=$?
        if ((status == 0)); then
            count=$((count + 1))
            [[ -n $total ]] || latest=$line
        elif ((status <= 128)); then
            break
        fi
        if ((SECONDS - shown >= every)); then
            shown=$SECONDS
            read -r -a words <<<"$latest"
            latest=${words[*]}
            progress_line "$what: $count${total:+ of $total} ($((SECONDS - started)) s) ${latest:0:40}"
        fi
    done
    # Without the count: a line that arrives just when read gives up is not in it.
    progress_line "$what: finished after $((SECONDS - started)) s"
    [[ ! -t 2 ]] || printf '\n' >&2
}

# progress_line TEXT: shows it, on a terminal in place of the line before.
progress_line() {
    if [[ -t 2 ]]; then
        printf '\r  %s\033[K' "$1" >&2
    else
        note "$1"
    fi
}

# run_logged LOG WHAT COMMAND...: runs a command whose output is only of interest
# when it fails; shows a count of the lines it prints.
run_logged() {
    local log=$1 what=$2
    shift 2
    if ! "$@" 2>&1 | tee "$log" | progress "$what"; then
        tail -n 30 "$log" >&2
        return 1
    fi
}
