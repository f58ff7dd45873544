#!/bin/bash
# Installs the device: programs, manual pages, completions, systemd units.
#
# Usage:   install.sh BINARIES [DESTDIR]
# Inputs:  the folder BINARIES with ringbar-device and ringbarctl.
# Output:  files below DESTDIR/usr, for a package; without DESTDIR below /usr, as root.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
binaries=$1
root=${2:-}
usr=$root/usr

install -D -m 755 -t "$usr/bin" "$binaries/ringbar-device" "$binaries/ringbarctl"
install -D -m 644 -t "$usr/lib/systemd/system" "$here"/systemd/*

man=$usr/share/man/man1
mkdir -p "$man"
"$binaries/ringbarctl" man "$man"
"$binaries/ringbar-device" --print-man-page >"$man/ringbar-device.1"

completion() {
    mkdir -p "$(dirname "$2")"
    "$binaries/ringbarctl" completions "$1" >"$2"
}
completion bash "$usr/share/bash-completion/completions/ringbarctl"
completion zsh "$usr/share/zsh/vendor-completions/_ringbarctl"
completion fish "$usr/share/fish/vendor_completions.d/ringbarctl.fish"
