# shellcheck shell=bash
# Installation of edge-agent as a service. Sourced by install.sh, which defines say, fail, debian_packages,
# python and the options.
#
# A release is a folder PREFIX/releases/VERSION-DIGEST with a Python environment and the service's files. It is made
# next to the running one and activated when it is complete: `PREFIX/current` is a link, replaced by a rename.
# DIGEST covers this source tree and what it is built against (Python, L4T, CUDA), so that a new JetPack makes
# a new release, and a second run has nothing to do.

readonly config_folder=/etc/edge-agent state_folder=/var/lib/edge-agent cache_folder=/var/cache/edge-agent
readonly unit_folder=/usr/local/lib/systemd/system link=/usr/local/bin/edge-agent
readonly completions=(
  /usr/local/share/bash-completion/completions/edge-agent
  /usr/local/share/zsh/site-functions/_edge-agent
)
readonly default_prefix=/opt/edge-agent
readonly needed_megabytes=2048 # a release takes 0.7 GB on a machine without a GPU, and pip as much temporarily

l4t='' jetpack='' cuda='' cuda_release='' release='' sources='' files_changed='' restarted=''

# run COMMAND...: run it; in a dry run, print it.
run() {
  if [[ -n $dry_run ]]; then
    printf '   would run:' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
  else
    "$@"
  fi
}

note() {
  printf '   %s\n' "$1" >&2
}

# put_file SOURCE TARGET: copy, unless the target is equal.
put_file() {
  ! cmp --quiet "$1" "$2" || return 0
  install -D --mode 644 "$1" "$2"
  files_changed=yes
}

# ---- location

