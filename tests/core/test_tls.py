"""Certificates of private authorities, as every supported Python takes them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from edge_agent.core.tls import client_context

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=plant"
AUTHORITY = f"req -x509 {KEY} -days 2 -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE"
REQUEST = f"req {KEY} -keyout s.key -out s.csr"
CERTIFICATE = "x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out s.pem"


def made(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with an authority and the certificate of `localhost`, with no extension but its names."""
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost\n")
    for words in (AUTHORITY, REQUEST, CERTIFICATE):
        made(tmp_path, words)
    return tmp_path


def shaken(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """Let both ends of a connection in memory greet each other; SSLError where the client refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert not ends


def test_a_certificate_without_extensions_is_taken_and_names_are_checked(plain: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(plain / "s.pem", plain / "s.key")
    client = client_context(plain / "ca.pem")
    shaken(client, server, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shaken(client, server, "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(client_context(None), server, "localhost")
    assert client.minimum_version == ssl.TLSVersion.TLSv1_2
