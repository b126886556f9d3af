#!/usr/bin/env bash
# Checks the files of the stack as far as they can be checked without a container engine; compose/README.md says what that leaves out.
# Installs what a fresh machine lacks (docker-compose, promtool, kubectl from Debian; two Python packages from PyPI into the cache).
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON_PACKAGES=(kubernetes==34.1.0 PyYAML==6.0.3)

missing=()
for pair in docker-compose:docker-compose promtool:prometheus kubectl:kubernetes-client; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "stack: installing ${missing[*]}" >&2
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi
packages="$HOME/.cache/freshet/stack-python"
if [ "$(cat "$packages/wanted" 2>/dev/null)" != "${PYTHON_PACKAGES[*]}" ]; then
    echo "stack: fetching ${PYTHON_PACKAGES[*]}" >&2
    rm -rf "$packages"
    python3 -m pip install -q --disable-pip-version-check --target "$packages" "${PYTHON_PACKAGES[@]}" >&2
    echo "${PYTHON_PACKAGES[*]}" >"$packages/wanted"
fi

promtool check config monitoring/prometheus/prometheus.yml
promtool check rules monitoring/prometheus/freshet.rules.yml
promtool test rules monitoring/prometheus/freshet.rules.test.yml
for script in compose/*/*.sh tests/stack/*.sh; do
    if head -n1 "$script" | grep -q bash; then bash -n "$script"; else sh -n "$script"; fi
done
PYTHONPATH="$packages" python3 -B tests/stack/check.py
