#!/bin/bash
# Makes a root: a folder with Debian packages, entered with enter.sh.
#
# Usage:   root.sh NAME
# Inputs:  the record of packages that resolve.sh keeps for NAME.
# Output:  the path of the root, on stdout. It is named after the content of the
#          record, made once, and complete when it exists.
#
# Packages are unpacked, not installed: no maintainer script runs, so no
# privilege is needed. The few things those scripts would have done are done at
# the end. Packages that were downloaded before an interruption are kept.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

# To be raised when this script unpacks or finishes a root differently.
layout=1

name=$1
retried=${2:-}
record=$("$here/resolve.sh" "$name")
key=$({
    cut -d' ' -f1,2,4 "$record"
    echo "layout $layout"
} | digest)
root=$cache/$name-$key

if reuse "$root"; then
    echo "$root"
    exit
fi
lock "root-$name"
if reuse "$root"; then
    echo "$root"
    exit
fi

# What interrupted runs have left, except the downloads that are still wanted.
downloads=$cache/download-$name-$key
for stale in "$cache/$name"-*.tmp "$cache/download-$name"-*; do
    [[ ! -e $stale || $stale == "$downloads" ]] || remove "$stale"
done
if ! "$here/download.sh" "$name" "$record" "$downloads"; then
    if [[ -z $retried ]]; then
        # A mirror drops old versions; a record from another day may name them.
        note "$name: not everything could be downloaded, choosing packages anew"
        "$here/resolve.sh" --update "$name" >/dev/null
        unlock
        exec "$here/root.sh" "$name" retried
    fi
    grep -E '^(E|W|Err):?' "$downloads/log" >&2 || tail -n 5 "$downloads/log" >&2
    die "downloading failed: check the network and run it again; what has arrived is kept"
fi
cd "$downloads"

# base-files first: it lays down the links /bin, /lib and /sbin.
building=$root.tmp
fresh "$building"
dpkg-deb -x base-files_*.deb "$building"
count=$(wc -l <"$record")
# shellcheck disable=SC2016  # The inner shell expands these.
cut -d' ' -f5 "$record" | sed 's|.*/||' | xargs -P "$(nproc)" -I{} sh -c 'dpkg-deb -x "$1" "$2" && echo' sh {} "$building" |
    progress "$name: packages unpacked" "$count"

# In place of maintainer scripts: names that alternatives would provide, and
# accounts, without which no program can tell who it runs as.
link() {
    [[ -e $building/usr/bin/$2 || ! -e $building/usr/bin/$1 ]] || ln -s "$1" "$building/usr/bin/$2"
}
link mawk awk
link gcc cc
link bison.yacc yacc
link which.debianutils which
echo 'root:x:0:0:root:/root:/bin/bash' >"$building/etc/passwd"
echo 'root:x:0:' >"$building/etc/group"
echo 'hosts: files dns' >"$building/etc/nsswitch.conf"
: >"$building/etc/resolv.conf"
: >"$building/etc/hosts"
if [[ -d $building/usr/share/ca-certificates ]]; then
    find "$building/usr/share/ca-certificates" -name '*.crt' -exec cat {} + >"$building/etc/ssl/certs/ca-certificates.crt"
fi

# The module must be built by the compiler that built the kernel.
for config in "$building"/usr/lib/modules/*/config; do
    [[ -e $config ]] || continue
    wanted=$(sed -n 's/^CONFIG_RUSTC_VERSION=//p' "$config")
    found=$(awk '$1 == "rustc" { split($2, v, /[.+]/); print v[1] * 100000 + v[2] * 100 + v[3] }' "$record")
    [[ $wanted == "$found" ]] ||
        die "the kernel was built with rustc $wanted and trixie has rustc $found (in the form of CONFIG_RUSTC_VERSION): the archive has moved on, see roots/$name.preferences"
done

"$here/enter.sh" "$building" -- ldconfig
finish "$building" "$root"
cd "$cache"
remove "$downloads"
echo "$root"
