"""Settings of the fleet."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr, model_validator

from edge_agent.core.sections import Section, about


class FleetSettings(Section):
    """Identities shared with other devices of the site. See `docs/fleet.md`."""

    enabled: bool = about(
        False, "share embeddings and names with the devices of this site; nothing leaves the device otherwise"
    )
    store: str | None = about(None, "postgresql://ROLE@HOST:PORT/DATABASE, without a password", repr=False)
    password: SecretStr | None = about(None, "prefer the credential file fleet__password")
    ca_file: Path | None = about(None, "CA certificates, PEM; a store on another machine needs it")
    cert_file: Path | None = about(None, "client certificate, PEM")
    key_file: Path | None = about(None, "key of the client certificate, PEM")
    ask_ms: int = about(
        300, "longest wait for the store before a stranger is enrolled; 0: it is not asked", ge=0, le=5000
    )
    sync_s: float = about(2.0, "interval at which changes are exchanged", ge=0.1, le=3600)

    @model_validator(mode="after")
    def _complete(self) -> FleetSettings:
        if self.enabled and self.store is None:
            raise ValueError("enabled needs store")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self
