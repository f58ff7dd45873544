# shellcheck shell=bash
# Lines of the description that the kernel's gen_init_cpio turns into an
# archive; it needs neither privilege nor a tree with the right owners. Sourced.

# guest_file TARGET SOURCE: a program or other file.
guest_file() {
    echo "file $1 $2 0755 0 0"
}

# guest_tree SOURCE TARGET: every file below the folder SOURCE, below TARGET.
guest_tree() {
    find "$1" -type f -printf "file $2/%P $1/%P 0644 0 0\n" | LC_ALL=C sort
}

# guest_folders: puts in front of the lines on stdin the folders that they need.
guest_folders() {
    awk '
        { lines[NR] = $0; made[$2] = 1 }
        {
            path = $2
            while (sub("/[^/]*$", "", path) && path != "") wanted[path] = 1
        }
        END {
            for (path in wanted) if (!(path in made)) print "dir " path " 0755 0 0" | "LC_ALL=C sort"
            close("LC_ALL=C sort")
            for (i = 1; i <= NR; i++) if (lines[i] ~ /^dir/) print lines[i]
            for (i = 1; i <= NR; i++) if (lines[i] !~ /^dir/) print lines[i]
        }'
}
