"""Signatures: the right key on the right archive, and nothing else, verifies."""

import json
import stat
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from hellofmt.archive import (
    create_key,
    encode_image,
    open_archive,
    sign_archive,
    signature_path,
    verify_signature,
)
from hellofmt.archive.write.draft import Texts
from hellofmt.errors import CorruptError, HelloIOError, TrustError, UserInputError
from hellofmt.sources import pack_archive


def write_archive(root, file_name, **texts):
    for label in range(2):
        folder = root / "images" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4), 100 * label, np.uint8)
        (folder / "a.png").write_bytes(encode_image(pixels, "png"))
    pack_archive(root / "images", root / file_name, layout="files", texts=Texts(**texts))
    return root / file_name


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path, "x.hello", version="1.2.0")


@pytest.fixture
def key(tmp_path):
    create_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def public(key):
    return key.with_name("key.pub")


@pytest.fixture
def signed(archive, key):
    sign_archive(archive, key)
    return archive


def check(path, public, **options):
    with open_archive(path) as file:
        return verify_signature(file, public, **options)


def refusal(path, public, **options):
    with pytest.raises(TrustError) as caught:
        check(path, public, **options)
    assert caught.value.exit_code == 7
    return str(caught.value)


def test_signed_and_verified(signed, public):
    signature = check(signed, public)
    with open_archive(signed) as file:
        assert (signature.id, signature.name, signature.version) == (file.id, "images", "1.2.0")


def test_the_bytes_that_are_signed(signed, key):
    # By hand, from the format's description and nothing of ours.
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    written = json.loads(signature_path(signed).read_bytes())
    message = f"hello/sig/v1\n{written['id']}\nimages\n1.2.0".encode()
    assert written["signature"] == private.sign(message).hex()
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":")).encode()
    assert signature_path(signed).read_bytes() == canonical
    assert set(written) == {"algorithm", "id", "key_id", "name", "signature", "version"}


