#!/bin/bash
# Makes the documentation of the driver's items, private ones included.
#
# Usage:   driver-doc.sh
# Inputs:  build/driver, in which the module was built: make driver.
# Output:  build/doc/driver, and the path of its first page on stdout.
#
# The kernel's make has rustdoc for its own crates only. So rustdoc gets the command line with which
# make compiled the module. Links to items of the kernel crate lead to rust.docs.kernel.org.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"

root=$("$toolbox/root.sh" toolbox)
kernel=$("$here/kernel.sh" "$root")
saved=$checkout/build/driver/.ringbar_main.o.cmd
output=$checkout/build/doc/driver
[[ -e $saved ]] || die "$saved is missing: make driver"
command=$(sed -nE '1{
    s/^savedcmd_[^ ]+ := (.* )?rustc /\1rustdoc /
    s/ --emit=[^ ]+//g
    s/ --out-dir [^ ]+//
    s/ -Wunreachable_pub / /
    p
}' "$saved")
[[ $command == *"rustdoc "* ]] || die "$saved does not begin with a command of rustc"

fresh "$output"
"$toolbox/enter.sh" "$root" --bind "$kernel:/kernel" -- bash -euc "
    cd /kernel/build
    export RUSTC_BOOTSTRAP=1
    $command --cap-lints=warn --document-private-items --output $output \
        --extern-html-root-url kernel=https://rust.docs.kernel.org/" >&2
echo "$output/ringbar_main/index.html"
