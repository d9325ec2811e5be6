#!/bin/sh
# Install Chromium, which Playwright drives, from the system's packages if it is missing.
set -e
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
    echo "browser: the browser tests need Chromium, which this script cannot install without" \
        "apt-get and root rights. Install it so that \`chromium\` is on PATH" >&2
    exit 1
fi
echo "browser: installing Chromium with apt-get"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null
