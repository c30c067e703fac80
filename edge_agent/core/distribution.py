"""The name of this distribution, and the command that installs its optional packages.

The name `edge-agent` on the Python Package Index belongs to another project. No message may name it as a
requirement: the commands here name the required packages themselves.
"""

import importlib.metadata
import os
import shlex
import sys
from pathlib import Path

NAME = "jetson-edge-agent"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch for CPUs. The builds of the Python Package Index bring gigabytes of CUDA libraries on x86-64."""


def requirements(extra: str | None = None) -> list[str]:
    """Return the requirements of this installation, or those that an extra adds, as `name>=version`.

    Requirements for another Python version are left out. Raises PackageNotFoundError where the package is
    imported from a folder and not installed.
    """
    marker = "" if extra is None else f'extra == "{extra}"'
    lines = (line.partition(";") for line in importlib.metadata.requires(NAME) or [])
    return [name.strip() for name, _, rest in lines if rest.strip().replace("'", '"') == marker]


def install_command(extra: str) -> str:
    """Return the shell command that adds the packages of an extra to the running Python's environment.

    It works in a clone and in the environment of the service alike.
    """
    try:
        wanted = requirements(extra)
    except importlib.metadata.PackageNotFoundError:
        return f"run ./install.sh in the clone, then pip install '.[{extra}]'"
    sudo = "" if os.access(sys.prefix, os.W_OK) else "sudo "
    index = f" --extra-index-url {CPU_INDEX}" if extra == "train" and not has_nvidia_gpu() else ""
    return f"{sudo}{shlex.quote(sys.executable)} -m pip install {shlex.join(wanted)}{index}"


def has_nvidia_gpu(devices: Path = Path("/dev")) -> bool:
    """Return whether the driver of an NVIDIA GPU has made a device: that of a PC, or of a Jetson."""
    return any(next(devices.glob(pattern), None) is not None for pattern in ("nvidia[0-9]*", "nvhost-gpu"))