# Use the prefix of an existing installation; --prefix must not make a second one.
choose_prefix() {
  local present=''
  if [[ -L $link ]]; then
    present=$(readlink "$link")
    present=${present%/current/bin/edge-agent}
  fi
  if [[ -n $prefix && -n $present && $prefix != "$present" ]]; then
    fail "edge-agent is installed in $present; remove that first: ./install.sh --uninstall"
  fi
  prefix=${prefix:-${present:-$default_prefix}}
  [[ $prefix == /?* && $prefix != */ && $prefix != *[[:space:]]* ]] || fail '--prefix must be a folder such as /opt/edge-agent' 2
  case $prefix/ in
    /home/* | /root/* | /tmp/* | /run/*) fail "the service cannot see $prefix: it has no access to /home, /root, /tmp and /run" 2 ;;
  esac
}

current_release() {
  if [[ -L $prefix/current ]]; then
    readlink -f "$prefix/current"
  fi
}

need_root() {
  [[ -n $dry_run ]] || ((EUID == 0)) || fail 'this changes the system: run it as root (sudo ./install.sh)'
  command -v systemctl >/dev/null || fail 'this machine has no systemd; ./install.sh --demo works without it'
  [[ -n $dry_run || -d /run/systemd/system ]] || fail 'systemd is not running here (a container?); ./install.sh --demo works without it'
}

# One run at a time; the lock is released when this process ends.
lock() {
  [[ -z $dry_run ]] || return 0
  mkdir -p "$prefix"
  exec 9>>"$prefix/.lock"
  flock --nonblock 9 || fail "another install.sh is running on $prefix"
}

# ---- the machine

recognise() {
  local model_name
  say 'examining this machine'
  [[ -n $python ]] || python=/usr/bin/python3
  [[ -x $python ]] || fail "there is no $python; on Debian: apt-get install python3 python3-venv"
  l4t=$(l4t_release '')
  jetpack=$(jetpack_of "$l4t")
  if [[ -n $l4t ]]; then
    model_name=$(board_model '')
    note "${model_name:-a Jetson}, L4T $l4t${jetpack:+ (JetPack $jetpack)}"
    refuse_old_jetpack
  else
    note 'not a Jetson: everything runs on ONNX Runtime'
  fi
  note "Python $(version_of "$python") at $python"
  fits "$python" || fail "$python is not a Python of 3.10 to 3.13; Ubuntu 22.04 and Debian 12 have one"
  case $(readlink -f "$python") in
    /home/* | /root/*) fail "$python is in a home folder, where the service cannot read it; use /usr/bin/python3" ;;
  esac
  has_python_venv
  [[ -z $l4t ]] || recognise_jetpack_libraries
  enough_room
}

refuse_old_jetpack() {
  case $jetpack in
    4 | 5.*)
      fail "JetPack $jetpack (L4T $l4t) has Python 3.8 or older, and its TensorRT is for that Python only; edge-agent needs 3.10. Flash JetPack 6.2, or 7.2; nothing was changed"
      ;;
    7.0 | 7.1) note "JetPack $jetpack does not support the AGX Orin; 6.2 and 7.2 do" ;;
    '') note 'this L4T is unknown; supported: 36.x (JetPack 6) and 39.2 (JetPack 7.2)' ;;
  esac
}

has_python_venv() {
  ! has_venv "$python" || return 0
  if [[ -n $wheels || -n $dry_run ]]; then
    fail "$python has no module venv; on Debian: apt-get install python3-venv"
  fi
  no_venv "$python"
}

# Libraries that JetPack has and pip does not; they are used from the system and required on a Jetson.
recognise_jetpack_libraries() {
  local tensorrt opencv version gstreamer origin file
  cuda=$(cuda_root '')
  tensorrt=$(tensorrt_version "$python")
  opencv=$(opencv_facts "$python")
  if [[ -z $cuda || -z $tensorrt || -z $opencv ]]; then
    fail "of JetPack's libraries these are missing:$([[ -n $cuda ]] || printf ' CUDA')$([[ -n $tensorrt ]] || printf ' TensorRT for %s' "$python")$([[ -n $opencv ]] || printf ' OpenCV'). Install them: apt-get update && apt-get install nvidia-jetpack"
  fi
  cuda_release=$(cuda_version "$cuda")
  IFS='|' read -r version gstreamer origin file <<<"$opencv"
  note "TensorRT $tensorrt, CUDA $cuda_release at $cuda"
  note "OpenCV $version, $gstreamer, at $file; numpy $(numpy_major "$python")"
  if [[ $origin == pip ]]; then
    fail "OpenCV at $file comes from pip and hides JetPack's, which has GStreamer: sudo $python -m pip uninstall opencv-python opencv-python-headless opencv-contrib-python"
  fi
  [[ $gstreamer == GStreamer ]] || fail "OpenCV at $file has no GStreamer, so CSI cameras and hardware decoding would not work: apt-get install --reinstall libopencv-python"
}

enough_room() {
  local folder=$prefix free
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(df --output=avail --block-size=M "$folder" | tail -n 1 | tr -dc 0-9)
  ((free >= needed_megabytes)) || fail "$folder has $free MB free; a release needs $needed_megabytes while it is made"
}

# ---- a release

# Set `release` to the folder of the release for this source tree and machine.
name_release() {
  local version digest
  version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' edge_agent/__init__.py)
  digest=$(
    {
      find edge_agent packaging systemd install.sh pyproject.toml README.md LICENSE NOTICE engines/default.* \
        -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
      printf '%s\n' "$(version_of "$python")" "$python" "$l4t" "$cuda $cuda_release" "$prefix"
    } | sha256sum
  )
  release=$prefix/releases/$version-${digest:0:12}
}

make_release() {
  if [[ -e $release/.complete ]]; then
    note "release ${release##*/} is complete"
    return
  fi
  make_environment
  install_project
  [[ -z $l4t ]] || install_for_jetson
  check_environment
  say 'writing the service'
  render_service
  touch "$release/.complete"
}

# On a Jetson the environment sees the system's packages, including TensorRT and OpenCV.
make_environment() {
  local seen=()
  [[ ! -e $release/.environment ]] || return 0
  [[ -z $l4t ]] || seen=(--system-site-packages)
  say "making the environment $release"
  mkdir -p "$prefix/releases"
  "$python" -m venv --clear "${seen[@]}" "$release"
  touch "$release/.environment"
}

