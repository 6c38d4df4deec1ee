"""Lies of the container: headers, names, order, padding, what is missing and what is too much."""

import gzip
import io
import struct
import zipfile
from functools import partial

from zoo.parts import (
    Sparse,
    add,
    block,
    canonical,
    hostile,
    images_only,
    member,
    patch,
    place,
    png,
    projector,
    rows_of,
    sha,
    up,
)

container = partial(hostile, "container")


def valid():
    return images_only().build()


def reblock(data, name, found=None, **fields):
    """``data`` with the header of one member made anew, its checksum right."""
    at, size = place(data, name)
    return patch(data, at, block(name if found is None else found, size, **fields))


@container("E_MAGIC")
def empty():
    return b""


@container("E_TRUNCATED")
def one_byte():
    return valid()[:1]


@container("E_MAGIC")
def one_other_byte():
    return b"P"


for length in (17, 18, 511, 512, 513, 2047):
    add(
        f"first_{length}_bytes",
        "E_TRUNCATED",
        lambda length=length: valid()[:length],
        group="container",
    )


@container("E_TRUNCATED")
def without_its_last_byte():
    return valid()[:-1]


@container("E_MAGIC")
def zero_block_first():
    return bytes(512) + valid()


@container("E_MAGIC")
def only_zeros():
    return bytes(10240)


@container("E_MAGIC")
def a_png_file():
    return png()


@container("E_MAGIC")
def outer_gzip():
    return gzip.compress(valid(), mtime=0)


@container("E_MAGIC")
def a_zip_file():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__hello__/manifest"), valid()[512:1024])
    return out.getvalue()


@container("E_MAGIC")
def first_member_upper_case():
    return valid().replace(b"__hello__/manifest", b"__HELLO__/MANIFEST", 1)


IMAGE = "images/0000/000000.png"
MANIFEST = "__hello__/manifest"
ID = "__hello__/id"

for where in (MANIFEST, ID, "__hello__/classes", IMAGE):
    short = where.rpartition("/")[2].partition(".")[0]
    add(
        f"bad_checksum_{short}",
        "E_HEADER",
        lambda where=where: reblock(valid(), where, checksum=b"000001\0 "),
        group="container",
    )
    add(
        f"base256_size_{short}",
        "E_HEADER",
        lambda where=where: reblock(
            valid(), where, size=b"\x80" + bytes(7) + place(valid(), where)[1].to_bytes(4, "big")
        ),
        group="container",
    )

# Everything a header can say and must not, on an image, where other tar readers would believe it.
for what, fields in {
    "checksum_other_spelling": {"checksum": None},
    "mode_755": {"mode": b"0000755\0"},
    "mode_setuid": {"mode": b"0004755\0"},
    "uid_1000": {"uid": b"0001750\0"},
    "gid_1000": {"gid": b"0001750\0"},
    "mtime_now": {"mtime": b"14700000000\0"},
    "size_with_space": {"size": None},
    "gnu_magic": {"magic": b"ustar  \0"},
    "v7_magic": {"magic": bytes(8)},
    "user_root": {"uname": b"root"},
    "group_root": {"gname": b"root"},
    "device_zeros": {"devmajor": b"0000000\0", "devminor": b"0000000\0"},
    "prefix_path": {"prefix": b"/etc"},
    "reserved_bytes": {"reserved": b"\1"},
    "link_target": {"link": b"/etc/passwd"},
    "type_hard_link": {"type": b"1", "link": b"/etc/passwd"},
    "type_symbolic_link": {"type": b"2", "link": b"/etc/passwd"},
    "type_character_device": {"type": b"3", "devmajor": b"0000001\0"},
    "type_block_device": {"type": b"4"},
    "type_directory": {"type": b"5"},
    "type_fifo": {"type": b"6"},
    "type_contiguous": {"type": b"7"},
    "type_nul": {"type": b"\0"},
    "type_pax": {"type": b"x"},
    "type_pax_global": {"type": b"g"},
    "type_pax_sun": {"type": b"X"},
    "type_gnu_long_name": {"type": b"L"},
    "type_gnu_long_link": {"type": b"K"},
    "type_gnu_sparse": {"type": b"S"},
    "type_gnu_volume": {"type": b"V"},
    "type_gnu_multi": {"type": b"M"},
    "type_gnu_dumpdir": {"type": b"D"},
}.items():
    if what == "checksum_other_spelling":
        fields = {"checksum": b" %05o\0 " % 0}
    if what == "size_with_space":
        fields = {"size": b"%10o \0" % len(png())}
    add(
        f"header_{what}",
        "E_HEADER",
        lambda fields=fields: reblock(valid(), IMAGE, **fields),
        group="container",
    )


