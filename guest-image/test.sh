#!/bin/bash
# Tests the set-up scripts.
#
# Usage:   test.sh
# Inputs:  the toolbox, which set-up has made; nothing is downloaded.
# Output:  a line for each test and, last, how many passed and failed.
#
# Programs that the scripts run are replaced by others in front of PATH, each in a
# folder of the test. A test is a function; what fails in it ends it.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
root=$("$here/toolbox/root.sh" toolbox) || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# fake NAME: a program of this name, its text on stdin.
fake() {
    mkdir -p bin
    cat >"bin/$1"
    chmod +x "bin/$1"
}

# expect WHAT FOUND EXPECTED
expect() {
    [[ $2 == "$3" ]] || {
        echo "$1: '$2' instead of '$3'" >&2
        exit 1
    }
}

# packages FILE...: makes them, and a record of them.
packages() {
    local file
    mkdir -p mirror
    for file; do
        echo "this is $file" >"mirror/$file"
        echo "${file%.deb} 1 20 $(sha256sum <"mirror/$file" | cut -d' ' -f1) http://mirror/$file"
    done >record
}

# download: of the record, in a German environment.
download() {
    LC_ALL=de_DE.UTF-8 LANGUAGE=de PATH=$PWD/bin:$PATH "$here/toolbox/download.sh" test "$PWD/record" "$PWD/folder"
}

# fake_apt_helper: speaks German whatever it is told, notes what it was asked for.
fake_apt_helper() {
    fake apt-helper <<EOF
#!/bin/bash
echo "\$LC_ALL \${LANGUAGE-unset}" >>$PWD/languages
while [[ \$1 != http* ]]; do shift; done
while ((\$#)); do
    echo "\${1##*/}" >>$PWD/asked
    cp "$PWD/mirror/\${1##*/}" "\$2"
    echo "Holen:1 \$1 [20 B]"
    shift 3
done
echo 'Es wurden 60 B in 0 s geholt.'
EOF
}

ho1_downloads_do_not_depend_on_the_language() {
    packages a.deb b.deb c.deb
    fake_apt_helper
    download || exit
    expect 'asked for' "$(paste -sd ' ' asked)" 'a.deb b.deb c.deb'
    expect 'the language of apt-helper' "$(cat languages)" 'C.UTF-8 unset'
    for file in a.deb b.deb c.deb; do
        cmp "mirror/$file" "folder/$file" || exit
    done
}

ho1_what_is_there_is_not_downloaded_again() {
    packages a.deb b.deb c.deb
    fake_apt_helper
    # Not even where sha256sum says everything in German.
    fake sha256sum <<EOF
#!/bin/bash
$(command -v sha256sum) "\$@" | sed 's/: OK\$/: GUT/'
exit "\${PIPESTATUS[0]}"
EOF
    download || exit
    rm asked
    download || exit
    expect 'asked for again' "$(cat asked 2>/dev/null)" ''
    echo other >folder/b.deb
    rm folder/c.deb
    download || exit
    expect 'asked for' "$(paste -sd ' ' asked)" 'b.deb c.deb'
}

a_wrong_or_missing_package_is_an_error() {
    packages a.deb b.deb
    fake_apt_helper
    echo 'something else' >mirror/b.deb
    ! download || exit
    fake apt-helper <<<$'#!/bin/bash\nexit 100'
    rm -r folder
    ! download
}

ho1_the_language_within_a_root_is_fixed() {
    local found
    # shellcheck disable=SC2016  # The inner shell expands these.
    found=$(LC_ALL=de_DE.UTF-8 LANG=de_DE.UTF-8 LANGUAGE=de "$here/toolbox/enter.sh" "$root" -- \
        sh -c 'echo "$LC_ALL ${LANG-unset} ${LANGUAGE-unset}"') || exit
    expect 'LC_ALL, LANG, LANGUAGE' "$found" 'C.UTF-8 unset unset'
}

ho1_every_script_fixes_the_language() {
    local script
    for script in "$here"/*.sh "$here"/*/*.sh "$here"/../ci/*/*/*.sh; do
        # shellcheck disable=SC2016  # A pattern.
        case ${script##*/} in
            lib.sh | enter.sh) grep -q '^export LC_ALL=C.UTF-8$' "$script" && grep -q '^unset LANGUAGE$' "$script" ;;
            guest-files.sh | test.sh) ;;
            *) grep -qE '^\. "\$here/([a-z./-]+/)?lib\.sh"$' "$script" ;;
        esac || {
            echo "${script##*/} does not" >&2
            exit 1
        }
    done
}

