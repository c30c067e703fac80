"""Checks of `edge-agent doctor`: one function for each, which returns its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.checks import configuration, device, libraries
from edge_agent.cli.checks.finding import Finding

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import EngineInfo

__all__ = ["Finding", "examine"]


def examine(
    config: Path | None, *, root: Path = Path("/"), step: Callable[[str], None] | None = None
) -> list[Finding]:
    """Run all checks.

    Args:
        config: the TOML file, as for `edge_agent.core.loading.load`.
        root: folder with `sys`, `proc`, `etc`, `dev` and `run`.
        step: called with the name of each check before it runs.
    """
    findings: list[Finding] = []
    for name, check in _Checks(config, root).all():
        if step is not None:
            step(name)
        try:
            findings += check()
        except Exception as problem:  # noqa: BLE001 - a check that fails must not prevent the others
            text = f"cannot be checked: {type(problem).__name__}: {problem}"
            findings.append(Finding(name, "warning", text, "please report this"))
    return findings


class _Checks:
    """All checks, and results that later checks need."""

    def __init__(self, config: Path | None, root: Path) -> None:
        self._config = config
        self._root = root
        self._settings: Settings | None = None
        self._engine: EngineInfo | None = None
        self._has_onnxruntime = False

    def all(self) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
        """Name and function of each check, in the order of their dependencies."""
        root, on_board = self._root, (self._root / "etc/nv_tegra_release").exists()
        yield "python", libraries.python
        yield "packages", libraries.packages
        yield "opencv", lambda: libraries.opencv(on_board=on_board)
        yield "onnxruntime", self._onnxruntime
        yield "board", lambda: device.board(root)
        yield "cuda", lambda: libraries.cuda(root, on_board=on_board)
        yield "tensorrt", lambda: libraries.tensorrt(on_board=on_board)
        yield "pycuda", lambda: libraries.pycuda(on_board=on_board)
        yield "jtop", lambda: device.jtop(root, on_board=on_board)
        yield "clock", device.clock
        yield "configuration", self._configuration
        settings = self._settings
        if settings is None:
            return
        yield "state folder", lambda: configuration.state_folder(settings.state_dir)
        if self._has_onnxruntime:
            yield "model", lambda: self._model(settings)
        yield "gallery", lambda: configuration.gallery(settings, self._engine)
        yield "broker", lambda: configuration.broker(settings)

    def _onnxruntime(self) -> list[Finding]:
        findings = libraries.onnxruntime()
        self._has_onnxruntime = findings[0].state == "ok"
        return findings

    def _configuration(self) -> list[Finding]:
        self._settings, finding = configuration.settings_of(self._config)
        return [finding]

    def _model(self, settings: Settings) -> list[Finding]:
        self._engine, findings = configuration.model(settings)
        return findings
