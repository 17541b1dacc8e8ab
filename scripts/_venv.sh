# Sourced by the scripts beside it: enters the repository's root and gives it a .venv with the package installed.
#
#   use_venv demo,dev     installs these extras, but only when pyproject.toml or constraints.txt changed since they were
#
# PYTHON names the interpreter that makes .venv; without it, the first Python >= 3.11 on the PATH does.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} $([ -n "${PYTHON:-}" ] || echo python3 python3.13 python3.12 python3.11 python); do
        if is_recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "veneer needs Python 3.11 or newer; ${PYTHON:-python3} is not. Install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

make_venv() {
    if [ -x .venv/bin/python ] && ! is_recent .venv/bin/python; then
        echo "the Python in .venv is older than 3.11. Remove .venv and run $0 again." >&2
        return 1
    fi
    if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then # absent, or left half made
        local python
        python=$(find_python)
        "$python" -m venv .venv
    fi
}

use_venv() {
    local extra wanted stale=""
    wanted=$(cat pyproject.toml constraints.txt <(pwd) | cksum)
    for extra in ${1//,/ }; do
        [ "$(cat ".venv/.installed-$extra" 2>/dev/null)" = "$wanted" ] || stale=yes
    done
    [ -n "$stale" ] || return 0
    make_venv
    echo "Installing veneer[$1] into .venv (a few minutes the first time) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]"
    for extra in ${1//,/ }; do
        echo "$wanted" >".venv/.installed-$extra"
    done
}
