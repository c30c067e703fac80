# shellcheck shell=bash
# Detection of the machine. Sourced by install.sh. Every function takes the root of the file system ("" for this
# machine's own) or a Python, prints what it found, and prints nothing if it found nothing.

# L4T, the board's Linux, as NVIDIA numbers it: 36.4.3. First line of the file:
#   # R36 (release), REVISION: 4.3, GCID: ..., BOARD: generic, EABI: aarch64, DATE: ...
l4t_release() {
  local file="$1/etc/nv_tegra_release" line
  if [[ -r $file ]]; then
    read -r line <"$file" || true
    if [[ $line =~ R([0-9]+)\ .*REVISION:\ ([0-9.]+) ]]; then
      printf '%s.%s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
      return
    fi
  fi
  # Package versions look like 36.4.3-20250107174145.
  { dpkg-query --admindir "$1/var/lib/dpkg" --show --showformat '${Version}\n' nvidia-l4t-core 2>/dev/null || true; } |
    sed -n 's/^\([0-9.]*\).*/\1/p'
}

# jetpack_of L4T: the JetPack that contains this L4T; nothing if it is unknown.
jetpack_of() {
  case $1 in
    32.*) echo 4 ;;
    34.*) echo 5.0 ;;
    35.*) echo 5.1 ;;
    36.[23]*) echo 6.0 ;;
    36.4.0 | 36.4) echo 6.1 ;;
    36.*) echo 6.2 ;;
    38.[0-3]*) echo 7.0 ;;
    38.*) echo 7.1 ;;
    39.*) echo 7.2 ;;
  esac
}

board_model() {
  local file="$1/proc/device-tree/model"
  [[ ! -r $file ]] || tr -d '\0' <"$file"
}

# The folder of a CUDA toolkit that has a compiler.
cuda_root() {
  local folder
  for folder in "$1/usr/local/cuda" "$1"/usr/local/cuda-*; do
    if [[ -x $folder/bin/nvcc ]]; then
      readlink -f "$folder"
      return
    fi
  done
}

# cuda_version FOLDER: 12.6, from the toolkit's own compiler.
cuda_version() {
  "$1/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'
}

# The group of jetson-stats' service, if installed: members may query it.
jtop_group() {
  sed -n 's/^\(jtop\):.*/\1/p' "$1/etc/group"
}

# ---- queries of a Python. -s: without packages of the user's own site folder.

tensorrt_version() {
  "$1" -s -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true
}

# Version of jetson-stats; its service must have the same.
jtop_version() {
  "$1" -s -c 'import jtop; print(jtop.__version__)' 2>/dev/null || true
}

# OpenCV: version, GStreamer or -, pip or system, and the file; separated by |.
# "pip": a package of pip owns the file; JetPack's and Debian's packages have no such record of OpenCV.
opencv_facts() {
  "$1" -s - 2>/dev/null <<'PYTHON' || true
import importlib.metadata, re
import cv2
names = {name for dist in importlib.metadata.distributions() if (name := dist.metadata["Name"] or "")}
pip = any(name.lower().replace("_", "-").startswith("opencv-") for name in names)
gstreamer = re.search(r"GStreamer:\s+YES", cv2.getBuildInformation())
print(cv2.__version__, "GStreamer" if gstreamer else "-", "pip" if pip else "system", cv2.__file__, sep="|")
PYTHON
}

# The numpy that this OpenCV uses: its major version is the ABI that OpenCV was built for.
numpy_major() {
  "$1" -s -c 'import numpy; print(numpy.__version__.split(".")[0])' 2>/dev/null || true
}
