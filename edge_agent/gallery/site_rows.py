"""What a gallery file states of the site of its fleet: how far it is applied, and who was erased there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.gallery.store import Store

Reason = Literal["request", "expired"]
"""Why the site does not have a person any more."""
Copy = Literal["keep", "erase"]
"""A full copy of the site is being made; who is not in it stays, or is erased at its end."""

_AT_ONCE = 500
"""Values of one statement; older versions of SQLite take 999."""
_MARK, _COPY, _SKIPPED = "fleet_mark", "fleet_copy", "fleet_skipped"
_PARTLY = "fleet_page"
_RECEIPT, _PENDING = "fleet_receipt", "fleet_receipt_pending"
_META = (_MARK, _COPY, _SKIPPED, _PARTLY, _RECEIPT, _PENDING)


class SiteRows:
    """The site as an open gallery file knows it; methods that write belong inside `Store.change`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def forget(self) -> None:
        """Forget everything of the site."""
        for table in ("fleet_tombstone", "fleet_copied", "fleet_mean"):
            self._store.run(f"DELETE FROM {table}")  # noqa: S608 - constants
        self._store.run(f"DELETE FROM meta WHERE key IN ({','.join('?' * len(_META))})", _META)  # noqa: S608

    # ---- order of the store

    @property
    def mark(self) -> int:
        """Version of the site up to which everything is applied."""
        return int(self._store.meta(_MARK) or 0)

    @property
    def copy(self) -> Copy | None:
        """Whether a full copy is being made, and which."""
        found: Copy | None = self._store.meta(_COPY)
        return found

    @property
    def receipts(self) -> list[str]:
        """Latest random texts that were given to the store."""
        return [text for key in (_RECEIPT, _PENDING) if (text := self._store.meta(key)) is not None]

    @property
    def is_confirmed(self) -> bool:
        """Whether the store has acknowledged a receipt."""
        return self._store.meta(_RECEIPT) is not None

    def put_mark(self, mark: int) -> None:
        """Note that everything up to a version is applied, and nothing beyond it."""
        self._store.put_meta(_MARK, mark)
        self._store.run("DELETE FROM meta WHERE key = ?", (_PARTLY,))

    @property
    def is_partly_applied(self) -> bool:
        """Whether a page was begun that ends after the mark."""
        return bool(self._store.meta(_PARTLY))

    def begin_page(self) -> None:
        """Note that a page is being applied, until the mark is put."""
        self._store.put_meta(_PARTLY, 1)

    def put_receipt(self, receipt: str, *, pending: bool) -> None:
        """Note what is being given to the store, and then that the store has it."""
        self._store.put_meta(_PENDING, receipt if pending else None)
        if not pending:
            self._store.put_meta(_RECEIPT, receipt)

    # ---- erased people

    def bury(self, id_: str, reason: Reason, version: int) -> None:
        """Note that the site has erased a person, at a version."""
        self._store.run("DELETE FROM fleet_erased WHERE id = ?", (id_,))
        self._store.run("INSERT OR REPLACE INTO fleet_tombstone VALUES (?, ?, ?)", (id_, reason, version))

    def is_erased(self, id_: str) -> bool:
        """Whether a person was erased, at the site, or here on request."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM fleet_tombstone WHERE id = ?)"
            " OR EXISTS (SELECT 1 FROM fleet_erased WHERE id = ? AND reason = 'request')"
        )
        return bool(self._store.value(query, (id_, id_)))

    def tombstones(self, ids: Sequence[str]) -> dict[str, Reason]:
        """Return why the site erased those of some people whom it erased, by id, as far as known."""
        found: dict[str, Reason] = {}
        for begin in range(0, len(ids), _AT_ONCE):
            some = ids[begin : begin + _AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT id, reason FROM fleet_tombstone WHERE id IN ({marks})"  # noqa: S608
            found |= dict(self._store.rows(query, some))
        return found

    def reason(self, id_: str) -> Reason | None:
        """Return why the site erased a person; None: it did not, as far as known."""
        found: Reason | None = self._store.value("SELECT reason FROM fleet_tombstone WHERE id = ?", (id_,))
        return found

    def drop_tombstones(self, horizon: int) -> None:
        """Forget erased people up to a version: the site does not know them any more either."""
        self._store.run("DELETE FROM fleet_tombstone WHERE version <= ?", (horizon,))

    # ---- a full copy

    def begin_copy(self, copy: Copy) -> None:
        """Begin a full copy of the site."""
        self._store.put_meta(_COPY, copy)
        self._store.run("DELETE FROM fleet_copied")
        self._store.run("DELETE FROM fleet_mean")
        self._store.run("DELETE FROM meta WHERE key = ?", (_SKIPPED,))
        self.put_mark(0)

    def copied(self, keys: Iterable[str]) -> None:
        """Note ids, and origins of exemplars, that the site has, during a full copy."""
        self._store.run_many("INSERT OR IGNORE INTO fleet_copied VALUES (?)", [(key,) for key in keys])

    def end_copy(self) -> None:
        """End a full copy."""
        self._store.run("DELETE FROM fleet_copied")
        self._store.put_meta(_COPY, None)

    @property
    def skipped(self) -> bool:
        """Whether people of the site are not here, or not with everything: they did not fit, or expired."""
        return bool(self._store.meta(_SKIPPED))

    def skip(self) -> None:
        """Note that people of the site are not here, or not with everything."""
        self._store.put_meta(_SKIPPED, 1)

    def take_back(self, id_: str) -> None:
        """Note that the site did not erase a person who expired here."""
        self._store.run("DELETE FROM fleet_tombstone WHERE id = ? AND reason = 'expired'", (id_,))
        self.skip()

    # ---- means of cameras

    def put_mean(self, camera: str, epoch: int, people: float, total: NDArray[np.float64]) -> None:
        """Store the mean of a view as the site has it; `camera` is ``DEVICE/CAMERA`` for another device."""
        self._store.run(
            "INSERT OR REPLACE INTO fleet_mean VALUES (?, ?, ?, ?)",
            (camera, epoch, float(people), total.astype("<f8").tobytes()),
        )

    def means(
        self, dimension: int, *, own: bool = False
    ) -> list[tuple[str, int, float, NDArray[np.float64]]]:
        """Return camera, epoch, number of people and sum `(D,)` of means of other devices, or of this one."""
        found = self._store.rows(
            "SELECT camera, epoch, people, total FROM fleet_mean WHERE (instr(camera, '/') = 0) = ?", (own,)
        )
        return [
            (camera, epoch, people, np.frombuffer(total, "<f8").astype(np.float64))
            for camera, epoch, people, total in found
            if len(total) == 8 * dimension
        ]