def inserted(*members, at="images"):
    """A valid archive with further members; the stated lengths fit, so that headers are reached."""
    kit = images_only()
    body = [member(f"__hello__/{name}", data) for name, data in kit.files.items()]
    extra = list(members)
    pictures = kit.pictures()
    head = kit.head()
    if at == "images":
        head["images"]["span"] += sum(map(len, extra))
        return kit.build(head, body + extra + pictures)
    return kit.build(head, extra + body + pictures)


PAX = b"30 path=../../../etc/passwd.x\n"


@container("E_INDEX")
def pax_member_in_the_span():
    return inserted(member("PaxHeaders/x", PAX, type=b"x"))


@container("E_TRAILING")
def pax_member_before_the_sections():
    return inserted(member("PaxHeaders/x", PAX, type=b"x"), at="sections")


@container("E_HEADER")
def pax_member_as_the_first_section():
    kit = images_only()
    body = kit.body()
    body[0] = member("__hello__/index", kit.files["index"], type=b"x")
    return kit.build(body=body)


@container("E_HEADER")
def pax_global_first():
    # Passes for the magic, and a tar reader would apply it to everything that follows.
    return member(MANIFEST, b"18 comment=hostile\n"[:18], type=b"g") + valid()


@container("E_HEADER")
def gnu_long_name_first():
    return member(MANIFEST, b"../../etc/passwd\0", type=b"L") + valid()


for what, name, code in (
    ("absolute", b"/images/0000/000000.png", "E_HEADER"),
    ("parent", b"../images/0000/0000000.png", "E_HEADER"),
    ("parent_inside", b"images/../../etc/passwd", "E_HEADER"),
    ("double_slash", b"images//0000/000000.png", "E_HEADER"),
    ("dot", b"./images/0000/000000.png", "E_HEADER"),
    ("inner_nul", b"images/0000/000000.png\0.exe", "E_HEADER"),
    ("inner_nul_early", b"images\0/0000/000000.png", "E_HEADER"),
    ("upper_case", b"IMAGES/0000/000000.PNG", "E_HEADER"),
    ("upper_extension", b"images/0000/000000.PNG", "E_HEADER"),
    ("unicode", "images/0000/00000\u0660.png".encode(), "E_HEADER"),
    ("latin_1", b"images/0000/00000\xe9.png", "E_HEADER"),
    ("unterminated", b"images/0000/" + b"0" * 84 + b".png", "E_HEADER"),
    ("windows_device", b"con.png", "E_HEADER"),
    ("windows_device_inside", b"images/0000/con.png", "E_HEADER"),
    ("windows_drive", b"C:\\images\\000000.png", "E_HEADER"),
    ("windows_slashes", b"images\\0000\\000000.png", "E_HEADER"),
    ("windows_stream", b"images/0000/000000.png:x", "E_HEADER"),
    ("trailing_slash", b"images/0000/000000.png/", "E_HEADER"),
    ("trailing_space", b"images/0000/000000.png ", "E_HEADER"),
    ("trailing_dot", b"images/0000/000000.png.", "E_HEADER"),
    ("pickle", b"images/0000/000000.pyd", "E_HEADER"),
    ("torch_pickle", b"images/0000/000000.pth", "E_HEADER"),
    ("another_row", b"images/0000/000007.png", "E_HEADER"),
    ("another_class", b"images/0001/000000.png", "E_HEADER"),
    ("short_digits", b"images/0/0.png", "E_HEADER"),
    ("empty", b"", "E_HEADER"),
    ("escape_sequence", b"\x1b]0;pwned\x07", "E_HEADER"),
    ("line_feed", b"images/0000/000000.png\n", "E_HEADER"),
    ("home", b"~/.bashrc", "E_HEADER"),
    ("proc", b"/proc/self/mem", "E_HEADER"),
    ("manifest", b"__hello__/manifest", "E_HEADER"),
    ("unknown_section", b"__hello__/evil", "E_HEADER"),
):
    add(
        f"name_{what}",
        code,
        lambda name=name: reblock(valid(), IMAGE, name),
        group="container",
    )


