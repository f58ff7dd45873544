#!/bin/bash
# Has git run the checks before each commit.
#
# Usage:   hooks.sh
# Output:  the hook pre-commit of this checkout, and of those that share its repository. One that
#          somebody else made is left alone. `git commit --no-verify` commits without it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=toolbox/lib.sh
. "$here/toolbox/lib.sh"

# shellcheck disable=SC2016  # A name in Markdown.
mark='# Made by `make hooks` of Ringbar.'
cd "$checkout"
# Such a folder may belong to all repositories of the user, or to another program.
if folder=$(git config --get core.hooksPath); then
    die "core.hooksPath of git is $folder: add the line 'make check' to pre-commit there, or unset it"
fi
hook=$(git rev-parse --git-path hooks)/pre-commit
[[ ! -e $hook ]] || grep -qxF "$mark" "$hook" ||
    die "$hook exists: add the line 'make check' to it"
mkdir -p "$(dirname "$hook")"
cat >"$hook" <<END
#!/bin/sh
$mark
# git sets variables that would lead the checks to the index of this commit only.
unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_PREFIX
# A commit from before the checks has none.
[ -e guest-image/check.sh ] || exit 0
exec make --no-print-directory check
END
chmod +x "$hook"
note "$hook: make check before each commit"
