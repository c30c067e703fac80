"""What may be shown of an address: an allow-list. Everything else is replaced by `***`.

Cameras take logins in many places: before the host, in the path (`/user=admin_password=...`), in queries of
any key, in fragments. So shown are only a known scheme, the host, the port, and parts of the path that
consist of words and short numbers (`/Streaming/Channels/101`, `/live/ch00_0`, `/front_door`).

An address whose login has unescaped characters (`rtsp://admin:12/34@host`) can be read in two ways. Where
the better one is not clear, only the scheme is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

MASK = "***"
ESCAPING = (
    "inside user name and password write special characters percent-encoded: / as %2F, # as %23, ? as %3F,"
    " @ as %40, : as %3A, % as %25, a space as %20"
)
"""Advice for an address with unescaped characters."""

_SCHEME_NAMES = """
    rtsp rtsps rtspt rtspu rtp http https hls mqtt mqtts ws wss rtmp rtmps rtmpt srt udp tcp tls
    rist mms mmsh ftp ftps sftp ssh smb file whep webrtc postgres postgresql
"""
_SCHEMES = frozenset(_SCHEME_NAMES.split())
_KEYED = ("rtmp", "srt", MASK)
"""Schemes whose paths may end with the key of a stream."""
_ADDRESS = re.compile(r"(?P<scheme>\*{3}|[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_EMBEDDED = re.compile(rf"(?<![a-z0-9+.-])(?:{'|'.join(sorted(_SCHEMES, reverse=True))})://", re.IGNORECASE)
"""Start of an address inside a longer text."""
_SERVER = re.compile(
    r"(?P<host>\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[\w-]+(?:\.[\w-]+)*\.?)(?::(?P<port>\d{1,5}))?", re.IGNORECASE
)
_NUMERIC = re.compile(r"\[.*\]|\d+(?:\.\d+){3}|localhost", re.IGNORECASE)
"""A host that no user name looks like."""
_PARAMETER = re.compile(r"[/?&;,_][a-z][\w.-]*=[^=@]", re.IGNORECASE)
_PLAIN_LOGIN = re.compile(
    r"(?:[\w.~!$&'()*+,;=-]|%[0-9a-f]{2})*(?::(?:[\w.~!$&'()*+,;=:-]|%[0-9a-f]{2})*)?", re.I
)
_STOP = re.compile(r"[\s\"'<>`]")
"""Ends an address inside a longer text, unless a host with a login follows on the line."""
_AT = re.compile(r"(?<=\S)@(?=[\w\[])")
_TRAILING = ".,:;!?)]}"

_LOCAL_DOUBTS = re.compile(r"://|[@=]|\s!\s")
"""A path with one of these may be an address without scheme, or a pipeline: `user:password@host`."""

_PATH_WORDS = """
    av api asp aspx audio axis bcs bin cam camera cameras cams cgi ch chan channel channels crystal
    first flv fluent h hd hls high html index input isapi jpeg jpg live low main mainstream media
    mediainput medium mjpeg mjpg mpeg mpg multicast onvif php play playlist preview primary profile
    profiles psia quad realmonitor rtsp rtsph sd sdp second secondary server smp snapshot snap
    stream streaming streams sub substream tcp third track trackid tracks ts udp unicast usb v video
    videoinput videomain videosub videos webcam www
