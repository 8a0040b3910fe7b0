#!/usr/bin/env bash
# images.sh FOLDER BINARIES   an archive for each program of images/programs, from programs built in BINARIES
# (target/debug), as FOLDER/PROGRAM.tar with the name s3/PROGRAM:TAG; S3_IMAGE_TAG (test). No container engine is needed.
# What did not change is not written again.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
(($# == 2)) || die "usage: images.sh FOLDER BINARIES"
output=$1 binaries=$2 tag=${S3_IMAGE_TAG:-test}
mkdir -p "$output"
work=$(mktemp -d "$output/make.XXXXXX")
trap 'rm -rf "$work"' EXIT
while read -r program; do
    [[ -x $binaries/$program ]] || die "$binaries/$program is not built; run cargo build --workspace --bins"
    archive=$output/$program-$tag.tar
    [[ ! $archive -nt $binaries/$program ]] || continue
    # symbols of a test build are half of it, and copied for every container
    cp "$binaries/$program" "$work/$program"
    strip "$work/$program"
    # which it starts from beside itself
    if [[ $program == s3-retriever ]]; then
        cp "$binaries/s3-faiss" "$work/s3-faiss"
        strip "$work/s3-faiss"
    fi
    "$repository/images/root.sh" "$work/$program" "$work/root"
    "$repository/images/archive.py" "$work/root" "s3/$program:$tag" "/$program" "$archive"
    say "image s3/$program:$tag, $(($(stat -c %s "$archive") / 1000000)) MB"
    rm -rf "$work/root" "$work/$program"
done <"$repository/images/programs"
