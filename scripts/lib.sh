# Shared by the scripts: where we are, and what a fresh machine needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

need() {
    command -v "$1" >/dev/null 2>&1 || { echo "error: $1 is missing: $2" >&2; exit 69; }
}

need cargo "install a Rust toolchain (1.95 or newer)"
need cc "install a C compiler (SQLite is compiled from source)"

# The standing data set, where it can be had; everything also works without it.
install_iso_codes() {
    [ -d /usr/share/iso-codes/json ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get install -y iso-codes || { apt-get update && apt-get install -y iso-codes; }; } >/dev/null 2>&1 \
            || echo "note: iso-codes could not be installed; a small built-in set is used" >&2
    else
        echo "note: the Debian package iso-codes is not installed; a small built-in set is used" >&2
    fi
}

# The local service is tested from Python, in an environment of its own.
install_python_venv() {
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get install -y python3 python3-venv || { apt-get update && apt-get install -y python3 python3-venv; }; } \
            >/dev/null 2>&1 && return 0
    fi
    echo "note: python3 with venv is not installed; the tests of the local service from Python will fail" >&2
}
