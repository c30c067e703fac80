#!/usr/bin/env bash
# Set up edge-agent on this machine.
#
#   ./install.sh --demo    make .venv, install, and watch people be recognised on a rendered street
#   ./install.sh --test    install what the tests need as well, and run them
#
# Safe to run again: what is there is kept, and a second run needs no network. Nothing outside this folder is
# touched, but for Debian packages, where the machine lets us install them (root, or sudo without a password).
set -Eeuo pipefail

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

action=
python=
venv=.venv
with_train=
step='reading the options'

# What the tests run for real: a broker and its clients, an RTSP server, an OpenCV with GStreamer as on a
# Jetson, and the check of this script.
readonly test_packages=(
  mosquitto mosquitto-clients jq openssl shellcheck
  gstreamer1.0-rtsp gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
  gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0
  python3-gi python3-opencv
)

usage() {
  cat <<'TEXT'
usage: ./install.sh --demo | --test [options] [-- ARGUMENTS]

  --demo           install, and run `edge-agent demo` with ARGUMENTS
  --test           install what tests need as well, and run pytest with ARGUMENTS
  --with-train     with --test: install PyTorch too, so that the tests of training run (a large download)
  --python PATH    the Python to use, 3.10 to 3.13; if absent, python3, else the newest on PATH
  --venv DIR       where to install; .venv if absent
  --help           show this text
TEXT
}

fail() {
  printf 'install.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

on_error() {
  printf 'install.sh: failed while %s (see above); mend that and run the same command again\n' "$step" >&2
}
trap on_error ERR

say() {
  step=$1
  printf '== %s\n' "$1" >&2
}

# ---- Debian packages

missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query --show --showformat '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' ||
      printf '%s\n' "$package"
  done
}

# Install those that are missing, where we may; else name them and go on.
debian_packages() {
  local missing=() runner=()
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    printf 'install.sh: no Debian system; what depends on these is left out: %s\n' "$*" >&2
    return 0
  fi
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      printf 'install.sh: neither root nor sudo; what depends on these is left out: %s\n' "${missing[*]}" >&2
      return 0
    fi
    runner=(sudo -n)
  fi
  say "installing Debian packages: ${missing[*]}"
  "${runner[@]}" apt-get update -qq
  "${runner[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends -qq "${missing[@]}" >/dev/null
}

# ---- Python

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

has_venv() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

version_of() {
  "$1" -c 'import platform; print(platform.python_version())'
}

choose_python() {
  local candidate without_venv=
  if [[ -n $python ]]; then
    fits "$python" || fail "$python is not a Python of 3.10 to 3.13"
    has_venv "$python" || no_venv "$python"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    fits "$candidate" || continue
    if has_venv "$candidate"; then
      python=$candidate
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  [[ -z $without_venv ]] || no_venv "$without_venv"
  fail 'no Python 3.10 to 3.13 found; install one (Debian: apt-get install python3 python3-venv), or name it with --python'
}

# Debian keeps the module in a package of its own; install that, or say which.
no_venv() {
  local package
  package="python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  debian_packages "$package"
  has_venv "$1" || fail "$1 has no module venv; on Debian: apt-get install $package"
  python=$1
}

# An environment of another Python than the one that was named, or of one that is gone, is made anew.
make_venv() {
  if fits "$venv/bin/python"; then
    if [[ -z $asked_python || $(version_of "$venv/bin/python") == "$(version_of "$python")" ]]; then
      return
    fi
  fi
  say "making $venv with Python $(version_of "$python")"
  "$python" -m venv --clear "$venv"
}

pip() {
  "$venv/bin/python" -m pip -qq --disable-pip-version-check "$@" # errors alone
}

# install_packages WHAT...: as for pip; done once for each version of pyproject.toml and place.
install_packages() {
  local stamp="$venv/.installed-for-$action" wanted
  wanted="$(sha256sum <pyproject.toml) $PWD $*"
  [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0
  say 'installing Python packages'
  if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))'; then
    pip install --upgrade 'pip>=25.1' # the first that knows --group
  fi
  if [[ -n $with_train ]]; then
    # One version, since newer ones may bring gigabytes of CUDA; the tests need the CPU alone.
    pip install 'torch==2.13.0'
  fi
  pip install "$@"
  printf '%s\n' "$wanted" >"$stamp"
}

# The OpenCV wheel needs libGL and GLib, which a bare machine has not.
check_opencv() {
  ! "$venv/bin/python" -c 'import cv2' 2>/dev/null || return 0
  debian_packages libgl1 libglib2.0-0
  step='importing OpenCV'
  "$venv/bin/python" -c 'import cv2' || fail 'OpenCV cannot be loaded; on Debian: apt-get install libgl1 libglib2.0-0'
}

# ---- what was asked for

demo() {
  install_packages --editable '.[demo]'
  check_opencv
  say 'running the demo'
  "$venv/bin/edge-agent" demo "$@"
  printf '== next: %s/bin/edge-agent run --help, or see README.md\n' "$venv" >&2
}

tests() {
  local extras=demo,encrypt
  [[ -z $with_train ]] || extras+=,train
  debian_packages "${test_packages[@]}"
  install_packages --editable ".[$extras]" --group test --group lint
  check_opencv
  say 'running the tests'
  # Background jobs of a shell start with SIGINT ignored, and so would the programs that tests end by Ctrl-C.
  env --default-signal=INT "$venv/bin/python" -m pytest "$@"
}

while (($#)); do
  case $1 in
    --demo | --test) action=${1#--} ;;
    --with-train) with_train=yes ;;
    --python | --venv)
      (($# > 1)) || { usage >&2; fail "$1 needs a value" 2; }
      declare "${1#--}=$2"
      shift
      ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; fail "unknown option $1" 2 ;;
  esac
  shift
done
readonly asked_python=$python

case $action in
  demo) choose_python; make_venv; demo "$@" ;;
  test) choose_python; make_venv; tests "$@" ;;
  *) usage >&2; exit 2 ;;
esac
