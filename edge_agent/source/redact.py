"""Keep credentials out of logs, errors and events."""

from __future__ import annotations

import re

__all__ = ["redact_url"]

_MASK = "***"
# `user:password@` up to the last @ of the authority. Spaces and quotes end a URL inside a longer text.
_USERINFO = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s\"'<>/?#]*@", re.IGNORECASE)
# A password with an unquoted slash, `rtsp://user:pa/ss@host/`: the text after the colon is no port number.
_SLASHED = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s\"'<>/?#@:]+:(?!\d+(?:[/?#]|$))[^\s\"'<>]*@", re.IGNORECASE
)
# Cameras with the login in the query: `?user=admin&password=secret`, or a token.
_QUERY = re.compile(
    r"(?P<key>[?&;](?:user|usr|username|login|pass|passwd|password|pwd|token|key|apikey|api_key|secret|auth)=)"
    r"[^\s\"'<>&;#]+",
    re.IGNORECASE,
)


def redact_url(text: str) -> str:
    """Mask the credentials of every URL in `text`: `rtsp://user:pw@host/1` becomes `rtsp://***@host/1`.

    `text` is a URL or a longer message. Of a malformed URL, too much is masked rather than too little.
    """
    text = _SLASHED.sub(rf"\g<scheme>{_MASK}@", text)
    text = _USERINFO.sub(rf"\g<scheme>{_MASK}@", text)
    return _QUERY.sub(rf"\g<key>{_MASK}", text)
