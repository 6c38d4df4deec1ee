"""Detached Ed25519 signatures of archives: ``x.hello.sig`` beside ``x.hello``.

A signature covers the ``id``, the data set's name and its version. The id fixes every byte of the
archive, so one small signature also authenticates ranged reads, without reading the whole file;
name and version let a reader refuse the right key on the wrong data set, or an old version. A
signature inside the archive was rejected: one content would have two encodings.

Trust is explicit: the caller supplies the public key. There is no key in the file, no trust on
first use and no key server. Cryptography comes from the package ``cryptography``, imported on use
(extra ``sign``). ``model-signing`` signs any single file and can be used as well.

The signed message is built from the *archive*, never from the signature file, whose fields only
make a refusal readable.
"""

from __future__ import annotations

import importlib.util
import os
import re
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.fields import Digest, Name  # noqa: TC001 - msgspec reads them
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.storage.local_files import read_file, write_small_file
from hellofmt.archive.storage.source import LocalSource, display_name, is_url
from hellofmt.errors import TrustError, UserInputError, foreign_text, printable, target_exists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    from hellofmt.archive.read.archive import Archive
    from hellofmt.archive.storage.source import Source

_Key = TypeVar("_Key")

_MAX_BYTES = 4096
_DOMAIN = "hello/sig/v1"
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,7}")


