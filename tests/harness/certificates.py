"""Certificates and keys in PEM, created by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    not shutil.which("openssl"), reason="openssl is not installed; it creates the certificates"
)

DATED = """
[ca]
default_ca=d
[d]
database={folder}/index
serial={folder}/serial
new_certs_dir={folder}
default_md=sha256
policy=p
x509_extensions=x
[p]
commonName=supplied
[x]
subjectAltName=IP:127.0.0.1
basicConstraints=CA:TRUE
"""


def authority(folder: Path, name: str, known_as: str = "IP:127.0.0.1") -> Path:
    """Create a self-signed certificate and return its PEM file. The key is beside it, and both are in `name`.pem."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
            f"subjectAltName={known_as}", "-keyout", folder / f"{name}.key", "-out",
            folder / f"{name}.crt")  # fmt: skip
    return write_pem(folder, name)


def expired(folder: Path, name: str) -> Path:
    """Create a certificate for 127.0.0.1 that was valid in January 2020, and return its PEM file."""
    (folder / "index").touch()
    (folder / "serial").write_text("01")
    (folder / "dated").write_text(DATED.format(folder=folder))
    request, key, made = (folder / f"{name}.{kind}" for kind in ("csr", "key", "crt"))
    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    openssl("ca", "-batch", "-notext", "-selfsign", "-config", folder / "dated", "-keyfile", key, "-in", request,
            "-out", made, "-startdate", "20200101000000Z", "-enddate", "20200201000000Z")  # fmt: skip
    return write_pem(folder, name)


def openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write_pem(folder: Path, name: str) -> Path:
    certificate = folder / f"{name}.crt"
    (folder / f"{name}.pem").write_bytes((folder / f"{name}.key").read_bytes() + certificate.read_bytes())
    return certificate


def encrypted(key: Path, password: str) -> Path:
    """Encrypt a key, as PKCS#8, and return the new file."""
    made = key.with_suffix(".encrypted")
    openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", key, "-out", made, "-passout", f"pass:{password}")
    return made
