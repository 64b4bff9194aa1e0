"""Certificates for the tests, made by the command `openssl`."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority of our own, which trusts nobody else and is trusted by nobody else.

    Args:
        folder: where its files are written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_KEY, "-keyout", self._key, "-out", self.certificate, *_of(name))

    def issue(self, name: str, alternative: str) -> tuple[Path, Path]:
        """Certificate and key for `alternative`, such as ``IP:127.0.0.1``."""
        folder = self.certificate.parent
        certificate, key, request, extension = (
            folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr", "ext")
        )
        extension.write_text(f"subjectAltName={alternative}\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, *_of(name))
        by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *by, "-extfile", extension, "-out", certificate)
        return certificate, key


def _of(name: str) -> tuple[str, str]:
    return "-subj", f"/CN={name}"


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
