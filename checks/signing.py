"""Signatures of models, made with a private key, in the format of OpenSSF Model Signing."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from model_signing import signing

from serving.errors import StartError
from serving.signature import SignedFiles, signed_reader
from stages import artifacts
from stages.errors import UserError, one_line


def sign(model: str, private_key: Path) -> None:
    """Sign all files in a model's folder. Raises UserError if the key cannot be used."""
    with artifacts.atomic_write(artifacts.signature(model)) as path:
        create_signer(private_key).set_hashing_config(SignedFiles()).sign(artifacts.model_folder(model), path)


def unsigned_models(models: list[str], private_key: Path) -> list[str]:
    """Return the models that have no valid signature by this key. Raises UserError if the key cannot be used."""
    create_signer(private_key)
    with public_key(private_key) as key:
        return [model for model in models if not is_signed(model, key)]


def create_signer(private_key: Path) -> signing.Config:
    """Return a signer. Raises UserError if the file is not a private key that it can use."""
    try:
        return signing.Config().use_elliptic_key_signer(private_key=private_key)
    except OSError:
        raise
    except Exception as error:  # of several libraries
        expected = "an unencrypted private key in PEM, of the curve P-256, P-384 or P-521"
        raise UserError(f"{private_key}: expected {expected}, got: {one_line(error)}") from error


@contextmanager
def public_key(private_key: Path) -> Iterator[Path]:
    """Yield a temporary file with the public key of a private key."""
    key = load_pem_private_key(private_key.read_bytes(), password=None).public_key()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key.pub"
        file.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        yield file


def is_signed(model: str, key: Path) -> bool:
    """Return whether a model has a valid signature by the owner of this public key."""
    try:
        signed_reader(artifacts.model_folder(model), key)
    except StartError:
        return False
    return True