@container("E_HEADER")
def sections_swapped_in_the_file():
    kit = images_only()
    body = kit.body()
    return kit.build(body=[body[1], body[0], *body[2:]])


@container("E_ORDER")
def sections_swapped_in_file_and_manifest():
    kit = images_only()
    kit.files = dict(reversed(kit.files.items()))
    return kit.build()


@container("E_HEADER")
def pictures_swapped():
    kit = images_only()
    body = kit.body()
    body[-1], body[-2] = body[-2], body[-1]
    return kit.build(body=body)


@container("E_HEADER")
def pictures_before_sections():
    kit = images_only()
    body = kit.body()
    return kit.build(body=body[2:] + body[:2])


@container("E_HEADER")
def id_after_the_sections():
    data = valid()
    at, _ = place(data, ID)
    after = at + 1024
    end, _ = place(data, IMAGE)
    return data[:at] + data[after:end] + data[at:after] + data[end:]


@container("E_DUPLICATE")
def section_twice_in_the_manifest():
    kit = images_only()
    head = kit.head()
    head["sections"].append(head["sections"][-1])
    body = kit.body()
    return kit.build(head, [*body[:2], body[1], *body[2:]])


@container("E_HEADER")
def picture_twice():
    kit = images_only()
    kit.rows[1] = kit.rows[0]
    kit.reindex()
    body = kit.body()
    body[3] = body[2]
    return kit.build(body=body)


@container("E_HEADER")
def section_twice_in_the_file():
    kit = projector()
    kit.files["license"] = kit.files["card"]
    body = kit.body()
    at = list(kit.files).index("license")
    body[at] = body[at - 1]
    return kit.build(body=body)


@container("E_TRAILING")
def section_not_in_the_manifest():
    return inserted(member("__hello__/card", b"hidden"), at="sections")


@container("E_TRAILING")
def picture_not_in_the_index():
    kit = images_only()
    return kit.build(body=[*kit.body(), member("images/0001/000003.png", png())])


@container("E_INDEX")
def picture_in_the_span_and_not_in_the_index():
    return inserted(member("images/0001/000003.png", png()))


@container("E_TRUNCATED")
def section_missing():
    kit = images_only()
    body = kit.body()
    return kit.build(body=[body[0], *body[2:]])


@container("E_TRUNCATED")
def picture_missing():
    kit = images_only()
    return kit.build(body=kit.body()[:-1])


@container("E_HEADER")
def picture_replaced_by_a_stranger():
    kit = images_only()
    return kit.build(body=[*kit.body()[:-1], member("etc/passwd", png(level=0))])


@container("E_DIGEST_ROOT")
def id_of_another_manifest():
    data = valid()
    at, _ = place(data, ID)
    return patch(data, at + 512, sha(b"another").encode())


@container("E_DIGEST_ROOT")
def id_in_upper_case():
    data = valid()
    at, _ = place(data, ID)
    return patch(data, at + 512, data[at + 512 : at + 576].upper())


