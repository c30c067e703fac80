"""Users of the page: a file with their roles and the hashes of their passwords; and one-time links.

scrypt with N=2^15, r=8, p=3 (OWASP's password storage cheat sheet) takes 32 MiB and a quarter of a second on
an Orin's core.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.files import read_object
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.page_settings import PageSettings

Role: TypeAlias = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
USERS_FILE = "page-users.json"
"""In the state folder."""
LINK_FILE = "page-link.json"
"""In the state folder: the digest of the one link that is valid."""
CREDENTIAL = "page_users"
"""Name of the credential file of the service."""
LEAST_PASSWORD, LONGEST_PASSWORD = 10, 200
"""Characters."""
LINK_S = 600.0
"""How long a link is valid."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,31}")
_N, _R, _P = 1 << 15, 8, 3
_MOST_USERS = 200
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - only compared


@dataclass(frozen=True, slots=True)
class User:
    """One user; `digest` is scrypt of the password with `salt`, empty for a user of a link."""

    name: str
    role: Role
    salt: bytes = b""
    digest: bytes = b""


def check_name(name: str) -> str:
    """Return a login name; InputError: it cannot be one."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "a login name has 1 to 32 of A-Z, a-z, 0-9 and . _ @ -, and begins with a letter or digit"
        )
    return name


def hashed(name: str, role: Role, password: str) -> User:
    """Return a user with the hash of a password; InputError: the name or the password cannot be used."""
    if not LEAST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InputError(f"a password has {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if password.lower() == name.lower() or len(set(password)) < 4:
        raise InputError("this password is too easy to guess")
    salt = secrets.token_bytes(16)
    return User(check_name(name), role, salt, _scrypt(password, salt))


def _scrypt(password: str, salt: bytes) -> bytes:
    text = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=_N, r=_R, p=_P, maxmem=64 << 20, dklen=32)


def read_users(path: Path) -> dict[str, User]:
    """Return the users of a file by name, none where it is missing; InputError: it is damaged."""
    try:
        found = read_object(path)
    except MissingFile:
        return {}
    users = {}
    try:
        for name, one in list(found["users"].items())[:_MOST_USERS]:
            if one["role"] not in ROLES or not _NAME.fullmatch(name):
                raise ValueError(name)  # noqa: TRY301
            salt, digest = bytes.fromhex(one["salt"]), bytes.fromhex(one["scrypt"])
            users[name] = User(name, cast("Role", one["role"]), salt, digest)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is damaged; set the passwords again with `edge-agent page password`"
        ) from None
    return users


def write_users(path: Path, users: dict[str, User]) -> None:
    """Replace the file of users, mode 0600."""
    listed = {
        one.name: {"role": one.role, "salt": one.salt.hex(), "scrypt": one.digest.hex()}
        for one in sorted(users.values(), key=lambda one: one.name)
    }
    write_json_atomic(path, {"version": 1, "users": listed}, mode=0o600)


@dataclass(slots=True)
class Users:
    """The users of a file, which is read again when it changes."""

    path: Path
    _users: dict[str, User] = field(default_factory=dict)
    _state: tuple[int, int, int] | None = None
    _nobody: User = field(default_factory=lambda: User("", "viewer", secrets.token_bytes(16), bytes(32)))

    def all(self) -> dict[str, User]:
        """Return all users by name; InputError: the file is damaged."""
        try:
            found = self.path.stat()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            state = None
        if state is None:
            self._users = {}
        elif state != self._state:
            self._users = read_users(self.path)
        self._state = state
        return self._users

    def has(self, user: User) -> bool:
        """Whether a user is still there, with the same password and role."""
        return self.all().get(user.name) == user

    def check(self, name: str, password: str) -> User | None:
        """Return the user of a name and password; None: one is wrong. Takes as long for an unknown name."""
        user = self.all().get(name, self._nobody)
        given = _scrypt(password[: LONGEST_PASSWORD + 1], user.salt)
        same = hmac.compare_digest(given, user.digest)
        return user if same and user is not self._nobody else None


def make_link(state: Path, role: Role = "operator") -> str:
    """Return the token of a link that logs in once within `LINK_S`; the former one is void."""
    token = secrets.token_urlsafe(32)
    path = state / LINK_FILE
    document = {
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "role": role,
        "until": time.time() + LINK_S,
    }
    write_json_atomic(path, document, mode=0o600)
    owner = state.stat()
    if owner.st_uid != os.geteuid():  # root, for the user of the service
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    return token


def link_address(page: PageSettings, token: str) -> str:
    """Return the address of a link. The token is in the fragment, which a browser does not send."""
    scheme = "http" if page.cert_file is None else "https"
    name = page.hosts[0] if page.hosts else page.address
    if name in _EVERY_ADDRESS:
        name = socket.gethostname()
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{page.port}/#link={token}"


def take_link(state: Path, token: str) -> User | None:
    """Return the user of a link, which is void from now on; None: it is wrong, used or too old."""
    path = state / LINK_FILE
    try:
        found: dict[str, Any] = read_object(path)
        expected, role, until = str(found["sha256"]), found["role"], float(found["until"])
    except (InputError, KeyError, TypeError, ValueError):
        return None
    given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
    if not hmac.compare_digest(given, expected):
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    left = until - time.time()
    return User("link", cast("Role", role), digest=b"") if role in ROLES and 0 < left <= LINK_S else None
