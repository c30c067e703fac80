"""CUDA by pycuda."""

from __future__ import annotations

from edge_agent.errors import EngineError

__all__ = ["probe"]


def probe() -> None:
    """Raise unless CUDA and at least one GPU are usable.

    Raises:
        EngineError: pycuda, the driver or a GPU is missing; the message names the likely causes.
    """
    try:
        from pycuda import driver
    except ImportError as problem:
        raise EngineError(
            f"CUDA cannot be used: {problem}. Without libcuda.so.1 there is no NVIDIA driver here; without "
            "pycuda: pip install pycuda (on a Jetson, with the CUDA toolkit of JetPack: install.sh does it)"
        ) from problem
    try:
        driver.init()
        devices = driver.Device.count()
    except driver.Error as problem:
        raise EngineError(f"CUDA cannot be used: {problem}. {_NO_GPU}") from problem
    if not devices:
        raise EngineError(f"CUDA sees no GPU. {_NO_GPU}")


_NO_GPU = (
    "Likely causes: the driver is not loaded or of another version than libcuda; on a Jetson, the user is "
    "not in the groups video and render; in a container, the NVIDIA runtime is not in use"
)
