#!/usr/bin/env bash
# tuned.sh   builds the gateway for images: compiled once more with a profile of what it does under load (a tenth less CPU a
# request). Prints the path of the program, target/tuned/s3-generator-gateway.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
host=$(rustc -vV | sed -n 's/^host: //p')
merge=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [[ ! -x $merge ]]; then
    command -v rustup >/dev/null || { echo "error: no llvm-profdata of this rustc; install its component llvm-tools" >&2; exit 69; }
    rustup component add llvm-tools >&2
fi
tuned=$PWD/target/tuned
mkdir -p "$tuned"
# Flags for all but the built-in engine, which the load does not use and the profile would call cold; and for nothing that
# only the build runs, which cargo compiles for no --target.
cat >"$tuned/rustc" <<'WRAPPER'
#!/usr/bin/env bash
case " $* " in
*" --crate-name s3_model "* | *" --crate-name candle_"* | *" --crate-name gemm"* | *" --crate-name rayon"* | *" --crate-name tokenizers "*) exec "$@" ;;
*" --target "*) exec "$@" "$TUNED_FLAG" ;;
*) exec "$@" ;;
esac
WRAPPER
chmod +x "$tuned/rustc"
build() {
    TUNED_FLAG=$1 RUSTC_WRAPPER=$tuned/rustc cargo build --release --locked -q --target "$host" --target-dir "$tuned/$2" \
        -p s3-generator-gateway --bin s3-generator-gateway
}

echo "tuned: the program that counts what it does" >&2
rm -rf "$tuned/counts"
build "-Cprofile-generate=$tuned/counts" counting
cargo build --release --locked -q -p s3-generator-gateway --example gateway-cpu
echo "tuned: a minute of load" >&2
S3_GATEWAY=$tuned/counting/$host/release/s3-generator-gateway target/release/examples/gateway-cpu alone >&2
"$merge" merge --sparse -o "$tuned/profile" "$tuned/counts"
echo "tuned: the program again, with the profile" >&2
build "-Cprofile-use=$tuned/profile" "with-profile"
cp "$tuned/with-profile/$host/release/s3-generator-gateway" "$tuned/"
echo "$tuned/s3-generator-gateway"