# pip of the release; with --wheels from that folder and without a network.
release_pip() {
  local command=$1 offline=()
  shift
  [[ -z $wheels ]] || offline=(--no-index --find-links "$wheels")
  "$release/bin/python" -s -m pip -qq --disable-pip-version-check "$command" "${offline[@]}" "$@"
}

# Install the project from a copy, because a build leaves files and this tree may be read-only; then its requirements.
install_project() {
  local scratch
  say "installing edge-agent${wheels:+ from the wheels in $wheels}"
  scratch=$(mktemp -d)
  copy_source "$scratch/source"
  release_pip install --no-deps --force-reinstall "$scratch/source"
  requirements >"$scratch/requirements"
  constraints >"$scratch/constraints"
  # Everything goes into the release, also what the system has: a Jetson's packages are old, and change with apt.
  release_pip install --ignore-installed --requirement "$scratch/requirements" --constraint "$scratch/constraints"
  rm -r "$scratch"
}

# copy_source FOLDER: what a build needs.
copy_source() {
  mkdir "$1"
  cp -r edge_agent engines pyproject.toml README.md LICENSE NOTICE "$1"
}

# Requirements of the project and of the extras `encrypt`, `page` and `fleet`; on a Jetson without OpenCV, which would hide JetPack's.
requirements() {
  ON_JETSON=$l4t "$release/bin/python" -s - <<'PYTHON'
import importlib.metadata, os
for line in importlib.metadata.requires("jetson-edge-agent"):
    wanted, _, marker = line.partition(";")
    if os.environ["ON_JETSON"] and wanted.startswith("opencv"):
        continue
    if "extra" in marker:
        if any(extra in marker for extra in ("encrypt", "page", "fleet")):
            print(wanted)
    else:
        print(line)
PYTHON
}

# An OpenCV that was built for numpy 1 cannot be imported under numpy 2.
constraints() {
  local major
  [[ -n $l4t ]] || return 0
  major=$(numpy_major "$python")
  printf 'numpy>=%s,<%s\n' "$major" "$((major + 1))"
}

install_for_jetson() {
  local running
  say "building pycuda for CUDA $cuda_release"
  build_pycuda
  running=$(jtop_version "$python")
  if [[ -z $(jtop_group '') ]]; then
    note 'jetson-stats is not installed: telemetry comes from sysfs'
  elif [[ -z $running ]]; then
    note 'jetson-stats runs, but this Python has no module jtop: telemetry comes from sysfs (pip3 install jetson-stats)'
  else
    note "jetson-stats $running of the system is used"
  fi
}

# Not from pip's cache or the system: those may be built for another CUDA.
build_pycuda() {
  PATH=$cuda/bin:$PATH CUDA_HOME=$cuda CUDA_ROOT=$cuda \
    release_pip install --no-cache-dir --ignore-installed "$(pycuda_requirement)"
}

pycuda_requirement() {
  sed -n 's/^jetson = \["\(pycuda[^"]*\)".*/\1/p' pyproject.toml
}

