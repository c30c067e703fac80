# shellcheck shell=bash
# What an installation as a service would write: ./install.sh --dry-run. Sourced by install.sh after system.sh.
# It reads the machine and the package index, makes a temporary environment, and changes nothing else.

show_plan() {
  say 'what would be installed; nothing is changed'
  plan_programs
  plan_packages || note "pip cannot list the packages (see above); ${wheels:+$wheels must hold }those of pyproject.toml are needed"
  plan_files
  plan_next_steps
}

# row NAME TEXT
row() {
  printf '   %-52s %s\n' "$1" "$2" >&2
}

plan_programs() {
  local state='new, about 0.7 GB without CUDA packages'
  [[ ! -e $release/.complete ]] || state='complete, kept'
  row "$release/" "$state"
  [[ -z $l4t ]] || row 'pycuda' "built for CUDA $cuda_release"
}

# The packages that pip would install, with versions and sizes of the files that it would fetch.
# shellcheck disable=SC2030,SC2031 # the release is another one in this subshell only
plan_packages() (
  [[ ! -e $release/.complete ]] || exit 0
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  release=$scratch/environment
  "$python" -m venv "$release" && copy_source "$scratch/source" &&
    release_pip install --no-deps "$scratch/source" &&
    requirements >"$scratch/requirements" && constraints >"$scratch/constraints" &&
    release_pip install --dry-run --ignore-installed --report "$scratch/report" \
      --requirement "$scratch/requirements" --constraint "$scratch/constraints" &&
    "$release/bin/python" packaging/sizes.py "$scratch/report" >&2
)

# shellcheck disable=SC2031
plan_files() {
  plan_file systemd/edge-agent.sysusers /etc/sysusers.d/edge-agent.conf
  plan_file systemd/edge-agent.tmpfiles /etc/tmpfiles.d/edge-agent.conf
  plan_file systemd/edge-agent.service "$unit_folder/edge-agent.service"
  plan_file systemd/edge-agent.service "$unit_folder/edge-agent@.service"
  plan_file systemd/edge-agent-page.service "$unit_folder/edge-agent-page.service"
  plan_file systemd/edge-agent@.service.d/instance.conf "$unit_folder/edge-agent@.service.d/instance.conf"
  row "${completions[0]}" 'completion for bash'
  row "${completions[1]}" 'completion for zsh'
  plan_link "$prefix/current" "$release"
  plan_link "$link" "$prefix/current/bin/edge-agent"
  if [[ -e $config_folder/config.toml ]]; then
    row "$config_folder/config.toml" 'kept as it is'
  else
    row "$config_folder/config.toml" 'new'
  fi
  [[ -z $model ]] || row "$config_folder/models/" "gets $model"
  [[ -z $detector ]] || row "$config_folder/models/" "gets the detector $detector"
  row "$state_folder/, $cache_folder/" "folders of the service"
  id edge-agent >/dev/null 2>&1 || row 'user edge-agent' 'new, groups video and render'
}

# plan_file SOURCE TARGET: whether TARGET would be written. Paths in units are those of the prefix.
plan_file() {
  if [[ ! -e $2 ]]; then
    row "$2" 'new'
  elif sed "s#$default_prefix/#$prefix/#g" "$1" | cmp --quiet - "$2"; then
    row "$2" 'unchanged'
  else
    row "$2" 'replaced'
  fi
}

plan_link() {
  if [[ $(readlink "$1" || true) == "$2" ]]; then
    row "$1" 'unchanged'
  else
    row "$1" "link to $2"
  fi
}

plan_next_steps() {
  local how=''
  [[ -n $l4t ]] || how=' --precision fp32'
  note "then: edge-agent calibrate$how, which writes engines to $cache_folder/;"
  note 'the service is enabled, and started if config.toml names a camera; edge-agent doctor checks the result'
}
