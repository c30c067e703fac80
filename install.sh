#!/usr/bin/env bash
# Set up edge-agent on this machine.
#
#   ./install.sh --demo    make .venv, install, and watch people be recognised on a rendered street
#   ./install.sh --test    install what the tests need as well, and run them
#
# Safe to run again: what is there is kept. Nothing outside this folder is touched, but for Debian packages
# that --test installs where it may (root or sudo without a password).
set -Eeuo pipefail

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

venv=.venv
python=
action=
with_train=
step='reading the options'

# What the tests run for real: a broker and its clients, an RTSP server, and checks of this script.
readonly test_packages=(
  mosquitto mosquitto-clients jq openssl shellcheck
  gstreamer1.0-rtsp gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good
  gstreamer1.0-plugins-ugly gstreamer1.0-tools python3-gi
)

usage() {
  cat <<'TEXT'
usage: ./install.sh --demo | --test [options] [-- ARGUMENTS]

  --demo           install, and run `edge-agent demo` with ARGUMENTS
  --test           install what tests need as well, and run pytest with ARGUMENTS
  --with-train     with --test: install PyTorch too, so that the tests of training run (a large download)
  --python PATH    the Python to use, 3.10 to 3.13; the newest of those on PATH if absent
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

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

choose_python() {
  local candidate
  if [[ -n $python ]]; then
    fits "$python" || fail "$python is not Python 3.10 to 3.13"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if fits "$candidate"; then
      python=$candidate
      return
    fi
  done
  fail 'no Python 3.10 to 3.13 found; install one (Debian: apt-get install python3 python3-venv) or name it with --python'
}

make_venv() {
  if [[ -x $venv/bin/python ]] && fits "$venv/bin/python"; then
    return
  fi
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" ||
    fail "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
}

install_packages() {
  say 'installing Python packages'
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

check_opencv() {
  step='importing OpenCV'
  "$venv/bin/python" -c 'import cv2' 2>/dev/null && return
  # The wheel with windows needs libGL and GLib, which a bare machine has not.
  debian_packages libgl1 libglib2.0-0
  "$venv/bin/python" -c 'import cv2' ||
    fail 'OpenCV cannot be imported; on Debian: apt-get install libgl1 libglib2.0-0'
}

# Install the Debian packages that are missing, where we may; else name them.
debian_packages() {
  local missing=() package runner=()
  command -v dpkg-query >/dev/null || { printf 'not a Debian system; needed: %s\n' "$*" >&2; return 0; }
  for package in "$@"; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      printf 'not root, and no sudo: tests that need these packages will be skipped: %s\n' "${missing[*]}" >&2
      return 0
    fi
    runner=(sudo -n)
  fi
  say "installing Debian packages: ${missing[*]}"
  "${runner[@]}" apt-get update -qq
  "${runner[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
}

demo() {
  install_packages --editable '.[demo]'
  check_opencv
  say 'running the demo'
  "$venv/bin/edge-agent" demo "$@"
}

tests() {
  local extra='demo'
  debian_packages "${test_packages[@]}"
  if [[ -n $with_train ]]; then
    extra='demo,train'
    # The newest PyTorch brings gigabytes of CUDA; tests need the CPU alone.
    install_packages 'torch==2.13.0'
  fi
  install_packages --editable ".[$extra]" --group test --group lint
  check_opencv
  say 'running the tests'
  "$venv/bin/python" -m pytest "$@"
}

while (($#)); do
  case $1 in
    --demo | --test) action=${1#--} ;;
    --with-train) with_train=1 ;;
    --python) python=${2:?--python needs a path}; shift ;;
    --venv) venv=${2:?--venv needs a folder}; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; fail "unknown option $1" 2 ;;
  esac
  shift
done

case $action in
  demo) choose_python; make_venv; demo "$@" ;;
  test) choose_python; make_venv; tests "$@" ;;
  *) usage >&2; exit 2 ;;
esac
