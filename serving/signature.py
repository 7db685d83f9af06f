"""Signatures of models, in the format of OpenSSF Model Signing.

https://github.com/sigstore/model-transparency
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from model_signing import hashing, verifying
from model_signing.hashing import PathLike
from model_signing.manifest import Manifest

from serving.errors import StartError, one_line
from serving.models import ReadFile, read_bytes

FILE = "model.sig"  # in the model's folder, detached from the files that it signs


class SignedFiles(hashing.Config):
    """Hash the files of a model's folder but the signature, also behind symbolic links, and keep their digests."""

    def __init__(self) -> None:
        """Expect a call of `hash`."""
        super().__init__()  # type: ignore[no-untyped-call]  # the library does not annotate it
        self.digests: dict[str, str] = {}  # SHA-256 by path in the folder
        self.set_ignored_paths(paths=[FILE]).set_allow_symlinks(True)

    def hash(self, model_path: PathLike, *, files_to_hash: Iterable[PathLike] | None = None) -> Manifest:
        """Return the manifest that the library compares with the signature."""
        manifest = super().hash(model_path, files_to_hash=files_to_hash)
        self.digests = {file.identifier: file.digest.digest_hex for file in manifest.resource_descriptors()}
        return manifest


def signed_reader(folder: Path, public_key: Path, read_file: ReadFile = read_bytes) -> ReadFile:
    """Verify that the key's owner has signed a model's folder, and return a function that reads what was signed.

    The signature covers every file but git's own, such as .gitignore, and no others may be there. The function raises
    StartError if a file has changed since, and so does this one if there is no valid signature.
    """
    files, signature = SignedFiles(), folder / FILE
    verifier = create_verifier(public_key).set_hashing_config(files)
    try:
        verifier.verify(folder, signature)
    except Exception as error:  # of several libraries
        raise StartError(f"{signature}: expected a valid signature by {public_key}, got: {one_line(error)}") from error

    def read_signed(file: Path) -> bytes:
        content = read_file(file)
        if hashlib.sha256(content).hexdigest() != files.digests.get(file.relative_to(folder).as_posix()):
            raise StartError(f"{file}: expected the content that was signed, got another")
        return content

    return read_signed


def create_verifier(public_key: Path) -> verifying.Config:
    """Return a verifier. Raises StartError if the file is not a public key that it can use."""
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # of several libraries
        expected = "a public key in PEM, of the curve P-256, P-384 or P-521"
        raise StartError(f"{public_key}: expected {expected}, got: {one_line(error)}") from error