def test_key_files(tmp_path, key, public):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*key` exists"):
        create_key(key)
    (tmp_path / "other.pub").touch()
    with pytest.raises(HelloIOError, match=r"E_TARGET: `.*other.pub` exists"):
        create_key(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_openssl_keys_work(archive, tmp_path):
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "o.pem"]
    try:
        subprocess.run(made, check=True, capture_output=True)  # noqa: S603
    except FileNotFoundError:
        pytest.skip("no openssl here")
    out = ["openssl", "pkey", "-in", tmp_path / "o.pem", "-pubout", "-out", tmp_path / "o.pub"]
    subprocess.run(out, check=True, capture_output=True)  # noqa: S603
    sign_archive(archive, tmp_path / "o.pem")
    assert check(archive, tmp_path / "o.pub").name == "images"


def test_missing(archive, public):
    text = refusal(archive, public)
    assert text.startswith("E_SIG_MISSING: no signature; expected")


def test_other_key(signed, tmp_path):
    create_key(tmp_path / "other")
    text = refusal(signed, tmp_path / "other.pub")
    assert text.startswith("E_SIG_IDENTITY: the signature is for another key; expected sha256:")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"version": "1.2.0", "extras": {"x_a": "b"}}, "id"),
        ({"version": "1.3.0"}, "id"),
    ],
)
def test_other_archive(signed, public, tmp_path, options, what):
    other = write_archive(tmp_path, "y.hello", **options)
    text = refusal(other, public, signature=signature_path(signed))
    assert f"E_SIG_IDENTITY: the signature is for another {what}" in text


@pytest.mark.parametrize("field", ["id", "name", "version", "key_id"])
def test_relabelled_signature(archive, signed, key, public, tmp_path, field):
    # The fields of one file beside the signature of another: readable is not the same as signed.
    other = write_archive(tmp_path, "y.hello", version="9.0.0", name="other")
    sign_archive(other, key)
    path = signature_path(other)
    fields = json.loads(path.read_bytes())
    fields["signature"] = json.loads(signature_path(signed).read_bytes())["signature"]
    path.write_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    assert refusal(other, public).startswith("E_SIG_BAD: the signature is not valid under key")
    fields[field] = json.loads(signature_path(signed).read_bytes())[field] + "0"
    path.write_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    assert refusal(other, public).startswith(("E_SIG_IDENTITY", "E_SIG_BAD"))


def test_every_changed_byte_of_the_signature_is_refused(signed, public):
    path = signature_path(signed)
    whole = path.read_bytes()
    with open_archive(signed) as file:
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 1 << (at % 7)
            path.write_bytes(changed)
            with pytest.raises(TrustError, match=r"^E_SIG_"):
                verify_signature(file, public)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(TrustError, match=r"^E_SIG_BAD"):
                verify_signature(file, public)


@pytest.mark.parametrize("data", [b" " * 5000, b"[" * 3000, b"{}", b"\xff", b"null"])
def test_not_a_signature(signed, public, data):
    signature_path(signed).write_bytes(data)
    assert refusal(signed, public).startswith("E_SIG_BAD: ")


def test_white_space_makes_another_spelling(signed, public):
    path = signature_path(signed)
    path.write_bytes(path.read_bytes() + b"\n")
    assert refusal(signed, public) == "E_SIG_BAD: signature file: expected canonical JSON"


@pytest.mark.parametrize(
    ("least", "accepted"),
    [
        ("1.2.0", True),
        ("1.2", True),
        ("1.1.9", True),
        ("0.9", True),
        ("1.2.0.1", False),
        ("1.2.1", False),
        ("1.10", False),
        ("2", False),
    ],
)
def test_rollback(signed, public, least, accepted):
    if accepted:
        assert check(signed, public, least_version=least).version == "1.2.0"
    else:
        text = refusal(signed, public, least_version=least)
        assert text == f"E_ROLLBACK: too old; expected version {least} or newer, got 1.2.0"


def test_short_versions(tmp_path, key, public):
    path = write_archive(tmp_path, "y.hello", version="1.2")
    sign_archive(path, key)
    assert check(path, public, least_version="1.2.0").version == "1.2"
    assert "E_ROLLBACK" in refusal(path, public, least_version="1.2.0.1")


def test_versions_that_are_no_numbers(tmp_path, key, public):
    path = write_archive(tmp_path, "y.hello", version="beta")
    sign_archive(path, key)
    assert "E_ROLLBACK: version `beta` cannot be compared" in refusal(
        path, public, least_version="1"
    )
    with pytest.raises(UserInputError, match=r"least version: expected dotted numbers, got `1\.x`"):
        check(path, public, least_version="1.x")


def test_a_damaged_archive_is_not_signed(archive, key):
    with open_archive(archive) as file:
        offset = int(file.index.offset[1])
    data = bytearray(archive.read_bytes())
    data[offset + 20] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CorruptError, match="E_DIGEST_MEMBER"):
        sign_archive(archive, key)
    assert not signature_path(archive).exists()


def test_an_existing_signature_stays(signed, key, tmp_path):
    before = signature_path(signed).read_bytes()
    with pytest.raises(HelloIOError, match="E_TARGET"):
        sign_archive(signed, key)
    create_key(tmp_path / "other")
    assert signature_path(signed).read_bytes() == before
    sign_archive(signed, tmp_path / "other", force=True)
    assert signature_path(signed).read_bytes() != before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["rsa", "text", "public", "encrypted"])
def test_unfit_private_keys(archive, tmp_path, public, kind):
    path = tmp_path / "k"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    if kind == "rsa":
        made = rsa.generate_private_key(65537, 2048)
        path.write_bytes(made.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    elif kind == "encrypted":
        secret = serialization.BestAvailableEncryption(b"x")
        made = ed25519.Ed25519PrivateKey.generate()
        path.write_bytes(made.private_bytes(pem, pkcs8, secret))
    else:
        path.write_bytes(b"hello" if kind == "text" else public.read_bytes())
    wanted = (
        "encrypted; expected a PEM key without passphrase"
        if kind == "encrypted"
        else "expected a private Ed25519 key in PEM form"
    )
    with pytest.raises(UserInputError, match=wanted):
        sign_archive(archive, path)


def test_unfit_public_keys(signed, key, tmp_path):
    path = tmp_path / "k"
    path.write_bytes(b"hello")
    for unfit in (path, key):
        with pytest.raises(UserInputError, match="expected a public Ed25519 key in PEM form"):
            check(signed, unfit)


def test_without_the_package(signed, public, tmp_path):
    code = (
        "import sys\nsys.modules['cryptography'] = None\n"
        "from hellofmt_cli.main import hello\nhello(sys.argv[1:])"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, "verify", signed, "--pubkey", public],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "signatures need the package `cryptography`; pip install 'hellofmt[sign]'" in done.stderr


def test_a_device_is_neither_a_key_nor_a_signature(archive, signed, public):
    def refused():
        return pytest.raises(HelloIOError, match="E_READ: not a regular file: /dev/null")

    with refused():
        sign_archive(archive, "/dev/null", force=True)
    with refused():
        check(signed, "/dev/null")
    with refused():
        check(signed, public, signature="/dev/null")
