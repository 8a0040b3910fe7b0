#!/usr/bin/env bash
# root.sh PROGRAM FOLDER   makes the whole file system of a program's image in FOLDER: the program as /PROGRAM-NAME, the
# libraries that it loads, certificates of public authorities, a user without rights. Containerfile and the tests' images
# are made by this one script, so what is tested is what is shipped.
set -euo pipefail
program=$(readlink -f "$1")
folder=$2
name=$(basename "$program")
[[ -x $program ]] || { echo "error: $program is no program; build it first" >&2; exit 66; }

mkdir -p "$folder"/{etc/ssl/certs,tmp,dev,proc,sys}
install -m 755 "$program" "$folder/$name"
programs=("$program")
# the retriever starts FAISS in a process of its own
if [[ $name == s3-retriever ]]; then
    faiss=$(dirname "$program")/s3-faiss
    [[ -x $faiss ]] || { echo "error: $faiss is no program; build it first" >&2; exit 66; }
    install -m 755 "$faiss" "$folder/s3-faiss"
    programs+=("$faiss")
fi

# libraries at the paths where the loader of the build machine found them, the loader itself included
for each in "${programs[@]}"; do ldd "$each"; done | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p' | sort -u | while read -r library; do
    mkdir -p "$folder$(dirname "$library")"
    install -m 755 "$(readlink -f "$library")" "$folder$library"
done

authorities=/etc/ssl/certs/ca-certificates.crt
[[ -s $authorities ]] || { echo "error: no $authorities; install ca-certificates" >&2; exit 69; }
install -m 644 "$authorities" "$folder$authorities"

echo 'nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin' >"$folder/etc/passwd"
echo 'nonroot:x:65532:' >"$folder/etc/group"
echo 'hosts: files dns' >"$folder/etc/nsswitch.conf"
chmod 1777 "$folder/tmp"
