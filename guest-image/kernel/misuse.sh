#!/bin/bash
# Checks that the programs in driver/misuse do not compile, and that the compiler
# gives the reasons that they name.
#
# Usage:   misuse.sh
# Inputs:  driver/, as kbuild.sh. A line of driver/misuse that is an error ends with
#          //~ and a part of the message.
# Output:  what differs. Everything that is generated, in build/misuse.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=../toolbox/lib.sh
. "$here/../toolbox/lib.sh"
cd "$checkout"

output=build/misuse
log=build/misuse.log
# Were it there, there would be nothing to compile.
rm -f "$output/ringbar_main.o"
if "$here/kbuild.sh" stock "$output" KRUSTFLAGS='--cfg=ringbar_misuse --error-format=short' \
    ringbar_main.o >"$log" 2>&1; then
    die 'misuse.sh: the programs in driver/misuse compile'
fi

# With the short format an error is one line: file, line, column, code, message.
awk '
    function complain(text) { print text; failed = 1 }
    FILENAME != log_file {
        if ((at = index($0, "//~ ")) > 0) wanted[FILENAME ":" FNR] = substr($0, at + 4)
        next
    }
    match($0, /driver\/misuse\/[^:]*:[0-9]+:/) && /: error(\[E[0-9]+\])?: / {
        place = substr($0, RSTART, RLENGTH - 1)
        if (!(place in wanted)) complain("not expected: " $0)
        else if (index($0, wanted[place]) == 0) complain("expected \"" wanted[place] "\": " $0)
        found[place] = 1
        next
    }
    /^error: aborting due to / { next }
    # Before the driver itself compiles, nothing is said about its misuse.
    /^error|: error(\[E[0-9]+\])?: / { complain("not expected: " $0) }
    END {
        for (place in wanted) {
            count++
            if (!(place in found)) complain(place ": compiles, expected \"" wanted[place] "\"")
        }
        if (!count) complain("there is nothing to check")
        exit failed
    }
' log_file="$log" driver/misuse/*.rs "$log" >&2 ||
    die "misuse.sh: driver/misuse does not fail as it should, see $log"
