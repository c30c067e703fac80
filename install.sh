#!/usr/bin/env bash
# Set up edge-agent on this machine.
#
#   ./install.sh --demo    make .venv, install, and run the demo on a rendered street
#   ./install.sh --test    install what the tests need as well, and run them
#   sudo ./install.sh      install it as a service: docs/install-jetson.md
#
# It can be run again: completed steps are kept, and a second run of the first two needs no network. --demo and --test
# change nothing outside this folder except Debian packages, if they may be installed (root, or sudo without a
# password). docs/operations.md lists the changes of the service, and --dry-run shows them.
set -Eeuo pipefail

readonly called_from=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

action=
python=
venv=.venv
with_train=
prefix=
wheels=
model=
detector=
detector_from=
dry_run=
upgrade=
purge=
given=()
step='reading the options'

# Programs that the tests run: a broker and its clients, an RTSP server, an OpenCV with GStreamer as on a
# Jetson, shellcheck, systemd-analyze for the units, and a browser for the page. npm, for axe-core, is used where it
# is there: the package conflicts with the Node.js of other sources.
readonly test_packages=(
  mosquitto mosquitto-clients jq openssl shellcheck systemd
  gstreamer1.0-rtsp gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
  gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0
  python3-gi python3-opencv
  chromium
)

usage() {
  cat <<'TEXT'
usage: ./install.sh --demo | --test [options] [-- ARGUMENTS]
       sudo ./install.sh [--system] [options]
       sudo ./install.sh --uninstall [--purge]

in this folder:
  --demo           install, and run `edge-agent demo` with ARGUMENTS
  --test           install the packages of the tests as well, and run pytest with ARGUMENTS
  --with-train     with --test: install PyTorch too, for the tests of training (a large download)
  --venv DIR       where to install; default .venv

as a service of this machine:
  --system         install it, or update the installation to this source; default for root
  --upgrade        with --system: only if there is an installation; the former release is kept for a rollback
  --prefix DIR     folder of the programs; default /opt/edge-agent
  --wheels DIR     use no network: install from the wheels in this folder (docs/install-jetson.md)
  --model FILE     add this re-identification network (ONNX) and use it
  --detector NAME  fetch this detector and use it: yolox-nano or yolox-tiny (docs/models.md); without it, and on a
                   terminal, the script asks; nothing is downloaded unasked
  --detector-from FILE  with --detector: take it from this file, without a network
  --uninstall      remove the programs and the service; settings, gallery and outbox stay
  --purge          with --uninstall: remove settings, secrets, gallery, outbox and the user as well
  --dry-run        list what would be written, installed or removed, and change nothing

everywhere:
  --python PATH    the Python to use, 3.10 to 3.13; default python3, else the newest on PATH;
                   for the service /usr/bin/python3
  --help           show this text
TEXT
}