"""
_WORDS = frozenset(_PATH_WORDS.split())
"""Words in paths of cameras and media servers."""
_NEVER = re.compile(
    r"pass|pwd|pw$|key|token|secret|auth|login|user|usr|admin|cred|sid|sess|sign", re.IGNORECASE
)
"""Words after which, or inside which, a login is likely."""
_TOKEN = re.compile(r"m3u8|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SHORT, _LONGEST_WORD, _LONGEST_PART = 3, 12, 32
LEAST_SECRET = 4
"""Shorter texts are not looked for in messages: they would hide too much."""
_COMMON = _WORDS | {"admin", "default", "guest", "host", "password", "root", "user", "username", "viewer"}
"""Nor are these words."""
_PLACEHOLDERS = ("", "HOST:PORT", "HOST")
"""What follows the scheme in advice."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address, divided; parts that must not be shown are in `secrets` only.

    `host` is None where it is not certain, `path` holds `MASK` for each part that is not shown.
    """

    scheme: str = MASK
    host: str | None = None
    port: str | None = None
    path: tuple[str, ...] = ()
    login: str | None = None
    more: str = ""
    """Everything after the path: query, parameters, fragment."""
    secrets: frozenset[str] = frozenset()
    misread: bool = False
    """Programs read another host from it, since characters of the login are not escaped."""
    unusual: bool = False
    """Special characters of the login, or an @ after the host, are not escaped."""

    def __str__(self) -> str:
        """Return what may be shown."""
        server = self.host or MASK
        if self.port is not None:
            server += f":{self.port}"
        login = "" if self.login is None or self.host is None else f"{MASK}@"
        path = "".join(f"/{part}" for part in self.path)
        return f"{self.scheme}://{login}{server}{path}" + (f"?{MASK}" if self.more else "")

    @property
    def may_hold_password(self) -> bool:
        """Whether a part that is not shown may be a password, and not only e.g. the number of a channel."""
        values = [value for value in _values(self.more[1:]) if len(value) >= LEAST_SECRET]
        return (
            self.login is not None
            or self.host is None
            or MASK in self.path
            or not all(map(_is_harmless, values))
        )

    @property
    def harmless_path(self) -> list[str]:
        """Parts of the path that may be shown."""
        return [part for part in self.path if part and part != MASK]


def parse_address(address: str) -> Address | None:
    """Divide `scheme://...`; None for a text of another form. Never fails."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return None
    known = found["scheme"].lower() in _SCHEMES
    scheme = found["scheme"] if known else MASK
    rest = found["rest"]
    authority, tail = _cut(rest, "/?#")
    login, server = _divide_login(authority)
    readable = _server(server)
    misread, at_fault = False, "@" in tail
    if at_fault:
        misread, clear = _is_misread(authority, server, tail)
        if not clear:
            return _masked(scheme, rest, misread=misread)
        if misread:
            login, behind = rest.rpartition("@")[::2]
            server, tail = _cut(behind, "/?#")
            readable = _server(server)
    if readable is None:
        return _masked(scheme, rest, misread=misread)
    host, port = readable
    shown: tuple[str, ...]
    path, more = _cut(tail, "?#")
    if at_fault and not misread and ":" in authority and not _NUMERIC.fullmatch(host):
        port, shown = None, (MASK,)  # they may be a part of a password
    else:
        named = "/" not in more and "#" not in more and not scheme.lower().startswith(_KEYED)
        shown = _shown_path(path, named=named)
    parts = set(path.split("/")).difference(shown)
    words = [*parts, more[1:], *(value for part in (*parts, more) for value in _values(part))]
    words += [] if login is None else [login, *login.split(":", 1)[1:]]
    unusual = at_fault or (login is not None and not _PLAIN_LOGIN.fullmatch(login))
    secrets = _secrets([address, *words]) if words else frozenset()
    return Address(scheme, host, port, shown, login, more, secrets, misread=misread, unusual=unusual)


def public_address(address: str) -> str:
    """Return what may be shown of an address; `***` where it is none."""
    found = parse_address(address)
    return MASK if found is None else str(found)


def public_source(text: str) -> str:
    """Return what may be shown of a file, folder, device or address; `***` where it may be a login."""
    if parse_address(text) is not None and not text.lower().startswith("file:"):
        return public_address(text)
    return MASK if may_hide_login(text) else text


def broker_address(text: str) -> str:
    """Return the address of a broker with its scheme, which may be left out."""
    return text if "://" in text else f"mqtt://{text}"


def may_hide_login(path: str) -> bool:
    """Whether the text of a path may be an address without a known form."""
    return _LOCAL_DOUBTS.search(path.removeprefix("crops:").removeprefix("file://")) is not None


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask every address in a longer text, and `secrets`, which are replaced first.

    Where the end of an address is not certain, too much is masked rather than too little.
    """
    text = mask(text, secrets)
    if "://" not in text:
        return text
    return "\n".join(map(_redact_line, text.split("\n")))


def mask(text: str, secrets: Iterable[str]) -> str:
    """Replace secrets in a text, the longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, public_address(secret))
    return text


def _redact_line(line: str) -> str:
    starts = [found.start() for found in _EMBEDDED.finditer(line)]
    if not starts:
        return line
    pieces = [line[: starts[0]]]
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        piece = line[start:end]
        at = max((found.end() for found in _AT.finditer(piece)), default=0)
        stop = _STOP.search(piece, at)
        address = piece[: stop.start()] if stop else piece
        address = address.rstrip(_TRAILING)
        shown = address if address.partition("://")[2] in _PLACEHOLDERS else public_address(address)
        pieces += [shown, piece[len(address) :]]
    return "".join(pieces)


def _cut(text: str, marks: str) -> tuple[str, str]:
    """Divide before the first of some characters."""
    at = min((found for mark in marks if (found := text.find(mark)) >= 0), default=len(text))
    return text[:at], text[at:]


def _divide_login(authority: str) -> tuple[str | None, str]:
    login, at, server = authority.rpartition("@")
    return (login if at else None), server


def _server(text: str) -> tuple[str, str | None] | None:
    """Return host and port; None where they are not valid."""
    found = _SERVER.fullmatch(text)
    if found is None or int(found["port"] or 0) > 0xFFFF:
        return None
    return found["host"], found["port"]