# Import the libraries as the service will.
check_environment() {
  local version gstreamer origin file
  say 'checking the environment'
  "$release/bin/python" -s -c 'import cv2' 2>/dev/null || [[ -n $l4t || -n $wheels ]] || debian_packages libgl1 libglib2.0-0
  "$release/bin/python" -s -c 'import cv2' || fail 'OpenCV cannot be loaded (see above); on Debian: apt-get install libgl1 libglib2.0-0'
  if [[ -n $l4t ]]; then
    IFS='|' read -r version gstreamer origin file <<<"$(opencv_facts "$release/bin/python")"
    [[ $origin == system && $gstreamer == GStreamer && $file != "$release"/* ]] ||
      fail "in the release, OpenCV $version at $file hides JetPack's"
    "$release/bin/python" -s -c 'import tensorrt, pycuda' || fail 'TensorRT or pycuda cannot be loaded (see above)'
  fi
  "$release/bin/edge-agent" --version >/dev/null
}

# Write the service's files for this prefix into the release, so that a rollback restores them too.
render_service() {
  local folder=$release/service file
  mkdir -p "$folder/edge-agent@.service.d"
  for file in edge-agent.service edge-agent-page.service edge-agent@.service.d/instance.conf; do
    sed "s#$default_prefix/#$prefix/#g" "systemd/$file" >"$folder/$file"
  done
  cp "$folder/edge-agent.service" "$folder/edge-agent@.service"
  cp systemd/edge-agent.sysusers systemd/edge-agent.tmpfiles "$folder"
  _EDGE_AGENT_COMPLETE=source_bash "$release/bin/edge-agent" >"$folder/completion.bash"
  _EDGE_AGENT_COMPLETE=source_zsh "$release/bin/edge-agent" >"$folder/completion.zsh"
}

# ---- user, folders, settings

make_user_and_folders() {
  local group
  say 'making the user edge-agent and its folders'
  put_file systemd/edge-agent.sysusers /etc/sysusers.d/edge-agent.conf
  put_file systemd/edge-agent.tmpfiles /etc/tmpfiles.d/edge-agent.conf
  systemd-sysusers /etc/sysusers.d/edge-agent.conf
  group=$(jtop_group '')
  if [[ -n $group && " $(id -nG edge-agent 2>/dev/null) " != *" $group "* ]]; then
    usermod --append --groups "$group" edge-agent
    restarted=yes # a process gets its groups at its start
  fi
  make_settings
  systemd-tmpfiles --create /etc/tmpfiles.d/edge-agent.conf
}

# Write initial settings; existing ones are never changed.
make_settings() {
  [[ ! -e $config_folder/config.toml ]] || return 0
  install -D --mode 640 packaging/config.toml "$config_folder/config.toml"
}

# Run a command as the service does: its user and groups, a clean environment, a folder that it can read.
as_service() {
  setpriv --reuid edge-agent --regid edge-agent --init-groups --inh-caps=-all -- \
    env --ignore-environment --chdir=/ PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME="$state_folder" \
    PYTHONNOUSERSITE=1 XDG_CACHE_HOME="$cache_folder" CUDA_CACHE_PATH="$cache_folder/cuda" "$@"
}

add_model() {
  [[ -n $model ]] || return 0
  say "adding the network $model"
  "$release/bin/edge-agent" model add "$model" --output "$config_folder/models" --use "$config_folder/config.toml"
}

# Fetch the detector of --detector. Without it, ask on a terminal, where none is installed; the answer no is the default.
add_detector() {
  local answer='' from=()
  if [[ -n $detector ]]; then
    say "adding the detector $detector"
    [[ -z $detector_from ]] || from=(--from "$detector_from")
    "$release/bin/edge-agent" model fetch "$detector" --output "$config_folder/models" "${from[@]}"
    return
  fi
  [[ ! -e $config_folder/models/detector.json ]] || return 0
  if [[ -t 0 && -t 2 ]]; then
    printf '== the built-in detector (HOG) misses people and costs much. Download YOLOX nano (3.7 MB, Apache-2.0)\n' >&2
    read -r -p '   from github.com/Megvii-BaseDetection/YOLOX and use it where no other is set? [y/N] ' answer || true
  fi
  if [[ $answer != [yY]* ]]; then
    note 'for a better detector than the built-in one: sudo edge-agent model fetch yolox-nano'
  elif ! "$release/bin/edge-agent" model fetch yolox-nano --output "$config_folder/models"; then
    note 'not fetched (see above); the installation goes on with the built-in detector'
  fi
}

# Check the settings before the switch: an agent with wrong settings does not start.
check_settings() {
  local shown
  say 'reading the settings'
  shown=$(as_service "$release/bin/edge-agent" config show --json --config "$config_folder/config.toml")
  sources=$("$release/bin/python" -s -c 'import json, sys; print(len(json.load(sys.stdin)["sources"]))' <<<"$shown")
}

calibrate() {
  local precision=()
  say 'calibrating: engines for this device and their accuracy'
  # On a CPU FP16 is slower than FP32.
  [[ -n $l4t ]] || precision=(--precision fp32)
  as_service "$release/bin/edge-agent" calibrate "${precision[@]}" --config "$config_folder/config.toml"
}

# ---- the switch

# install_units RELEASE: install its units, and reload systemd if one of them changed.
install_units() {
  local file
  files_changed=
  for file in edge-agent.service edge-agent@.service edge-agent@.service.d/instance.conf; do
    put_file "$1/service/$file" "$unit_folder/$file"
  done
  install_page "$1"
  [[ -z $files_changed ]] || systemctl daemon-reload
  install_completions "$1"
}

# install_page RELEASE: the unit of the page, which stays off; a release of an earlier version has none.
install_page() {
  local changed=$files_changed
  [[ -e $1/service/edge-agent-page.service ]] || return 0
  put_file "$1/service/edge-agent-page.service" "$unit_folder/edge-agent-page.service"
  if [[ $files_changed != "$changed" ]]; then
    systemctl daemon-reload
    files_changed=$changed # the agent need not restart for it
  fi
}

# install_completions RELEASE: of bash and zsh; a release of an earlier version has none.
install_completions() {
  local changed=$files_changed
  [[ -e $1/service/completion.bash ]] || return 0
  put_file "$1/service/completion.bash" "${completions[0]}"
  put_file "$1/service/completion.zsh" "${completions[1]}"
  files_changed=$changed # the service need not restart for these
}

# point_to RELEASE: make it the current release. Replacing a link is atomic.
point_to() {
  ln -s --no-dereference --force "$1" "$prefix/.next"
  mv --no-target-directory "$prefix/.next" "$prefix/current"
}

switch_release() {
  local former
  former=$(current_release)
  say "switching to ${release##*/}"
  [[ $former == "$release" ]] || point_to "$release"
  install_units "$release"
  [[ $former == "$release" && -z $files_changed ]] || restarted=yes
  [[ -L $link ]] || ln -s "$prefix/current/bin/edge-agent" "$link"
  systemctl is-enabled --quiet edge-agent.service || systemctl --quiet enable edge-agent.service
  start_service || step_back "$former"
  prune "$former"
}

# Leave a running service alone if nothing changed. Running instances are restarted. `systemctl start` returns when
# the agent is ready.
start_service() {
  local verb=start
  [[ -z $restarted ]] || systemctl try-restart 'edge-agent@*.service' edge-agent-page.service
  if [[ $sources == 0 ]]; then
    note "no camera yet: name one in $config_folder/config.toml, then: systemctl start edge-agent"
    return 0
  fi
  [[ -z $restarted ]] || verb=restart
  if [[ $verb == start ]] && systemctl is-active --quiet edge-agent.service; then
    note 'the service runs'
    return 0
  fi
  say 'starting the service'
  systemctl reset-failed edge-agent.service 2>/dev/null || true # of earlier attempts, if any
  systemctl "$verb" edge-agent.service
}

# step_back FORMER: the new release does not start; restore the former one.
step_back() {
  journalctl --unit edge-agent.service --lines 20 --no-pager --output cat >&2 || true
  if [[ -z $1 || $1 == "$release" ]]; then
    fail 'the service does not start (its last messages are above); fix that, then: systemctl start edge-agent'
  fi
  point_to "$1"
  install_units "$1"
  systemctl reset-failed edge-agent.service 2>/dev/null || true
  systemctl restart edge-agent.service || fail "neither the new release starts nor the former one, ${1##*/}; see journalctl -u edge-agent"
  fail "the new release does not start (its last messages are above); ${1##*/} runs again"
}

# Delete all releases except the current and the former one, also incomplete ones.
prune() {
  local folder
  [[ -z $1 || $1 == "$release" ]] || ln -s --no-dereference --force "$1" "$prefix/former"
  for folder in "$prefix"/releases/*/; do
    folder=${folder%/}
    case $folder in
      "$release" | "$(readlink -f "$prefix/former")") ;;
      *) rm -r "$folder" ;;
    esac
  done
}

doctor() {
  say 'running edge-agent doctor'
  as_service "$release/bin/edge-agent" doctor --config "$config_folder/config.toml" >&2
}

# Report what is installed if this run failed; the former release still runs.
on_exit() {
  local code=$? running
  trap - EXIT
  if ((code != 0)) && [[ -z $dry_run ]]; then
    running=$(current_release)
    printf 'install.sh: failed while %s\n' "$step" >&2
    if [[ -n $running ]]; then
      printf 'install.sh: what is installed is %s\n' "${running##*/}" >&2
    else
      printf 'install.sh: nothing is installed yet\n' >&2
    fi
    printf 'install.sh: fix that and run the same command again; it continues where it stopped\n' >&2
  fi
  exit "$code"
}

