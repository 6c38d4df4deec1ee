"""Bytes to facts and back: the ``.hello`` archive, without torch.

Names are imported when they are first used, so that opening a file costs what opening needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hellofmt.lazy import lazy_names

if TYPE_CHECKING:
    from hellofmt.archive.card import generated_card, renewed_card
    from hellofmt.archive.class_lists import read_class_lines
    from hellofmt.archive.format.canonical import decimal_string, decimal_value
    from hellofmt.archive.format.classes import Classes, ClassLine
    from hellofmt.archive.format.digest import base_digest, content_id, tensors_digest
    from hellofmt.archive.format.functions import find_function, function_section
    from hellofmt.archive.format.images import decode_image, encode_image, without_metadata
    from hellofmt.archive.format.index import Index
    from hellofmt.archive.format.layout import shard_path
    from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
    from hellofmt.archive.format.manifest import (
        UNSET,
        Adapter,
        Arch,
        Base,
        Dataset,
        Head,
        HeadText,
        Images,
        LabelFunction,
        Manifest,
        Preprocess,
        Probes,
        Producer,
        Section,
        Shard,
        Storage,
        Target,
        TextArch,
        Views,
        VisionArch,
    )
    from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
    from hellofmt.archive.format.probes import probe_images
    from hellofmt.archive.format.record import Record, Result, as_line, percent
    from hellofmt.archive.format.schema import json_schema, record_schema
    from hellofmt.archive.format.tensors import StoredTensor
    from hellofmt.archive.format.validate import validate_manifest
    from hellofmt.archive.format.view_defaults import changed_views, default_views
    from hellofmt.archive.read.archive import Archive
    from hellofmt.archive.read.file import HelloFile
    from hellofmt.archive.read.open import open_archive
    from hellofmt.archive.read.set import HelloSet
    from hellofmt.archive.read.sign import (
        Signature,
        create_key,
        sign_archive,
        signature_path,
        verify_signature,
    )
    from hellofmt.archive.read.verify import VerifyReport, verify_archive
    from hellofmt.archive.record_text import record_rows, spread
    from hellofmt.archive.storage.local_files import read_file, write_small_file
    from hellofmt.archive.storage.source import display_name
    from hellofmt.archive.write.amend import amend_archive, check_amended_targets
    from hellofmt.archive.write.draft import Draft, ImageItem, ImageSet, ProjectorPart, Texts
    from hellofmt.archive.write.extraction import PlainForm, extract_archive
    from hellofmt.archive.write.shards import write_shards
    from hellofmt.archive.write.whole_file import check_target
    from hellofmt.archive.write.writer import write_archive

__all__ = [
    "DEFAULT_LIMITS",
    "UNSET",
    "Adapter",
    "Arch",
    "Archive",
    "Base",
    "ClassLine",
    "Classes",
    "Dataset",
    "Draft",
    "Head",
    "HeadText",
    "HelloFile",
    "HelloSet",
    "ImageItem",
    "ImageSet",
    "Images",
    "Index",
    "LabelFunction",
    "Limits",
    "Manifest",
    "PlainForm",
    "Preprocess",
    "Probes",
    "Producer",
    "ProjectorPart",
    "Record",
    "Result",
    "Section",
    "Shard",
    "Signature",
    "Storage",
    "StoredTensor",
    "Target",
    "TextArch",
    "Texts",
    "VerifyReport",
    "Views",
    "VisionArch",
    "amend_archive",
    "as_line",
    "base_digest",
    "changed_views",
    "check_amended_targets",
    "check_target",
    "content_id",
    "create_key",
    "decimal_string",
    "decimal_value",
    "decode_image",
    "default_views",
    "display_name",
    "encode_image",
    "extract_archive",
    "find_function",
    "function_section",
    "generated_card",
    "json_schema",
    "manifest_bytes",
    "open_archive",
    "parse_manifest",
    "percent",
    "probe_images",
    "read_class_lines",
    "read_file",
    "record_rows",
    "record_schema",
    "renewed_card",
    "shard_path",
    "sign_archive",
    "signature_path",
    "spread",
    "tensors_digest",
    "validate_manifest",
    "verify_archive",
    "verify_signature",
    "without_metadata",
    "write_archive",
    "write_shards",
    "write_small_file",
]

_MODULES = {
    "format.canonical": ("decimal_string", "decimal_value"),
    "format.digest": ("base_digest", "content_id", "tensors_digest"),
    "format.functions": ("find_function", "function_section"),
    "format.manifest": (
        "UNSET",
        "Adapter",
        "Arch",
        "Base",
        "Dataset",
        "Head",
        "HeadText",
        "Images",
        "LabelFunction",
        "Manifest",
        "Preprocess",
        "Probes",
        "Producer",
        "Section",
        "Shard",
        "Storage",
        "Target",
        "TextArch",
        "Views",
        "VisionArch",
    ),
    "format.parse": ("manifest_bytes", "parse_manifest"),
    "format.validate": ("validate_manifest",),
    "card": ("generated_card", "renewed_card"),
    "class_lists": ("read_class_lines",),
    "format.classes": ("ClassLine", "Classes"),
    "format.view_defaults": ("changed_views", "default_views"),
    "format.images": ("decode_image", "encode_image", "without_metadata"),
    "format.index": ("Index",),
    "format.limits": ("DEFAULT_LIMITS", "Limits"),
    "format.probes": ("probe_images",),
    "read.archive": ("Archive",),
    "read.file": ("HelloFile",),
    "read.open": ("open_archive",),
    "format.record": ("Record", "Result", "as_line", "percent"),
    "format.schema": ("json_schema", "record_schema"),
    "storage.local_files": ("read_file", "write_small_file"),
    "format.layout": ("shard_path",),
    "record_text": ("record_rows", "spread"),
    "read.set": ("HelloSet",),
    "write.shards": ("write_shards",),
    "read.sign": ("Signature", "create_key", "sign_archive", "signature_path", "verify_signature"),
    "storage.source": ("display_name",),
    "format.tensors": ("StoredTensor",),
    "read.verify": ("VerifyReport", "verify_archive"),
    "write.extraction": ("PlainForm", "extract_archive"),
    "write.amend": ("amend_archive", "check_amended_targets"),
    "write.draft": ("Draft", "ImageItem", "ImageSet", "ProjectorPart", "Texts"),
    "write.whole_file": ("check_target",),
    "write.writer": ("write_archive",),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
