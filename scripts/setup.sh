#!/usr/bin/env bash
# Makes .venv with everything acdc needs; `make` calls it when a lock file, pyproject.toml or this script has changed.
# PYTHON=python3.12 picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
log=$venv/setup.log
needed_gb=9 # 6.5 of packages; 1.1 of wheels while they are unpacked, and again in pip's cache
# An activated .venv must not be the Python that .venv is made anew from.
PATH=${PATH//"$PWD/$venv/bin:"/}

say() { printf '  %-8s  %s\n' "$1" "$2"; }

since() { printf '%d:%02d min' $(((SECONDS - $1) / 60)) $(((SECONDS - $1) % 60)); }

fail() {
    printf '\nSet-up failed: %s\n' "$1" >&2
    exit 1
}

# Runs a command with its output in the log.
logged() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null
}

# What in the log explains the failure, for the reader who does not want to read pip.
cause() {
    if grep -q 'No space left on device' "$log"; then
        echo 'the disk is full'
    elif grep -qE 'name resolution|Network is unreachable|Connection (refused|timed out|reset)|Max retries' "$log"; then
        echo 'the package index could not be reached'
    elif grep -q 'No matching distribution found' "$log"; then
        grep -m 1 -o 'No matching distribution found.*' "$log"
    else
        echo 'see above'
    fi
}

fail_with_log() {
    printf '\nThe last lines of %s:\n' "$log" >&2
    grep -v '^Requirement already satisfied' "$log" | tail -n 12 | sed 's/^/    /' >&2
    fail "$1: $(cause)"
}

# --- Python -------------------------------------------------------------------------------------

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# The machine's own python3 goes first: its headers and venv module are the likeliest to be at hand.
find_python() {
    local candidates=(python3 python3.13 python3.12 python3.11) candidate
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "acdc needs Python 3.11, 3.12 or 3.13; tried ${candidates[*]}.
Install one (sudo apt-get install python3 python3-venv python3-dev), or name one: make PYTHON=/path/to/python3.12"
}

# Is there a .venv from an earlier set-up, and of the Python that is asked for?
has_usable_venv() {
    is_supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    [[ -z ${PYTHON:-} || $(version_of "$venv/bin/python") == $(version_of "$PYTHON" 2>/dev/null) ]]
}

# --- System packages ----------------------------------------------------------------------------

# Debian's own Python comes without its venv module and its headers.
has_venv_module() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() { [[ -e $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]; }

missing_for_ffcv() {
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    command -v pkg-config >/dev/null || echo pkg-config
    command -v g++ >/dev/null || echo g++
    has_headers || echo "python$(version_of "$python")-dev"
}

missing_packages() {
    has_venv_module || echo "python$(version_of "$python")-venv"
    missing_for_ffcv
}

may_install() {
    command -v apt-get >/dev/null && { [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; }
}

apt_get() {
    local command=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@")
    [[ $(id -u) == 0 ]] || command=(sudo -n "${command[@]}")
    logged "${command[@]}"
}

install_system_packages() {
    local missing started=$SECONDS
    mapfile -t missing < <(missing_packages)
    if [[ ${#missing[@]} == 0 ]]; then
        return
    elif ! may_install; then
        say system "missing, and this user may not install them: ${missing[*]}"
        return
    fi
    say system "installing ${missing[*]} (1 to 3 minutes) …"
    # One unreachable mirror fails the update; what the lists already name can still be installed.
    apt_get update || true
    if apt_get install --no-install-recommends "${missing[@]}"; then
        say '' "done in $(since "$started")"
    else
        say '' "apt-get failed: $log says why"
    fi
}

# --- Packages -----------------------------------------------------------------------------------

pip_install() {
    # Wheels are unpacked beside .venv: /tmp is often too small for PyTorch's.
    mkdir -p "$venv/tmp"
    TMPDIR=$PWD/$venv/tmp logged "$venv/bin/python" -m pip install \
        --no-input --progress-bar off --disable-pip-version-check "$@"
}

check_disk() {
    local free_gb
    free_gb=$(($(df -Pk "$venv" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    if ((free_gb < needed_gb)); then
        fail "the packages need $needed_gb GB of disk space, and $PWD has $free_gb GB free"
    fi
}

make_venv() {
    has_venv_module || fail "$python has no venv module.
Install it (sudo apt-get install python$(version_of "$python")-venv) and run make again."
    logged "$python" -m venv "$venv" || fail_with_log "making $venv"
}

install_packages() {
    local started=$SECONDS
    if ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
        check_disk
        say packages 'installing PyTorch and the rest (about 2 minutes, 6 GB) …'
    else
        say packages 'bringing up to date …'
    fi
    pip_install -r requirements.lock || fail_with_log 'installing the packages'
    say '' "done in $(since "$started")"
}

install_ffcv() {
    local missing started=$SECONDS
    mapfile -t missing < <(missing_for_ffcv)
    if [[ ${#missing[@]} != 0 ]]; then
        say ffcv "left out: images are loaded by torchvision, more slowly. To have it:"
        say '' "sudo apt-get install ${missing[*]} && make setup"
        return
    fi
    say ffcv 'building and trying it (up to a minute) …'
    # Without isolation, so that the locked setuptools builds it; constrained, so that it moves no other package.
    if pip_install --no-build-isolation -r requirements-ffcv.lock -c requirements.lock &&
        logged "$venv/bin/python" -c 'import ffcv'; then
        say '' "done in $(since "$started")"
    else
        say '' "FAILED: $(tail -n 1 "$log" | cut -c 1-100)"
        say '' "($log has the rest); images are loaded by torchvision, more slowly"
    fi
}

install_acdc() {
    pip_install --no-deps --no-build-isolation --editable . || fail_with_log 'installing acdc'
}

echo "Setting up acdc in $venv (once; details in $log)"
if has_usable_venv; then
    python=$venv/bin/python
else
    python=$(find_python)
    rm -rf "$venv"
    mkdir "$venv"
fi
: >"$log"
say python "$(version_of "$python") ($python)"
install_system_packages
[[ -e $venv/bin/python ]] || make_venv
install_packages
install_ffcv
install_acdc
rm -rf "$venv/tmp"
touch "$venv/.ready"
echo "Ready after $(since 0)."