ho12_a_root_is_entered_from_every_folder() {
    local folder found
    mkdir sub
    for folder in / /usr /usr/bin /etc /var /var/tmp /boot /lib /proc /tmp /home "$here" "$PWD" "$PWD/sub"; do
        [[ -d $folder ]] || continue
        found=$(cd "$folder" && "$here/toolbox/enter.sh" "$root" -- stat -Lc %d:%i /usr/bin/env /etc/passwd) || exit
        expect "the files seen from $folder" "$found" "$(stat -Lc %d:%i "$root/usr/bin/env" "$root/etc/passwd")"
        found=$(cd "$folder" && "$here/toolbox/enter.sh" "$root" -- pwd) || exit
        expect "the current folder, from $folder" "$found" "$(cd "$folder" && pwd -P)"
    done
    # Relative paths work where the folder is the host's.
    echo here >sub/file
    found=$(cd sub && "$here/toolbox/enter.sh" "$root" -- cat file) || exit
    expect 'a file in the current folder' "$found" here
}

what_is_finished_is_on_the_disk() {
    fake sync <<<$'#!/bin/bash\necho "sync $*" >>calls'
    fake mv <<<$'#!/bin/bash\necho "mv $*" >>calls'
    # shellcheck disable=SC2030,SC2031  # This PATH is for the subshell.
    # shellcheck source-path=SCRIPTDIR source=toolbox/lib.sh
    (PATH=$PWD/bin:$PATH && . "$here/toolbox/lib.sh" && finish new final) || exit
    expect 'what was called' "$(paste -sd ';' calls)" 'sync -f new;mv -T -- new final'
    fake sync <<<$'#!/bin/bash\nexit 1'
    rm calls
    # shellcheck disable=SC2030,SC2031  # This PATH is for the subshell.
    # shellcheck source-path=SCRIPTDIR source=toolbox/lib.sh
    ! (PATH=$PWD/bin:$PATH && . "$here/toolbox/lib.sh" && finish new final) || exit
    expect 'what was called after a failure' "$(cat calls 2>/dev/null)" ''
}

only_finish_names_what_is_complete() {
    # shellcheck disable=SC2016  # A pattern.
    ! grep -nE '^ *mv .*"\$(root|kernel|base|record)"' \
        "$here"/{toolbox/{root,resolve},kernel/{kernel,debug-kernel},rootfs/guest-base}.sh
}

# repository: a checkout of its own in the folder checkout, with the scripts of the hook, and a git
# without settings of the user.
repository() {
    mkdir -p checkout/guest-image/toolbox
    cp "$here/hooks.sh" checkout/guest-image
    cp "$here/toolbox/lib.sh" checkout/guest-image/toolbox
    export GIT_CONFIG_GLOBAL=$PWD/gitconfig GIT_CONFIG_SYSTEM=/dev/null
    unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_PREFIX
    : >gitconfig
    git init --quiet checkout
}

