"""A certificate of ones own for 127.0.0.1."""

import shutil
import subprocess
from pathlib import Path

import pytest


def certificate(folder: Path) -> Path:
    """Make a self-signed `public.crt` in the folder, named as MinIO wants it, with `private.key` beside."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    folder.mkdir(exist_ok=True)
    made = folder / "public.crt"
    argv = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    # Temporal's client takes no authority's certificate for a server's.
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    argv += ["-subj", "/CN=127.0.0.1", "-days", "2"]
    argv += ["-keyout", str(folder / "private.key"), "-out", str(made)]
    subprocess.run(argv, check=True, capture_output=True)
    return made