class Signature(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a ``.sig`` file, which ``sign_archive`` writes: at most 4 KiB of JSON.

    Attributes:
        algorithm: always ``ed25519``.
        id: the archive's ``sha256:...``.
        key_id: ``sha256:`` + SHA-256 of the 32 raw bytes of the public key.
        name: the data set's name.
        signature: 64 bytes as 128 lower-case hex digits.
        version: the data set's version.
    """

    algorithm: Literal["ed25519"]
    id: Digest
    key_id: Digest
    name: Name
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}(?![\s\S])")]
    version: Name


def signature_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the signature of ``path``: ``path`` + ``.sig``.

    Example:
        >>> signature_path("photos.hello").name
        'photos.hello.sig'
    """
    return Path(f"{os.fspath(path)}.sig")


def create_key(path: str | os.PathLike[str]) -> str:
    """Write a new private key to ``path`` (PEM, mode 0600) and its public key to ``path.pub``.

    Neither may exist. Returns the key id, ``sha256:...``.

    Raises:
        HelloIOError: E_TARGET, a file exists.
        UserInputError: E_OPTION, the package ``cryptography`` is missing.
        OSError: the files cannot be written.

    Example:
        >>> create_key("you.pem")[:7]
        'sha256:'
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    private, public = Path(path), Path(f"{os.fspath(path)}.pub")
    for target in (private, public):
        if os.path.lexists(target):
            raise target_exists(target, can_replace=False)
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_small_file(private, secret, mode=0o600)
    write_small_file(
        public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return _key_id(key.public_key())


def sign_archive(
    path: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    target: str | os.PathLike[str] | None = None,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Signature:
    """Verify an archive in full, then write its detached signature.

    Args:
        path: the archive.
        key: private Ed25519 key in PEM form, not encrypted.
        target: the signature file; None means ``path`` + ``.sig``.
        force: replace an existing signature.
        limits: limits for reading the archive.

    Returns:
        The signature.

    Raises:
        HelloError: the archive fails its verification; E_TARGET, the signature exists.
        UserInputError: E_OPTION, not an Ed25519 key, or the package ``cryptography`` is missing.
        OSError: a file is missing or cannot be written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.archive import create_key, verify_signature
        >>> key_id = create_key("me.pem")
        >>> _ = sign_archive("photos.hello", "me.pem")
        >>> with hellofmt.open("photos.hello") as archive:
        ...     verify_signature(archive, "me.pem.pub").key_id == key_id
        True
    """
    from hellofmt.archive.read.open import open_archive
    from hellofmt.archive.read.verify import verify_archive

    signer = _private_key(Path(key))
    out = signature_path(path) if target is None else Path(target)
    if not force and os.path.lexists(out):
        raise target_exists(out)
    # A signature vouches for bytes, so never sign a damaged archive.
    verified = verify_archive(path, limits=limits)
    # The path may name another file by now.
    with open_archive(path, expect=verified.id, limits=limits) as file:
        message = _message(file)
        dataset = file.manifest.dataset
    signature = Signature(
        algorithm="ed25519",
        id=verified.id,
        key_id=_key_id(signer.public_key()),
        name=dataset.name,
        signature=signer.sign(message).hex(),
        version=dataset.version,
    )
    write_small_file(out, canonical(msgspec.to_builtins(signature)), force=force)
    return signature


def verify_signature(
    file: Archive,
    key: str | os.PathLike[str],
    *,
    signature: str | os.PathLike[str] | None = None,
    least_version: str | None = None,
) -> Signature:
    """Check that the owner of ``key`` signed this archive; see ``sign_archive``.

    Args:
        file: the open archive; its id then guards every later read.
        key: public Ed25519 key in PEM form.
        signature: the signature file; None means the archive's path or URL + ``.sig``.
        least_version: lowest acceptable version of the data set, such as ``1.2.0``.

    Returns:
        The signature; show its ``key_id`` to the user.

    Raises:
        TrustError: there is no signature (E_SIG_MISSING); it is malformed or invalid (E_SIG_BAD);
            it is for another archive or by another key (E_SIG_IDENTITY); the version is older
            than ``least_version`` (E_ROLLBACK).
        UserInputError: the key is not an Ed25519 key, or the package ``cryptography`` is missing
            (E_OPTION).
        OSError: the key cannot be read.
    """
    public = _public_key(Path(key))
    if signature is None and is_url(file.path):
        # The query belongs to the request, not to the name.
        name, mark, query = file.path.partition("?")
        claimed = _read_signature(f"{name}.sig{mark}{query}", file.storage_options)
    else:
        path = Path(signature or signature_path(file.path))
        claimed = _read_signature(os.fspath(path), {})
    dataset = file.manifest.dataset
    known = (
        ("id", claimed.id, file.id),
        ("name", claimed.name, dataset.name),
        ("version", claimed.version, dataset.version),
        ("key", claimed.key_id, _key_id(public)),
    )
    for what, got, expected in known:
        if got != expected:
            found = f"expected {printable(expected)}, got {printable(got)}"
            text = f"the signature is for another {what}; {found}"
            raise TrustError.make("E_SIG_IDENTITY", text)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(bytes.fromhex(claimed.signature), _message(file))
    except InvalidSignature:
        text = f"the signature is not valid under key {claimed.key_id}"
        raise TrustError.make("E_SIG_BAD", text) from None
    if least_version is not None:
        _check_version(dataset.version, least_version)
    return claimed


def _check_version(version: str, least: str) -> None:
    """Refuse a version below ``least``, comparing dotted numbers part by part."""
    if not _VERSION.fullmatch(least):
        text = f"least version: expected dotted numbers, got `{printable(least)}`"
        raise UserInputError.make("E_OPTION", text)
    if not _VERSION.fullmatch(version):
        text = f"version `{printable(version)}` cannot be compared; expected at least {least}"
        raise TrustError.make("E_ROLLBACK", text)
    # 1.2 and 1.2.0 are the same version.
    parts = zip_longest(version.split("."), least.split("."), fillvalue="0")
    have, want = zip(*((int(one), int(other)) for one, other in parts), strict=True)
    if have < want:
        text = f"too old; expected version {least} or newer, got {version}"
        raise TrustError.make("E_ROLLBACK", text)


def _message(file: Archive) -> bytes:
    """Build the signed message: domain, id, name and version, one per line, no final line feed."""
    dataset = file.manifest.dataset
    return "\n".join((_DOMAIN, file.id, dataset.name, dataset.version)).encode()


def _read_signature(path: str, options: Mapping[str, Any]) -> Signature:
    """Read and parse a signature file or URL; anything but the canonical form is E_SIG_BAD."""
    source: Source
    try:
        if is_url(path):
            from hellofmt.archive.storage.remote import open_source

            source = open_source(path, options)
        else:
            source = LocalSource(path)
    except FileNotFoundError:
        text = f"no signature; expected `{printable(display_name(path))}`"
        raise TrustError.make("E_SIG_MISSING", text) from None
    try:
        data = source.read(0, min(source.size, _MAX_BYTES + 1))
    finally:
        source.close()
    if len(data) > _MAX_BYTES:
        raise TrustError.make("E_SIG_BAD", f"signature file: expected at most {_MAX_BYTES} bytes")
    try:
        signature = msgspec.json.decode(data, type=Signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError.make("E_SIG_BAD", f"not a signature file: {foreign_text(error)}") from None
    if canonical(msgspec.to_builtins(signature)) != data:
        raise TrustError.make("E_SIG_BAD", "signature file: expected canonical JSON")
    return signature


def _require_cryptography() -> None:
    """Name the missing package in one line, rather than fail deep inside an import."""
    if importlib.util.find_spec("cryptography") is None:
        text = "signatures need the package `cryptography`; pip install 'hellofmt[sign]'"
        raise UserInputError.make("E_OPTION", text)


def _private_key(path: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    load = partial(load_pem_private_key, password=None)
    return _read_key(path, load, Ed25519PrivateKey, "private")


def _public_key(path: Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return _read_key(path, load_pem_public_key, Ed25519PublicKey, "public")


def _read_key(path: Path, load: Callable[[bytes], object], kind: type[_Key], name: str) -> _Key:
    from cryptography.exceptions import UnsupportedAlgorithm

    text = f"expected a {name} Ed25519 key in PEM form"
    try:
        key = load(read_file(path))
        if isinstance(key, kind):
            return key
    except TypeError:
        text = "encrypted; expected a PEM key without passphrase"
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise UserInputError.make("E_OPTION", f"`{printable(path)}`: {text}")


def _key_id(key: Ed25519PublicKey) -> str:
    return sha256(key.public_bytes_raw())
