"""What the operator's page may ask about the threshold of a match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edge_agent.agent.page_service import Answer, Operation
    from edge_agent.core.config import IdentifySettings
    from edge_agent.identify import Identifier


@dataclass(frozen=True, slots=True)
class ThresholdOperations:
    """The operations by name; `table` lists them."""

    identifier: Identifier
    settings: IdentifySettings

    def table(self) -> dict[str, Operation]:
        """Return the operations."""
        return {"thresholds": self.thresholds}

    def thresholds(self, _values: Mapping[str, Any], _bytes: bytes) -> Answer:
        """Return the threshold in force, and the scores of people who were seen together (raw cosines)."""
        thresholds = self.identifier.thresholds
        in_force = asdict(thresholds.in_force)
        in_force["value"] = in_force.pop("stated")  # as in events
        together = np.sin(thresholds.site.angles())
        found = {
            "in_force": in_force,
            "together": [round(float(one), 4) for one in together],
            "target_fmr": self.settings.target_fmr,
        }
        return found, b""
