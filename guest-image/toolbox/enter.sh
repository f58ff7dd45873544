#!/bin/bash
# Runs a command inside a root made by root.sh.
#
# Usage:   enter.sh ROOT [--bind SOURCE:TARGET]... [--network] -- COMMAND [ARGUMENT...]
#          enter.sh --check (whether this host lets us)
# Inputs:  RINGBAR_BIND, more host paths to show, separated by colons.
#
# Inside, the host's /dev, /proc, /sys and /tmp, its other top-level folders
# (/home, /root, /srv, ...), /var/tmp, the checkout, the cache and the current
# folder are found at their own paths, SOURCE at TARGET; what else is in /usr,
# /etc and /var is the root's. The current folder is the root's too where that has
# one of the same name with something in it: / and /usr, for example. The mounts
# are seen by this command alone.
# --network adds the host's name resolution and certificates.
#
# Nothing forks: the command takes over this process, with its id and signals.
set -euo pipefail

# Programs are to say the same in every country, here and inside.
export LC_ALL=C.UTF-8
unset LANGUAGE

# An ordinary user's PATH often lacks the folders with chroot and the like.
PATH=$PATH:/usr/sbin:/sbin
here=$(dirname "$(readlink -f "$0")")

# Second stage, inside the namespace.
if [[ ${1:-} == --inside ]]; then
    shift
    root=$1
    shift

    # show SOURCE TARGET: puts a host path at TARGET in the root.
    show() {
        if [[ -d $1 ]]; then
            [[ -d $root$2 ]] || mkdir -p "$root$2"
        elif [[ ! -e $root$2 ]]; then
            mkdir -p "$(dirname "$root$2")"
            : >"$root$2"
        fi
        mount --rbind "$1" "$root$2"
    }

    # Some are not there for everybody (a folder of another user's FUSE, say), and
    # nothing is lost as long as the ones that follow can be shown.
    for folder in /*; do
        case $folder in
            /bin | /sbin | /lib* | /usr | /etc | /var | /boot | /lost+found) continue ;;
        esac
        if [[ -d $folder && ! -L $folder ]]; then
            show "$folder" "$folder" 2>/dev/null || true
        fi
    done
    while [[ $1 != -- ]]; do
        case $1 in
            --show) show "$2" "$3" && shift 3 ;;
            *) exit 125 ;;
        esac
    done
    shift

    # A clean environment, less what is meant for the command.
    environment=(PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="${HOME:-/root}" LC_ALL=C.UTF-8)
    for variable in $(compgen -e); do
        case $variable in
            TERM | COLUMNS | LINES | TMPDIR | *_proxy | *_PROXY | SSL_CERT_FILE | SSL_CERT_DIR) ;;
            CARGO_* | RUST_BACKTRACE | RUST_LOG | PROPTEST_* | RINGBAR_*) ;;
            *) continue ;;
        esac
        environment+=("$variable=${!variable}")
    done
    exec chroot "$root" /usr/bin/env -i --chdir="$PWD" "${environment[@]}" "$@"
fi

# Root needs no user namespace, but a root in a container may be allowed nothing
# else; everybody else needs one. Which works is found by making a mount.
plain=(--mount)
mapped=(--map-root-user --mount)
works() {
    problem=$(unshare "$@" -- mount --bind "$here" "$here" 2>&1)
}
if [[ $(id -u) == 0 ]] && works "${plain[@]}"; then
    namespace=("${plain[@]}")
elif works "${mapped[@]}"; then
    namespace=("${mapped[@]}")
else
    restricted=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
    if [[ -e $restricted && $(cat "$restricted") != 0 ]]; then
        fix='sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run it as root'
    elif [[ -e /.dockerenv || -e /run/.containerenv ]]; then
        fix='start the container with --privileged'
    elif [[ $(id -u) == 0 ]]; then
        fix='run it outside this container or chroot'
    else
        fix='sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000, or run it as root'
    fi
    echo "ringbar: no mount namespace can be made here (${problem%%$'\n'*}): $fix" >&2
    exit 125
fi
[[ $1 != --check ]] || exit 0

root=$1
shift
shows=()
add() {
    shows+=(--show "$1" "$2")
}

# add_folder FOLDER: the host's, unless that would hide something of the root's. What
# commands before have mounted on is not the root's: folders and empty files.
add_folder() {
    [[ -n $(find "$root$1" ! -type d ! -size 0 -print -quit 2>/dev/null) ]] || add "$1" "$1"
}

network() {
    local path
    for path in /etc/resolv.conf /etc/hosts; do
        [[ ! -e $path ]] || add "$(readlink -f "$path")" "$path"
    done
    # A host without certificates does not hide those that the root has.
    [[ ! -e /etc/ssl/certs/ca-certificates.crt ]] || add /etc/ssl/certs /etc/ssl/certs
    # Certificates elsewhere, as the variables that programs heed name them.
    for path in "${SSL_CERT_FILE:-}" "${SSL_CERT_DIR:-}" "${CARGO_HTTP_CAINFO:-}"; do
        case $path in
            /etc/ssl/certs/* | /etc/ssl/certs) ;;
            /*) [[ ! -e $path ]] || add "$path" "$path" ;;
        esac
    done
}

checkout=$(dirname "$(dirname "$here")")
add "$checkout" "$checkout"
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/ringbar
[[ ! -d $cache ]] || add "$cache" "$cache"
add_folder "$PWD"
[[ ! -d /var/tmp ]] || add /var/tmp /var/tmp
[[ ! -d ${TMPDIR:-} ]] || add_folder "$TMPDIR"
IFS=: read -r -a more <<<"${RINGBAR_BIND:-}"
for path in "${more[@]}"; do
    add "$path" "$path"
done
while [[ $1 != -- ]]; do
    case $1 in
        --bind)
            add "${2%%:*}" "${2#*:}"
            shift 2
            ;;
        --network)
            network
            shift
            ;;
        *)
            echo "enter.sh: unknown option $1" >&2
            exit 125
            ;;
    esac
done
shift

exec unshare "${namespace[@]}" -- "$0" --inside "$root" "${shows[@]}" -- "$@"
