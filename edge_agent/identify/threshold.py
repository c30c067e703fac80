"""Which match threshold is in force: the configured, the calibrated or the site's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edge_agent.identify.site import SiteScores, Threshold

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings

__all__ = ["SITE_FACT", "ThresholdPolicy"]

SITE_FACT = "site_scores"
"""Name under which the site's scores are kept in the gallery file."""


class FactStore(Protocol):
    """JSON values by key, stored with the identities."""

    def get(self, key: str) -> Any: ...  # noqa: ANN401  any JSON value

    def set(self, key: str, value: Any) -> None: ...  # noqa: ANN401  any JSON value


class ThresholdPolicy:
    """Chooses the match threshold.

    Args:
        facts: where the site's scores are kept.
        settings: configured threshold, and what the site's own aims at.
        calibrated: threshold of a calibration; the site's own can only raise it.
    """

    def __init__(self, facts: FactStore, settings: IdentifySettings, calibrated: float | None) -> None:
        self.calibrated = calibrated
        self.site = SiteScores(settings.target_fmr)
        self._facts = facts
        self._settings = settings
        stored = facts.get(SITE_FACT)
        if stored:
            self.site.load(stored)
        self.in_force = self.current()
        """Threshold of the decisions on this frame; joined identities may change the current one."""

    def current(self) -> Threshold:
        """Return the threshold and its rule."""
        if self._settings.threshold is not None:
            return Threshold(self._settings.threshold, "configured")
        site = self.site.threshold()
        if self.calibrated is not None and (site.value is None or site.value <= self.calibrated):
            return Threshold(self.calibrated, "calibrated")
        return site  # higher where people of this place are more alike than those of the calibration

    def refresh(self) -> Threshold:
        """Put the current threshold in force."""
        self.in_force = self.current()
        return self.in_force

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings."""
        self._settings = settings
        self.site.aim(settings.target_fmr)

    def save(self) -> None:
        """Keep the site's scores for the next run."""
        self._facts.set(SITE_FACT, self.site.to_json())

    def forget(self) -> None:
        """Forget the site's scores, also in the gallery file."""
        self.site = SiteScores(self._settings.target_fmr)
        self.save()
