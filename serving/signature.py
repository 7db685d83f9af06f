"""Signatures of models, in the format of OpenSSF Model Signing.

https://github.com/sigstore/model-transparency
"""

from pathlib import Path

from model_signing import hashing, verifying

from serving.errors import StartError

FILE = "model.sig"  # in the model's folder, detached from the files that it signs


def verify_signature(folder: Path, public_key: Path) -> None:
    """Verify that the key's owner has signed a model's folder: every file in it, and no others.

    Raises StartError if not, or if there is no signature.
    """
    signature = folder / FILE
    files = hashing.Config().set_ignored_paths(paths=[FILE])
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        verifier.set_hashing_config(files).verify(folder, signature)
    except Exception as error:  # of several libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StartError(f"{signature}: expected a valid signature by {public_key}, got: {reason}") from error
