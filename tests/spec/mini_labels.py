"""The label function of a file as the second reader found it, from sections 9 to 12 alone.

In float64, one formula after the other, over the towers of `mini_towers`.
"""

import math

import torch

PLAIN = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def values(data, dtype):
    return torch.frombuffer(bytearray(data), dtype=dtype).double()


def matrix(tensors, name, shape, storage):
    rows, columns = shape
    if storage in PLAIN:
        return values(tensors[name], PLAIN[storage]).reshape(shape)
    if storage == "int8":
        q = values(tensors[name], torch.int8).reshape(shape)
    else:
        pairs = torch.frombuffer(bytearray(tensors[name]), dtype=torch.uint8).reshape(rows, -1)
        q = torch.stack([pairs & 15, pairs >> 4], dim=-1).reshape(rows, -1)[:, :columns].double()
        q = q - 8
    return q * values(tensors[f"{name}_scale"], torch.float32)[:, None]


def product(tensors, name, entry):
    a, b = (matrix(tensors, f"{name}::{k.upper()}", entry[k], entry["storage"]) for k in "ab")
    return float(entry["scale"]) * (b @ a)


def seeded(shapes, seed, first, rule):
    """Tensors by rule uniform-1, rounded to float32 as it says; names sorted, from number first."""
    return {
        name: torch.tensor(rule(seed, first + t, name, shapes[name])).double().reshape(shapes[name])
        for t, name in enumerate(sorted(shapes))
    }


def stored(section, shapes):
    """Tensors of section `base`: F32, or F16 where they have half the bytes."""
    kinds = {4: torch.float32, 2: torch.float16}
    return {
        name: values(data, kinds[len(data) // math.prod(shapes[name])]).reshape(shapes[name])
        for name, data in section.items()
    }


def label_function(file, image, text_rows=None):
    """W0 and deltas of the image tower, W, exp(logit_scale) and bias."""
    manifest = file["manifest"]
    function = manifest["functions"][0]
    image = dict(image)
    for target in function["adapter"]["targets"]:
        name = target["param"]
        delta = product(file["tensors"]["adapter"], name, target).reshape(target["shape"])
        image[name] = image[name] + delta
    head, tensors = function["head"], file["tensors"]["head"]
    shape = [manifest["classes"], manifest["base"]["arch"]["embed_dim"]]
    w = matrix(tensors, "weight", shape, head["storage"]) if text_rows is None else text_rows
    w = w + product(tensors, "weight", head) if "a" in head else w
    bias = values(tensors["bias"], torch.float32) if head["bias"] else 0.0
    return image, w, values(tensors["logit_scale"], torch.float32).exp(), bias


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def text_rows(sentences, embed):
    """W_start of `text`: per class its sentences, which ``embed`` gives as [prompts, D]."""
    return torch.stack([unit(unit(embed(each)).mean(0)) for each in sentences])


def probe_logits(file, image, pictures, resize, towers, text_rows=None):
    """z of the probes [P, h, w, 3], and the scale that a difference of cosines is multiplied by."""
    base = file["manifest"]["base"]
    rule = base["preprocess"]
    image, w, scale, bias = label_function(file, image, text_rows)
    views = torch.tensor([resize(picture, rule) for picture in pictures], dtype=torch.float64)
    mean, std = (torch.tensor([float(v) for v in rule[k]])[:, None, None] for k in ("mean", "std"))
    embedded = unit(towers.image_tower((views - mean) / std, base["arch"], image))
    return scale * embedded @ w.T + bias, scale * w.norm(dim=1)
