#!/bin/sh
# Makes .venv where it is missing and installs seguq into it; does nothing where that was done before.
#   sh scripts/install.sh check      prints one sentence if something is missing on this machine
#   sh scripts/install.sh demo|dev|bench   installs what the demo, the tests and linters, or the benchmarks need
#   sh scripts/install.sh lowest     makes .venv-lowest with the lowest versions that pyproject.toml allows
#   sh scripts/install.sh peers      makes .venv-peers with the libraries that benchmarks compare with
set -u
cd "$(dirname "$0")/.." || exit 1
venv=.venv

good_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        good_python "$PYTHON" && echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if good_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

usable_venv() {
    [ -x "$venv/bin/python" ] && good_python "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

check() {
    usable_venv && return
    python=$(find_python)
    if [ -z "$python" ] && [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is no Python 3.10 or later"
    elif [ -z "$python" ]; then
        echo "Python 3.10 or later is missing: install it, or name it as in: make demo PYTHON=/path/to/python3"
    elif ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        echo "the venv module of $python is missing: install it (on Debian and Ubuntu: apt install python3-venv)"
    fi
}

pip_install() {
    python=$venv/bin/python
    if [ "$1" = lowest ]; then # pip itself cannot choose the lowest
        "$python" -m pip install --disable-pip-version-check --progress-bar off uv &&
            "$python" -m uv pip install --python "$python" --resolution lowest-direct -e "$2"
    else
        "$python" -m pip install --disable-pip-version-check --progress-bar off -e "$2"
    fi
}

install() {
    if ! usable_venv; then
        echo "making the virtual environment $venv"
        "$(find_python)" -m venv --clear "$venv" || return 1
    fi
    case $1 in
        dev | lowest) what='.[dev]' ;;
        bench) what='.[dev,bench]' ;;
        peers) what='.[peers,bench]' ;;
        *) what='.' ;;
    esac
    # what is installed depends on pyproject.toml and on where the project lies
    state=$({ cat pyproject.toml; pwd; } | cksum)
    case $1 in # each of these has what the ones before it have
        demo) enough='demo dev bench' ;;
        dev) enough='dev bench' ;;
        *) enough=$1 ;;
    esac
    for kind in $enough; do
        stamp=$venv/.seguq-$kind
        [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && return 0
    done
    echo "installing seguq and what it needs into $venv: some minutes and about 6 GB the first time"
    if ! pip_install "$1" "$what" >"$venv/install.log" 2>&1; then
        tail -n 5 "$venv/install.log" >&2
        echo "the installation failed; if it is not clear why, all that pip said is in $venv/install.log" >&2
        return 1
    fi
    echo "$state" >"$venv/.seguq-$1"
}

case ${1:-} in
    check) check ;;
    demo | dev | bench) install "$1" ;;
    lowest | peers)
        venv=.venv-$1
        install "$1"
        ;;
    *)
        echo "usage: sh scripts/install.sh check|demo|dev|bench|lowest|peers" >&2
        exit 2
        ;;
esac
