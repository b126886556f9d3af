#!/usr/bin/env bash
# Clippy over the program and its tests, with warnings as errors. It looks at them on the dependencies as they are built for running, which
# `cargo clippy` would check once more first: twenty minutes on a fresh machine. What it builds on the way is not optimised, and not run.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/freshet/target}"
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__
cargo test --release --locked --no-run --lib --bins --test it --test s3 --config profile.release.package.freshet.opt-level=0
