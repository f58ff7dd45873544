#!/bin/bash
# Chooses the exact packages of a root and writes them down.
#
# Usage:   resolve.sh [--update] NAME
# Inputs:  roots/NAME.packages, roots/NAME.preferences; Debian's trixie and
#          trixie-backports, from RINGBAR_MIRROR or the host's own mirror.
# Output:  the path of the record, on stdout. A line of it is
#          PACKAGE VERSION SIZE SHA256 URI.
#
# A record is kept and used again, so that set-up needs no network the second
# time; --update makes a new one. The host's apt does the work, with folders of
# its own: nothing on the host changes and no privilege is needed.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

update=
if [[ ${1:-} == --update ]]; then
    update=yes
    shift
fi
name=$1
packages=$here/roots/$name.packages
preferences=$here/roots/$name.preferences
record=$cache/resolved/$name-$(cat "$packages" "$preferences" | digest).list

if [[ -z $update && -e $record ]]; then
    echo "$record"
    exit
fi

for program in apt-get apt-cache apt-config dpkg; do
    command -v "$program" >/dev/null ||
        die "$program is missing: set-up takes its packages from Debian with apt; use a Debian or Ubuntu host or container"
done
[[ $(dpkg --print-architecture) == amd64 ]] ||
    die "this host is $(dpkg --print-architecture); only amd64 hosts are supported"

lock "resolve-$name"
if [[ -z $update && -e $record ]]; then
    echo "$record"
    exit
fi

default_mirror=http://deb.debian.org/debian
keyring_fix='apt-get install debian-archive-keyring'
keyring=/usr/share/keyrings/debian-archive-keyring
if [[ -e $keyring.gpg ]]; then
    keyring=$keyring.gpg
elif [[ -e $keyring.pgp ]]; then
    keyring=$keyring.pgp
else
    die "the keys of the Debian archive are missing: $keyring_fix"
fi

# The first Debian mirror that the host's own sources name.
host_mirror() {
    apt-get indextargets --format "\$(REPO_URI) \$(RELEASE)" 'Created-By: Packages' 2>/dev/null |
        while read -r uri release; do
            case $release in
                bookworm | trixie | forky | sid | stable | testing | unstable) ;;
                *) continue ;;
            esac
            case $uri in
                http://*/debian/ | https://*/debian/)
                    echo "${uri%/}"
                    return
                    ;;
            esac
        done
}

work=$cache/resolve-$name.tmp
fresh "$work"
trap 'remove "$work"' EXIT
export APT_CONFIG=$work/apt.conf
log=$work/log

# private_apt MIRROR: an apt with its own sources, lists and empty status. Of the
# host's configuration only what reaches the network is kept, proxies above all;
# hooks of the host have no business here.
private_apt() {
    mkdir -p "$work"/{lists/partial,archives/partial,etc/preferences.d,etc/apt.conf.d}
    : >"$work/status"
    cp "$preferences" "$work/etc/preferences.d/ringbar"
    {
        echo "deb [signed-by=$keyring] $1 trixie main"
        echo "deb [signed-by=$keyring] $1 trixie-backports main"
    } >"$work/etc/sources.list"
    {
        env -u APT_CONFIG apt-config dump |
            grep -iE '^Acquire::(https?|Check-Valid-Until|Check-Date|Max-ValidTime|Retries|ForceIPv[46]|Proxy-Auto-Detect)\b' || true
        cat <<EOF
Dir "$work/";
Dir::State "$work/";
Dir::State::lists "$work/lists/";
Dir::State::status "$work/status";
Dir::Cache "$work/";
Dir::Cache::archives "$work/archives/";
Dir::Etc "$work/etc/";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
Acquire::Retries "3";
EOF
    } >"$APT_CONFIG"
}

# read_lists MIRROR: fetches the package lists. apt-get update is content with
# lists that are missing, hence --error-on=any.
read_lists() {
    note "$name: reading the package lists of $1"
    private_apt "$1"
    apt-get update --error-on=any >"$log" 2>&1
}

mirror=${RINGBAR_MIRROR:-}
if [[ -z $mirror ]]; then
    mirror=$(host_mirror)
    mirror=${mirror:-$default_mirror}
fi
if ! read_lists "$mirror"; then
    if grep -q NO_PUBKEY "$log"; then
        die "the host's debian-archive-keyring is too old for trixie: apt-get update && $keyring_fix"
    fi
    if [[ -n ${RINGBAR_MIRROR:-} || $mirror == "$default_mirror" ]] || ! read_lists "$default_mirror"; then
        grep -E '^(E|W|Err):?' "$log" >&2 || cat "$log" >&2
        die "cannot read trixie and trixie-backports from $mirror: check the network, or name another mirror with RINGBAR_MIRROR=http://.../debian"
    fi
fi

# The kernel that linux-image-amd64 stands for today, and its series.
release=$(apt-cache show --no-all-versions linux-image-amd64 |
    sed -nE 's/^Depends:.*linux-image-([0-9][^ ]*-amd64) .*/\1/p')
[[ -n $release ]] || die "linux-image-amd64 in trixie-backports names no kernel; try another mirror with RINGBAR_MIRROR"
series=$(cut -d. -f1,2 <<<"$release")

mapfile -t wanted < <(sed -e 's/#.*//' -e "s/@RELEASE@/$release/g" -e "s/@SERIES@/$series/g" "$packages" |
    tr -s ' \t' '\n' | grep .)

apt-get install --yes --print-uris "${wanted[@]}" >"$work/plan" 2>"$log" || {
    cat "$work/plan" "$log" >&2
    die "the packages of $name do not fit together on the mirror today; try again later or another mirror with RINGBAR_MIRROR"
}

# 'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HASH
sed -nE "s/^'([^']+)' ([^_]+)_([^_]+)_[^ ]+ ([0-9]+) SHA256:([0-9a-f]{64})\$/\2 \3 \4 \5 \1/p" "$work/plan" |
    sed 's/%3a/:/' | LC_ALL=C sort >"$work/record"
[[ $(wc -l <"$work/record") -eq $(grep -c "^'" "$work/plan") ]] ||
    die "apt gave packages without a SHA256 sum; a newer apt is needed: apt-get install apt"

# A module built from one version's source does not load into another version.
version_of() {
    awk -v package="$1" '$1 == package { print $2 }' "$work/record"
}
if grep -q @RELEASE@ "$packages"; then
    image=$(version_of "linux-image-$release")
    for package in "linux-headers-$release" "linux-source-$series"; do
        [[ $(version_of "$package") == "$image" ]] ||
            die "$package is version $(version_of "$package") and the kernel image $image: the mirror is being updated, try again later"
    done
fi

mkdir -p "$(dirname "$record")"
finish "$work/record" "$record"
echo "$record"
