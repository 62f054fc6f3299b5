"""Keys and certificates by file, and the envelope that they sign (DSSE). No torch.

Signing and verifying are securesystemslib's; keys and certificates are opened by cryptography.
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import JsonValue

from remnant.errors import UserError, first_line

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

PAYLOAD_TYPE = "application/vnd.in-toto+json"
# Where the password of a private key stands; on a command line others could read it.
PASSWORD = "REMNANT_KEY_PASSWORD"
# Bits of an RSA key. Source: NIST SP 800-131A, revision 2, section 3.
LEAST_RSA = 2048
INSTALL = "Install it in Remnant's folder with: pip install -e '.[sign]'"

Read = TypeVar("Read")


class Refused(Exception):
    """What was to be vouched for, or was vouched for, does not hold; why, one sentence each."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(" ".join(reasons))
        self.reasons = reasons


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError("Signatures need securesystemslib and cryptography.", INSTALL) from error


def _opened(path: Path, what: str, read: Callable[[bytes], Read]) -> Read:
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no {what} in PEM, or its password is wrong ({first_line(error)}).",
            f"A password stands in the variable {PASSWORD}.",
        ) from error


def private_key(path: Path) -> "Signer":
    """A signer (Ed25519, ECDSA or RSA).

    Raises:
        UserError: no such file, another kind of file, or no library.
    """
    serialization = _library("cryptography.hazmat.primitives.serialization")
    signer = _library("securesystemslib.signer")
    password = os.environ.get(PASSWORD, "").encode() or None
    key = _opened(path, "private key", lambda t: serialization.load_pem_private_key(t, password))
    _check_length(path, key)
    return _usable(path, lambda: signer.CryptoSigner(key))


def public_key(path: Path) -> "Key":
    """A key that verifies.

    Raises:
        UserError: as ``private_key``.
    """
    serialization = _library("cryptography.hazmat.primitives.serialization")
    return _key(path, _opened(path, "public key", serialization.load_pem_public_key))


def certified_key(path: Path, now: datetime) -> "Key":
    """The key of a certificate, which must hold at this time.

    Raises:
        UserError: as ``private_key``.
        Refused: the certificate has ended, or has not begun.
    """
    x509 = _library("cryptography.x509")
    certificate = _opened(path, "certificate", x509.load_pem_x509_certificate)
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > ends:
        raise Refused(f"The certificate {path} ended on {ends:%Y-%m-%d %H:%M} UTC.")
    if now < begins:
        raise Refused(f"The certificate {path} begins only on {begins:%Y-%m-%d %H:%M} UTC.")
    return _key(path, certificate.public_key())


def _key(path: Path, key: Any) -> "Key":
    signer = _library("securesystemslib.signer")
    _check_length(path, key)
    return _usable(path, lambda: signer.SSlibKey.from_crypto(key))


def _check_length(path: Path, key: Any) -> None:
    """Refuse an RSA key that could be broken; the others have one length, which is enough."""
    kinds = _library("cryptography.hazmat.primitives.asymmetric.rsa")
    rsa = isinstance(key, kinds.RSAPrivateKey | kinds.RSAPublicKey)
    if rsa and key.key_size < LEAST_RSA:
        raise UserError(
            f"{path} is an RSA key of {key.key_size} bits, which no signature should rest on.",
            f"Use one of {LEAST_RSA} bits or more, or Ed25519.",
        )


def _usable(path: Path, made: Callable[[], Any]) -> Any:
    unsupported = _library("securesystemslib.exceptions").Error
    try:
        return made()
    except (ValueError, TypeError, unsupported) as error:
        raise UserError(
            f"{path} is a key of a kind that signs nothing here ({first_line(error)}).",
            "Use Ed25519, ECDSA (P-256, P-384, P-521) or RSA.",
        ) from error


def signed(statement: Mapping[str, JsonValue], signer: "Signer") -> str:
    """A statement in an envelope, as the text of a file."""
    dsse = _library("securesystemslib.dsse")
    payload = json.dumps(statement, indent=1, allow_nan=False).encode()
    envelope = dsse.Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1) + "\n"


def believed(text: bytes, key: "Key") -> dict[str, JsonValue]:
    """The statement of an envelope that a key has signed.

    Raises:
        Refused: the envelope is damaged, was changed, or another key signed it.
    """
    dsse, faults = _library("securesystemslib.dsse"), _library("securesystemslib.exceptions")
    try:
        envelope = dsse.Envelope.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, faults.Error) as error:
        raise Refused("The statement is damaged: it is no signed envelope.") from error
    if key.keyid not in envelope.signatures:
        raise Refused(f"The statement was signed by another key than {key.keyid[:16]}.")
    try:
        envelope.verify([key], 1)
        statement = json.loads(envelope.payload)
    except (faults.Error, ValueError, RecursionError) as error:
        raise Refused("The statement was changed after it was signed.") from error
    if envelope.payload_type != PAYLOAD_TYPE or not isinstance(statement, dict):
        raise Refused("What was signed is no statement of in-toto.")
    return statement


def now() -> datetime:
    """The time by which certificates and statements are judged."""
    return datetime.now(UTC)
