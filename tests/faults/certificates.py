"""Certificates for the tests of mutual TLS, made on the spot by openssl; nothing of them is kept."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

BROKER = """
listener {port} 127.0.0.1
cafile {certificates}/ca.pem
certfile {certificates}/server.pem
keyfile {certificates}/server.key
require_certificate true
use_identity_as_username true
acl_file {folder}/acl
max_inflight_messages 0
max_queued_messages 0
user root
"""


@dataclass(frozen=True)
class Certificates:
    """A folder with `ca.pem` and a `.pem` and `.key` for server, jx01, jx99, watcher, expired and foreign."""

    folder: Path

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    def file(self, name: str) -> str:
        return str(self.folder / name)


def make(folder: Path) -> Certificates:
    """Two authorities, of which the broker trusts one, and their certificates."""
    folder.mkdir(parents=True)
    _authority(folder, "ca")
    _authority(folder, "other")
    _signed(folder, "server", "ca", names="IP:127.0.0.1,DNS:localhost")
    for name in ("jx01", "jx99", "watcher"):
        _signed(folder, name, "ca")
    _signed(folder, "foreign", "other", subject="jx01")
    _signed(folder, "expired", "ca", subject="jx01", expired=True)
    return Certificates(folder)


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def _authority(folder: Path, name: str) -> None:
    _key(folder, name)
    words = ["req", "-x509", "-new", "-key", f"{name}.key", "-out", f"{name}.pem", "-days", "2"]
    _openssl(folder, *words, "-subj", f"/CN=test {name}", "-addext", "basicConstraints=critical,CA:TRUE")


def _key(folder: Path, name: str) -> None:
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")


def _signed(
    folder: Path, name: str, authority: str, *, subject: str = "", names: str = "", expired: bool = False
) -> None:
    _key(folder, name)
    subject = subject or ("127.0.0.1" if name == "server" else name)
    _openssl(folder, "req", "-new", "-key", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
    (folder / f"{name}.ext").write_text(
        f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n"
    )
    if expired:
        _sign_expired(folder, name, authority)
        return
    words = ["x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
    _openssl(
        folder, *words, "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"
    )


def _sign_expired(folder: Path, name: str, authority: str) -> None:
    """`openssl x509` cannot sign for the past before version 3.4; `openssl ca` can."""
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("1000\n")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n"
        "policy=p\n[p]\ncommonName=supplied\n"
    )
    words = [
        "ca",
        "-batch",
        "-config",
        "ca.conf",
        "-cert",
        f"{authority}.pem",
        "-keyfile",
        f"{authority}.key",
    ]
    dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
    _openssl(folder, *words, "-in", f"{name}.csr", "-out", f"{name}.pem", "-notext", *dates)