@container("E_DIGEST_ROOT")
def id_ends_in_a_space():
    data = valid()
    at, _ = place(data, ID)
    return patch(data, at + 576, b" ")


@container("E_HEADER")
def id_without_a_line_feed():
    data = valid()
    at, _ = place(data, ID)
    return patch(data, at, block(ID, 64) + data[at + 512 : at + 576] + b"\0")


@container("E_DIGEST_ROOT")
def manifest_of_another_file():
    # Every other digest still fits: only the id tells.
    kit = projector()
    data = kit.build()
    kit.manifest["functions"][0]["head"]["temperature"] = "30.0"
    return patch(data, 512, canonical(kit.head()))


@container("E_DIGEST_INDEX")
def sections_of_another_file():
    kit = projector()
    other = projector()
    other.files["card"] = other.files["card"].replace(b"Zoo", b"Ark")
    return kit.build(body=other.body())


@container("E_DIGEST_INDEX")
def index_of_another_file():
    kit, other = images_only(), images_only()
    other.rows[2].data = png(raw=rows_of(4, 3, step=5), level=0)
    other.reindex()
    return kit.build(body=other.body())


@container("E_DIGEST_MEMBER")
def pictures_of_another_file():
    kit, other = images_only(), images_only()
    other.rows[2].data = png(raw=rows_of(4, 3, step=5), level=0)
    return kit.build(body=other.body())


for where in (MANIFEST, ID, "__hello__/index", "__hello__/classes", IMAGE):
    short = where.rpartition("/")[2].partition(".")[0]

    def padding(where=where, last=True):
        data = valid()
        at, size = place(data, where)
        end = at + 512 + up(size)
        return patch(data, end - 1 if last else at + 512 + size, b"\1")

    add(f"padding_{short}_first_byte", "E_PADDING", partial(padding, last=False), group="container")
    add(f"padding_{short}_last_byte", "E_PADDING", padding, group="container")


@container("E_TRAILING", full=True)
def trailer_not_zero():
    return images_only().build(trailer=bytes(1023) + b"\1")


@container("E_TRAILING", full=True)
def trailer_holds_a_member():
    return images_only().build(trailer=block("evil", 0) + bytes(512))


@container("E_TRUNCATED")
def one_zero_block():
    return images_only().build(trailer=bytes(512))


@container("E_TRUNCATED")
def no_zero_block():
    return images_only().build(trailer=b"")


@container("E_TRAILING")
def three_zero_blocks():
    return images_only().build(trailer=bytes(1536))


@container("E_TRAILING")
def padded_to_a_tape_record():
    data = valid()
    return data + bytes(-len(data) % 10240 or 10240)


@container("E_TRAILING")
def one_byte_more():
    return valid() + b"\0"


@container("E_TRAILING")
def twice_in_a_row():
    return valid() + valid()


@container("E_TRAILING")
def another_archive_after_the_end():
    return valid() + member("images/0000/000000.pyd", b"cposix\nsystem\n.") + bytes(1024)


def zip_bytes():
    # ZipInfo has a fixed date; a bare name would bring the clock into the bytes.
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("evil.py"), "print()")
    return out.getvalue()


@container("E_TRAILING")
def zip_appended():
    return valid() + zip_bytes()


@hostile("harmless", "")
def zip_in_the_last_picture():
    kit = images_only()
    body = zip_bytes()
    width = len(body) // 3 + 1
    kit.rows[2].data = png(width, 1, raw=(b"\0" + body).ljust(1 + 3 * width, b"\0"), level=0)
    kit.rows[2].width, kit.rows[2].height = width, 1
    return kit.reindex().build()


@container("E_LIMIT_MANIFEST")
def manifest_of_8_gib():
    data = valid()
    return patch(data, 0, block(MANIFEST, (1 << 33) - 1))


@container("E_HEADER")
def manifest_size_not_octal():
    return reblock(valid(), MANIFEST, size=b"0x00000001f\0")


