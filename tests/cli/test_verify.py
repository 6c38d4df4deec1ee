"""`hello verify`: names what it checked, and a check that fails is an exit code."""

import builders

from hellofmt.archive import open_archive, verify_archive


def damage(path, row):
    with open_archive(path) as file:
        offset = int(file.index.offset[row])
    data = bytearray(path.read_bytes())
    data[offset + 30] ^= 1
    path.write_bytes(data)


def test_document(full, invoke_json):
    document = invoke_json("verify", full)
    report = verify_archive(full)
    assert document == {
        "schema": "hello.verify/1",
        "ok": True,
        "id": report.id,
        "content_id": report.content_id,
        "level": "full",
        "checks": report.checks,
        "images": 6,
        "bytes": full.stat().st_size,
        "signature": None,
        "pixels": None,
        "probes": None,
    }


def test_the_verdict_comes_first_and_then_every_check(full, invoke):
    result = invoke("verify", full)
    verdict, *lines = result.stdout.splitlines()
    assert verdict.startswith(f"{full}: intact, ")
    assert verdict.endswith(" bytes), 6 images")
    for check in verify_archive(full).checks:
        assert f"ok  {check}" in lines
    assert lines[-1] == f"id  {verify_archive(full).id}"


def test_the_verdict_of_what_fails(packed, invoke):
    data = packed.read_bytes()
    with open_archive(packed) as file:
        image = int(file.index.offset[2])
    for at, verdict, code in (
        (image + 9, "damaged", 4),
        (image - 500, "invalid", 5),
        (3, "not readable", 3),
    ):
        packed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        result = invoke("verify", packed)
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.startswith(f"Error: {packed}: {verdict}: E_")
    packed.write_bytes(data)
    result = invoke("verify", packed, "--limit", "images=2")
    assert result.stderr.startswith(f"Error: {packed}: too large to check: E_LIMIT_IMAGES")
    result = invoke("verify", packed, "--expect", "sha256:" + "0" * 64)
    assert result.stderr.startswith(f"Error: {packed}: not trusted: E_PIN")


def test_fast_stops_before_the_images(packed, invoke, invoke_json):
    damage(packed, 3)
    document = invoke_json("verify", packed, "--fast")
    assert (document["level"], document["images"]) == ("fast", 0)
    assert "images" not in document["checks"]
    shown = invoke("verify", packed, "--fast").stdout
    assert shown.startswith(f"{packed}: sections intact, ")
    assert shown.splitlines()[0].endswith(", its images were not read")
    result = invoke("verify", packed)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "E_DIGEST_MEMBER member=images/0001/000003.png" in result.stderr


def test_expect_is_a_check_of_its_own(packed, invoke_json):
    archive_id = invoke_json("verify", packed)["id"]
    assert "expect" in invoke_json("verify", packed, "--expect", archive_id)["checks"]


def test_pixels_are_the_same_in_both_layouts(image_folder, packed, tmp_path, invoke, invoke_json):
    other = tmp_path / "p.hello"
    invoke("pack", image_folder, "-o", other, "--layout", "packed")
    digest = invoke_json("verify", packed, "--pixels")["pixels"]
    assert digest.startswith("sha256:")
    assert invoke_json("verify", other, "--pixels")["pixels"] == digest
    assert f"pixels  {digest}" in invoke("verify", packed, "--pixels").stdout


def test_signature(packed, tmp_path, invoke, invoke_json):
    key = tmp_path / "key"
    made = invoke_json("sign", "--new-key", key)
    assert made["public_key"] == f"{key}.pub"
    signed = invoke_json("sign", packed, "--key", key)
    assert signed["signature"] == f"{packed}.sig"
    assert signed["key_id"] == made["key_id"]
    document = invoke_json("verify", packed, "--pubkey", f"{key}.pub", "--least-version", "1.0")
    assert document["signature"] == {"key_id": made["key_id"], "name": "toy", "version": "1.0.0"}
    assert document["checks"][-1] == "signature"
    assert f"key id  {made['key_id']}" in invoke("verify", packed, "--pubkey", f"{key}.pub").stdout

    result = invoke("verify", packed, "--pubkey", f"{key}.pub", "--least-version", "1.0.1")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "E_ROLLBACK" in result.stderr
    invoke("sign", "--new-key", tmp_path / "other")
    result = invoke("verify", packed, "--pubkey", tmp_path / "other.pub")
    assert (result.exit_code, result.stdout) == (7, "")
    (tmp_path / "x.hello.sig").rename(tmp_path / "moved.sig")
    result = invoke("verify", packed, "--pubkey", f"{key}.pub")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "E_SIG_MISSING" in result.stderr
    options = ["--pubkey", f"{key}.pub", "--signature", tmp_path / "moved.sig"]
    assert invoke("verify", packed, *options).exit_code == 0
    result = invoke("verify", packed, "--pubkey", tmp_path / "none")
    assert result.exit_code == 9
    assert result.stderr == f"Error: {tmp_path / 'none'}: No such file or directory\n"


def test_sign_pages(packed, tmp_path, invoke):
    result = invoke("sign", packed, "--new-key", tmp_path / "key")
    assert result.exit_code == 0
    assert "signed     toy 1.0.0\n" in result.stdout
    result = invoke("sign", packed, "--key", tmp_path / "key")
    assert result.exit_code == 10
    options = ["--key", tmp_path / "key", "-o", tmp_path / "y.sig"]
    assert f"signature  {tmp_path / 'y.sig'}\n" in invoke("sign", packed, *options).stdout
    result = invoke("sign", "--new-key", tmp_path / "two")
    assert f"public key   {tmp_path / 'two.pub'}\n" in result.stdout


def test_probes_need_a_label_function(packed, invoke):
    result = invoke("verify", packed, "--probes")
    assert result.exit_code == 2
    assert "E_OPTION: the archive has no label function to check" in result.stderr


def test_probes(tmp_path, invoke, invoke_json):
    from hellofmt.archive import ClassLine, Draft, default_views, write_archive
    from hellofmt.projector import Projector

    entrance = builders.preprocess(16, "0.5", "0.25")
    base = builders.tiny_base(16, seed=1, entrance=entrance, width=32, head_width=16, patch_size=8)
    lines = [ClassLine(key, (key,)) for key in ("cat", "dog")]
    projector = Projector.build(base, lines, start="stored", rank=2, temperature=4.0, seed=0)
    part = projector.part()
    dataset = builders.dataset()
    good, bad = tmp_path / "good.hello", tmp_path / "bad.hello"
    write_archive(good, Draft(dataset, lines, default_views(16), projector=part))
    wrong = part.probe_logits[:, ::-1].copy()
    from dataclasses import replace

    other = replace(part, probe_logits=wrong)
    write_archive(bad, Draft(dataset, lines, default_views(16), projector=other))
    document = invoke_json("verify", good, "--probes")
    assert document["probes"] == {
        "count": 2,
        "functions": ["default"],
        "base": part.base.digest,
    }
    assert document["checks"][-1] == "probes"
    assert invoke("verify", bad).exit_code == 0
    result = invoke("verify", bad, "--probes")
    assert (result.exit_code, result.stdout) == (8, "")
    assert "E_BASE_PROBES" in result.stderr