fail() {
  printf 'install.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

on_error() {
  printf 'install.sh: failed while %s (see above); fix that and run the same command again\n' "$step" >&2
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

# Install the missing packages if permitted; otherwise print their names and continue.
debian_packages() {
  local missing=() runner=()
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    printf 'install.sh: not a Debian system; features that need these packages are skipped: %s\n' "$*" >&2
    return 0
  fi
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      printf 'install.sh: neither root nor sudo; features that need these packages are skipped: %s\n' "${missing[*]}" >&2
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

# Debian has the module in a separate package: install it, or print its name.
no_venv() {
  local package
  package="python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  debian_packages "$package"
  has_venv "$1" || fail "$1 has no module venv; on Debian: apt-get install $package"
  python=$1
}

# Create the environment again if its Python is not the requested one or no longer exists.
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
  "$venv/bin/python" -m pip -qq --disable-pip-version-check "$@" # errors only
}

# install_packages ARGUMENTS...: as for pip; done once for each pyproject.toml and location.
install_packages() {
  local stamp="$venv/.installed-for-$action" wanted
  wanted="$(sha256sum <pyproject.toml) $PWD $*"
  [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0
  say 'installing Python packages'
  if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))'; then
    pip install --upgrade 'pip>=25.1' # the first that knows --group
  fi
  if [[ -n $with_train ]]; then
    # The build for CPUs, which is all that the tests need: the other one brings gigabytes of CUDA libraries. Where
    # another index of this machine has it, PyTorch's own is not waited for.
    local torch=('torch==2.13.0+cpu' --extra-index-url https://download.pytorch.org/whl/cpu)
    pip install --no-deps --retries 0 --timeout 10 "${torch[@]}" || pip install --no-deps "${torch[@]}"
  fi
  # The former name of the distribution; on the Python Package Index it is another project.
  ! "$venv/bin/python" -m pip -qq show edge-agent >/dev/null 2>&1 || pip uninstall --yes edge-agent
  pip install "$@"
  printf '%s\n' "$wanted" >"$stamp"
}

# The OpenCV wheel needs libGL and GLib, which a minimal system lacks.
check_opencv() {
  ! "$venv/bin/python" -c 'import cv2' 2>/dev/null || return 0
  debian_packages libgl1 libglib2.0-0
  step='importing OpenCV'
  "$venv/bin/python" -c 'import cv2' || fail 'OpenCV cannot be loaded; on Debian: apt-get install libgl1 libglib2.0-0'
}

# ---- actions

demo() {
  install_packages --editable '.[demo,page]'
  check_opencv
  say 'running the demo'
  "$venv/bin/edge-agent" demo "$@"
  printf '== next: %s/bin/edge-agent run --help, or see README.md\n' "$venv" >&2
  printf '== see it in a browser: %s/bin/edge-agent demo --page prints a link while it runs\n' "$venv" >&2
  [[ -e ~/.local/state/edge-agent/models/detector.json ]] ||
    printf '== a better detector than the built-in one (3.7 MB): %s/bin/edge-agent model fetch yolox-nano\n' "$venv" >&2
}

tests() {
  local extras=demo,encrypt,page,fleet
  [[ -z $with_train ]] || extras+=,train
  debian_packages "${test_packages[@]}"
  install_packages --editable ".[$extras]" --group test --group lint
  check_opencv
  say 'running the tests'
  # Background jobs of a shell ignore SIGINT, and so would the programs that tests stop with Ctrl-C.
  env --default-signal=INT "$venv/bin/python" -m pytest --numprocesses 4 --dist worksteal "$@"
}

wrong_usage() {
  usage >&2
  fail "$1" 2
}

# accept OPTION...: refuse given options that the action does not have.
accept() {
  local option
  for option in "${given[@]}"; do
    [[ " --python $* " == *" $option "* ]] || wrong_usage "$option does not belong to --$action"
  done
}

choose_action() {
  [[ -z $action ]] || wrong_usage "--$action and $1 exclude each other"
  action=${1#--}
}

while (($#)); do
  case $1 in
    --demo | --test | --system | --uninstall) choose_action "$1" ;;
    --with-train) with_train=yes; given+=("$1") ;;
    --dry-run) dry_run=yes; given+=("$1") ;;
    --upgrade) upgrade=yes; given+=("$1") ;;
    --purge) purge=yes; given+=("$1") ;;
    --python | --venv | --prefix | --wheels | --model | --detector | --detector-from)
      (($# > 1)) || wrong_usage "$1 needs a value"
      given+=("$1")
      option=${1#--}
      declare "${option//-/_}=$2"
      shift
      ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) wrong_usage "unknown option $1" ;;
  esac
  shift
done
readonly asked_python=$python
[[ -z $wheels || $wheels == /* ]] || wheels=$called_from/$wheels
[[ -z $model || $model == /* ]] || model=$called_from/$model
[[ -z $detector_from || -n $detector ]] || wrong_usage '--detector-from needs --detector NAME'
[[ -z $detector_from || $detector_from == /* ]] || detector_from=$called_from/$detector_from
[[ -n $action || $EUID -ne 0 ]] || action=system

# shellcheck source=packaging/board.sh
. packaging/board.sh
# shellcheck source=packaging/system.sh
. packaging/system.sh
# shellcheck source=packaging/plan.sh
. packaging/plan.sh

case $action in
  demo) accept --venv; choose_python; make_venv; demo "$@" ;;
  test) accept --venv --with-train; choose_python; make_venv; tests "$@" ;;
  system)
    (($# == 0)) || wrong_usage "unexpected argument $1"
    accept --dry-run --upgrade --prefix --wheels --model --detector --detector-from
    install_system
    ;;
  uninstall)
    (($# == 0)) || wrong_usage "unexpected argument $1"
    accept --dry-run --purge --prefix
    uninstall
    ;;
  *) usage >&2; exit 2 ;;
esac