def _is_misread(authority: str, server: str, tail: str) -> tuple[bool, bool]:
    """For an @ after the host: whether the login contains `/`, `?` or `#`, and whether that is certain.

    The alternative is an @ in path or query, as in `rtsp://cam/s?user=me@mail.example`.
    """
    apparent = _server(server)
    last = _server(_cut(tail.rpartition("@")[2], "/?#")[0])
    parameters = _PARAMETER.search(tail[: tail.rindex("@")]) is not None
    if apparent is None:  # `admin:pa/ss@host`
        alone = tail.count("@") == 1
        return True, last is not None and not parameters and (alone or _is_plain_server(last))
    if _NUMERIC.fullmatch(apparent[0]):
        return False, True
    if last is not None and ":" in authority and not parameters and _is_plain_server(last):
        return True, True
    return False, parameters


def _is_plain_server(server: tuple[str, str | None]) -> bool:
    """Whether a text is more likely a host than the end of a password."""
    host, port = server
    return port is not None or "." in host or _NUMERIC.fullmatch(host) is not None


def _masked(scheme: str, rest: str, *, misread: bool) -> Address:
    login, _, _ = rest.rpartition("@")
    words = [rest, login, *login.split(":", 1)[1:], *re.split(r"[/@:?#]", rest), *_values(rest)]
    return Address(scheme, secrets=_secrets(words), misread=misread, unusual="@" in rest)


def _shown_path(path: str, *, named: bool) -> tuple[str, ...]:
    """Return the parts up to the first that may be secret, and `MASK` for the rest.

    With `named`, the last part may be any name.
    """
    parts = path.split("/")[1:]
    count = next((at for at, part in enumerate(parts) if part and not _is_harmless(part)), len(parts))
    if named and count == len(parts) - 1 and _is_last(parts[count], parts[count - 1]):
        count += 1
    return tuple(parts) if count == len(parts) else (*parts[:count], MASK)


def _is_last(part: str, before: str) -> bool:
    """Whether the last part of a path is a name, or the number of a channel such as 1601."""
    is_channel = before.lower() in {"channel", "channels"} and re.fullmatch(r"\d{4}", part) is not None
    return is_channel or _is_name(part)


def _is_harmless(part: str) -> bool:
    """Whether a part of a path consists of words of `_WORDS`, single letters and numbers."""
    tokens = _tokens(part)
    letters = [token for token in tokens if token.isalpha()]
    single = sum(len(token) == 1 for token in letters)
    numbers = [token for token in tokens if token.isdigit()]
    return (
        bool(tokens)
        and single <= 2
        and len(numbers) <= 3
        and all(len(token) <= _SHORT or token in {"1080"} for token in numbers)
        and all(len(token) == 1 or token.lower() in _WORDS for token in letters)
    )


def _is_name(part: str) -> bool:
    """Whether the last part of a path is a name made of words, rather than a key or a password."""
    tokens = _tokens(part)
    if not tokens or _NEVER.search(part):
        return False
    if len(part) <= _SHORT:
        return True
    words = [token for token in tokens if token.isalpha()]
    numbers = [token for token in tokens if token.isdigit()]
    return (
        0 < len(words) <= 4
        and len(numbers) <= 2
        and all(len(token) <= _SHORT for token in numbers)
        and all(_is_word(token) for token in words)
    )


def _is_word(token: str) -> bool:
    if token.lower() in _WORDS:
        return True
    return _SHORT <= len(token) <= _LONGEST_WORD and re.search("[aeiouy]", token, re.IGNORECASE) is not None


def _tokens(part: str) -> list[str]:
    """Words and numbers of a part such as `h264Preview_01_main`; none where it has other characters."""
    if len(part) > _LONGEST_PART or not re.fullmatch(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*", part):
        return []
    return _TOKEN.findall(part)


def _values(part: str) -> Iterator[str]:
    """Values of `key=value` pairs, and words without a key, in a query or a part of a path."""
    for pair in re.split(r"[?&;#,]|_(?=[A-Za-z][A-Za-z0-9.-]*=)", part):
        key, equal, value = pair.partition("=")
        yield from (text := value if equal else key, text.partition(":")[2])


def _secrets(words: Iterable[str]) -> frozenset[str]:
    """Texts to look for in messages, also as they are written in URLs."""
    found: set[str] = set()
    for word in (word for word in words if MASK not in word):
        forms = {
            word,
            unquote(word),
            quote(word, safe=":/?#[]@!$&'()*+,;=%-._~", errors="replace"),
            quote(unquote(word), safe="", errors="replace"),
        }
        found |= {one for one in forms if len(one) >= LEAST_SECRET and one.lower() not in _COMMON}
    return frozenset(found)