@container("E_HEADER")
def manifest_size_negative():
    return reblock(valid(), MANIFEST, size=b"-0000000001\0")


@container("E_HEADER")
def manifest_size_of_python_digits():
    # int() takes underscores.
    return reblock(valid(), MANIFEST, size=b"000_000_777\0")


@container("E_TRUNCATED")
def manifest_past_the_end():
    return patch(valid(), 0, block(MANIFEST, 1 << 20))


@container("E_JSON")
def manifest_of_no_bytes():
    return images_only().build(b"")


def claimed(name, size):
    """An archive whose manifest says that a section has ``size`` bytes; it has few."""
    kit = projector()
    return kit.note(name, size=size).build()


for name, size, code in (
    ("adapter", (1 << 33) - 1, "E_LIMIT_SECTION_BYTES"),
    ("adapter", 1 << 53, "E_JSON"),
    ("adapter", 1 << 29, "E_TRUNCATED"),
    ("index", 1 << 27, "E_TRUNCATED"),
    ("index", (1 << 27) + 1, "E_LIMIT_INDEX_BYTES"),
    ("card", (1 << 20) + 1, "E_LIMIT_TEXT"),
    ("classes", 1 << 22, "E_TRUNCATED"),
    ("classes", (1 << 22) + 1, "E_LIMIT_CLASS_BYTES"),
):
    add(
        f"{name}_claims_{size}_bytes",
        code,
        partial(claimed, name, size),
        group="container",
    )


@container("E_LIMIT_SECTIONS_BYTES")
def sections_claim_too_much_together():
    kit = projector()
    for name in ("adapter", "head", "probes"):
        kit.note(name, size=1 << 30)
    return kit.build()


@container("E_TRUNCATED")
def span_of_63_gib():
    kit = images_only()
    head = kit.head()
    head["images"]["span"] = 63 << 30
    return kit.build(head)


@container("E_LIMIT_FILE_BYTES")
def span_of_2_tib():
    kit = images_only()
    head = kit.head()
    head["images"]["span"] = 2 << 40
    return kit.build(head)


@container("E_INDEX")
def sparse_file_of_10_gib():
    # The length fits what the manifest says; only the rows contradict it.
    kit = images_only()
    head = kit.head()
    head["images"]["span"] = 10 << 30
    data = kit.build(head)
    end = len(data) - 1024 - sum(len(picture) for picture in kit.pictures())
    return Sparse(end + (10 << 30) + 1024, ((0, data[:-1024]),))


@container("E_DIGEST_INDEX")
def sparse_section_of_80_mib():
    kit = projector()
    names = [name for name in kit.files if name not in ("probes", "card", "license")]
    size = 80 << 20
    kit.note("probes", size=size)
    text = canonical(kit.head())
    front = member(MANIFEST, text) + member(ID, (sha(text) + "\n").encode())
    front += b"".join(member(f"__hello__/{name}", kit.files[name]) for name in names)
    at = len(front) + 512 + size
    back = b"".join(member(f"__hello__/{name}", kit.files[name]) for name in ("card", "license"))
    back += b"".join(kit.pictures())
    pieces = ((0, front + block("__hello__/probes", size)), (at, back))
    return Sparse(at + len(back) + 1024, pieces)


@container("E_DIGEST_MEMBER")
def sparse_picture_of_63_mib():
    kit = images_only()
    size = 63 << 20
    sizes = struct.pack("<3Q", size, *(len(row.data) for row in kit.rows[1:]))
    kit.reindex(size=("U64", [3], sizes))
    head = kit.head()
    rest = b"".join(kit.pictures()[1:])
    head["images"]["span"] = 512 + size + len(rest)
    front = kit.build(head, kit.body()[:2], b"") + block(IMAGE, size)
    at = len(front) + size
    return Sparse(at + len(rest) + 1024, ((0, front), (at, rest)))