install_system() {
  need_root
  choose_prefix
  [[ -z $upgrade || -n $(current_release) ]] || fail "there is no installation in $prefix to upgrade; without --upgrade one is made"
  trap - ERR
  trap on_exit EXIT
  umask 022
  # Ignore root's own packages, and write no bytecode while checking; pip compiles what it installs regardless.
  export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
  recognise
  lock
  name_release
  if [[ -n $dry_run ]]; then
    show_plan
    return
  fi
  make_release
  make_user_and_folders
  add_model
  add_detector
  check_settings
  calibrate
  switch_release
  doctor
  printf '== edge-agent is installed in %s; settings: %s/config.toml; logs: journalctl -u edge-agent\n' "$prefix" "$config_folder" >&2
}

# ---- removal

uninstall() {
  local units unit
  need_root
  choose_prefix
  [[ ! -d $prefix ]] || lock
  say "removing edge-agent from $prefix"
  units=$(enabled_and_running)
  for unit in $units; do
    run systemctl --quiet disable --now "$unit"
  done
  run rm -rf "$unit_folder/edge-agent.service" "$unit_folder/edge-agent-page.service" "$unit_folder/edge-agent@.service" "$unit_folder/edge-agent@.service.d"
  run rm -f /etc/tmpfiles.d/edge-agent.conf /etc/sysusers.d/edge-agent.conf "$link" "${completions[@]}"
  run systemctl daemon-reload
  run systemctl reset-failed 'edge-agent*.service'
  run rm -rf "$prefix/releases" "$prefix/current" "$prefix/former" "$prefix/.next" "$prefix/.lock" "$cache_folder"
  remove_if_empty "$prefix" "$unit_folder" "${unit_folder%/*}" /etc/sysusers.d
  for unit in "${completions[@]}"; do
    remove_if_empty "$(dirname "$unit")" "$(dirname "$(dirname "$unit")")"
  done
  if [[ -n $purge ]]; then
    purge_all
  else
    note "kept: $config_folder, $state_folder, drop-ins in /etc/systemd/system, the user edge-agent; --purge removes these too"
  fi
}

remove_if_empty() {
  local folder
  for folder in "$@"; do
    [[ ! -d $folder ]] || run rmdir --ignore-fail-on-non-empty "$folder"
  done
}

enabled_and_running() {
  [[ -d /run/systemd/system ]] || return 0 # a dry run in a container
  {
    systemctl list-unit-files --no-legend --plain 'edge-agent.service' 'edge-agent-page.service' 'edge-agent@*.service'
    systemctl list-units --all --no-legend --plain 'edge-agent.service' 'edge-agent-page.service' 'edge-agent@*.service'
  } | sed -n 's/^\(edge-agent\(-page\|@[^ ]\+\)\?\.service\) .*/\1/p' | sort --unique
}

purge_all() {
  run rm -rf "$config_folder" "$state_folder" /etc/systemd/system/edge-agent.service.d /etc/systemd/system/edge-agent-page.service.d /etc/systemd/system/edge-agent@*.service.d
  run systemctl daemon-reload
  if id edge-agent >/dev/null 2>&1; then
    run userdel edge-agent
  fi
  note 'settings, secrets, gallery, outbox and the user were removed too'
}
