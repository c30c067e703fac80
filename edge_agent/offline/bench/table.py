"""The speed table: rows for every precision and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.models import choose_model, prepare_model
from edge_agent.engine.precision.calibration import current_calibration
from edge_agent.health.telemetry import Telemetry
from edge_agent.offline.bench import speed

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.offline.bench.speed import Measurement

__all__ = ["SpeedTable"]


@dataclass(slots=True)
class SpeedTable:
    """Measures the configured network.

    Args:
        settings: all settings.
        folder: the state folder, with calibrations and plans.
        precisions: `fp32`, `fp16`, `int8`; one that is not available is listed with the reason.
        batches: batch sizes.
        seconds: length of each measurement.
        on_step: called with the description of each step.
    """

    settings: Settings
    folder: Path
    precisions: Sequence[str]
    batches: Sequence[int]
    seconds: float
    on_step: Callable[[str], object]
    _left_out: dict[str, str] = field(default_factory=dict)

    def measure(self) -> dict[str, Any]:
        """Return the table as JSON values.

        Raises:
            EngineError, ModelError, ConfigError: the network does not run in FP32.
        """
        with Telemetry(self.settings.telemetry, self.folder) as telemetry:
            rows = list(self._rows(telemetry.read().board))
            return speed.document(rows, self._left_out, self._model(), telemetry.read())

    def _rows(self, board: str | None) -> Iterator[Measurement]:
        settings, folder = self.settings, self.folder
        calibration = current_calibration(settings.engine, folder)
        largest = max(settings.engine.max_batch, *self.batches)  # one plan for all batches
        for precision in self.precisions:
            engine = settings.engine.model_copy(update={"precision": precision, "max_batch": largest})
            try:
                for size in self.batches:
                    self.on_step(f"measuring {precision}, batch {size}")
                    with open_embedder(
                        engine, settings.quality, folder, calibration, max_batch=size
                    ) as embedder:
                        yield speed.measure(embedder, seconds=self.seconds, board=board)
            except (EngineError, ModelError, ConfigError) as error:
                if precision == "fp32":
                    raise
                self._left_out[precision] = str(error)

    def _model(self) -> dict[str, Any]:
        model = choose_model(self.settings.engine, self.folder)
        prepared, _ = prepare_model(model.path, model.preprocess, self.folder)
        return prepared.facts()