the_hook_runs_the_checks_where_there_are_some() {
    command -v git >/dev/null || return 0 # No git, no hooks.
    repository
    checkout/guest-image/hooks.sh || exit
    # Again, which replaces its own.
    checkout/guest-image/hooks.sh || exit
    fake make <<<$'#!/bin/sh\necho "$*" >>calls'
    commit() {
        # shellcheck disable=SC2031  # That PATH was for the subshell.
        PATH=$PWD/bin:$PATH git -C checkout -c user.name=a -c user.email=a commit --quiet --allow-empty -m a
    }
    commit || exit
    expect 'what an old commit runs' "$(cat checkout/calls 2>/dev/null)" ''
    : >checkout/guest-image/check.sh
    commit || exit
    expect 'what the hook runs' "$(cat checkout/calls)" '--no-print-directory check'
}

the_hook_is_not_put_where_it_is_not_ours() {
    local output
    command -v git >/dev/null || return 0 # No git, no hooks.
    repository
    git config --global core.hooksPath "$PWD/hooks"
    ! output=$(checkout/guest-image/hooks.sh 2>&1) || exit
    [[ $output == *"core.hooksPath of git is $PWD/hooks: "* ]] || exit
    [[ ! -e hooks ]] || exit
    : >gitconfig
    echo other >checkout/.git/hooks/pre-commit
    ! checkout/guest-image/hooks.sh || exit
    expect 'the hook' "$(cat checkout/.git/hooks/pre-commit)" other
}

# programs: a checkout of its own whose Rust is the host's or that of a root, and whose cargo
# installs a program p that shows how it is run.
programs() {
    mkdir -p checkout/guest-image/toolbox
    cp "$here"/toolbox/{lib,program}.sh checkout/guest-image/toolbox
    fake rust.sh <<<$'#!/bin/bash\n[[ $RINGBAR_RUST == host ]] && echo || echo /root-with-rust'
    fake enter.sh <<<$'#!/bin/bash\necho "enter $1"\nwhile [[ $1 != -- ]]; do shift; done\nshift\nexec "$@"'
    fake cargo.sh <<'EOF'
#!/bin/bash
echo "$RINGBAR_RUST" >>"$XDG_CACHE_HOME/builds"
while [[ $1 != --root ]]; do shift; done
mkdir -p "$2/bin" "$2/target"
printf '#!/bin/bash\necho "%s: $PWD $*"\n' "$RINGBAR_RUST" >"$2/bin/p"
chmod +x "$2/bin/p"
EOF
    mv bin/* checkout/guest-image/toolbox
}

a_program_runs_where_its_rust_is() {
    local found rust
    programs
    mkdir cache
    for rust in host toolbox host toolbox; do
        found=$(XDG_CACHE_HOME=$PWD/cache RINGBAR_RUST=$rust checkout/guest-image/toolbox/program.sh a 1.2 p x y) || exit
        [[ $rust == host ]] || expect 'the root' "${found%%$'\n'*}" 'enter /root-with-rust'
        expect "the program of $rust" "${found##*$'\n'}" "$rust: $PWD x y"
    done
    expect 'what was built' "$(paste -sd ' ' cache/builds)" 'host toolbox'
}

tests=(
    ho1_downloads_do_not_depend_on_the_language
    ho1_what_is_there_is_not_downloaded_again
    a_wrong_or_missing_package_is_an_error
    ho1_the_language_within_a_root_is_fixed
    ho1_every_script_fixes_the_language
    ho12_a_root_is_entered_from_every_folder
    what_is_finished_is_on_the_disk
    only_finish_names_what_is_complete
    the_hook_runs_the_checks_where_there_are_some
    the_hook_is_not_put_where_it_is_not_ours
    a_program_runs_where_its_rust_is
)
passed=0
failed=0
for test in "${tests[@]}"; do
    mkdir "$scratch/$test"
    if (cd "$scratch/$test" && "$test") >"$scratch/output" 2>&1; then
        echo "test $test ... ok"
        passed=$((passed + 1))
    else
        echo "test $test ... FAILED"
        cat "$scratch/output"
        failed=$((failed + 1))
    fi
done
if ((failed)); then
    echo "test result: FAILED. $passed passed; $failed failed"
    exit 1
fi
echo "test result: ok. $passed passed; $failed failed"
