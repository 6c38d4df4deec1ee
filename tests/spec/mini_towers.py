"""CLIP's towers and the label function a second time, from spec/towers.md and spec/hello-1.md.

Functions of torch and float64, one formula of the page after the other. Tensors are a mapping of
names to values; names and shapes that a seed fills are the page's too.
"""

import math
from itertools import pairwise

import torch
from torch.nn import functional

# Defaults of section 11.
DEFAULTS = {
    "image_size": 224, "layers": 12, "width": 768, "patch_size": 16, "head_width": 64,
    "mlp_ratio": "4.0", "norm_eps": "0.00001", "pool_type": "tok", "no_ln_pre": False,
    "final_ln_after_pool": False,
}  # fmt: skip


def below(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def linear(x, t, name):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def layer_norm(x, t, name, eps):
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return centred / scale * t[f"{name}.weight"] + t[f"{name}.bias"]


def batch_norm(x, t, name):
    mean, var, weight, bias = (
        t[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 0.00001) * weight + bias


def attend(q, k, v, heads, causal=False):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        ahead = torch.ones_like(scores[0, 0]).triu(1).bool()
        scores = scores.masked_fill(ahead, -math.inf)
    return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def activation(arch, approximate=None):
    if arch["quick_gelu"]:
        return lambda x: x * torch.sigmoid(1.702 * x)
    if approximate == "tanh":
        root = math.sqrt(2 / math.pi)
        return lambda x: x / 2 * (1 + torch.tanh(root * (x + 0.044715 * x**3)))
    return lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2


def blocks(x, tensors, heads, act, eps, causal=False):
    i = 0
    while t := below(tensors, f"transformer.resblocks.{i}."):
        y = layer_norm(x, t, "ln_1", eps) @ t["attn.in_proj_weight"].T + t["attn.in_proj_bias"]
        y = linear(attend(*y.chunk(3, -1), heads, causal), t, "attn.out_proj")
        x = x + t.get("ls_1.gamma", 1) * y
        y = act(linear(layer_norm(x, t, "ln_2", eps), t, "mlp.c_fc"))
        x = x + t.get("ls_2.gamma", 1) * linear(y, t, "mlp.c_proj")
        i += 1
    return x


def bottleneck(x, t, stride):
    def pool(x):
        return functional.avg_pool2d(x, stride)

    y = batch_norm(functional.conv2d(x, t["conv1.weight"]), t, "bn1").relu()
    y = batch_norm(functional.conv2d(y, t["conv2.weight"], padding=1), t, "bn2").relu()
    y = batch_norm(functional.conv2d(pool(y), t["conv3.weight"]), t, "bn3")
    if "downsample.0.weight" in t:
        x = batch_norm(functional.conv2d(pool(x), t["downsample.0.weight"]), t, "downsample.1")
    return (x + y).relu()


def resnet(x, arch, t):
    for k, stride in ((1, 2), (2, 1), (3, 1)):
        x = functional.conv2d(x, t[f"conv{k}.weight"], stride=stride, padding=1)
        x = batch_norm(x, t, f"bn{k}").relu()
    x = functional.avg_pool2d(x, 2)
    for j, count in enumerate(arch["vision"]["layers"]):
        for i in range(count):
            x = bottleneck(x, below(t, f"layer{j + 1}.{i}."), 2 if i == 0 and j else 1)
    t = below(t, "attnpool.")
    x = x.flatten(2).mT
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + t["positional_embedding"]
    q, k, v = (
        linear(y, t, f"{name}_proj") for name, y in zip("qkv", (x[:, :1], x, x), strict=True)
    )
    heads = x.shape[-1] // (DEFAULTS | arch["vision"])["head_width"]
    return linear(attend(q, k, v, heads)[:, 0], t, "c_proj")


def transformer(x, arch, t):
    v = DEFAULTS | arch["vision"]
    eps = float(v["norm_eps"])
    x = functional.conv2d(x, t["conv1.weight"], stride=v["patch_size"]).flatten(2).mT
    x = torch.cat([t["class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + t["positional_embedding"]
    x = x if v["no_ln_pre"] else layer_norm(x, t, "ln_pre", eps)
    act = activation(arch, v.get("act_approximate"))
    x = blocks(x, t, v["width"] // v["head_width"], act, eps)
    x = x if v["final_ln_after_pool"] else layer_norm(x, t, "ln_post", eps)
    x = x[:, 0] if v["pool_type"] == "tok" else x[:, 1:].mean(1)
    return (layer_norm(x, t, "ln_post", eps) if v["final_ln_after_pool"] else x) @ t["proj"]


def image_tower(x, arch, tensors):
    is_resnet = isinstance(arch["vision"].get("layers"), list)
    return (resnet if is_resnet else transformer)(x, arch, tensors)


def text_tower(ids, arch, text, t):
    x = t["token_embedding.weight"][ids] + t["positional_embedding"]
    x = blocks(x, t, text["heads"], activation(arch), 0.00001, causal=True)
    x = x[torch.arange(len(x)), ids.argmax(1)]
    return layer_norm(x, t, "ln_final", 0.00001) @ t["text_projection"]


def named(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def norm_shapes(name, n, is_batch=False):
    parts = ["weight", "bias"] + ["running_mean", "running_var"] * is_batch
    return {f"{name}.{part}": (n,) for part in parts}


def linear_shapes(name, out, inside):
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def block_shapes(w, m, layers):
    one = norm_shapes("ln_1", w) | norm_shapes("ln_2", w) | linear_shapes("attn.out_proj", w, w)
    one |= {"attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,)}
    one |= linear_shapes("mlp.c_fc", m, w) | linear_shapes("mlp.c_proj", w, m)
    every = [named(f"transformer.resblocks.{i}.", one) for i in range(layers)]
    return {k: v for block in every for k, v in block.items()}


def image_shapes(arch):
    """Name to shape of every floating tensor of an image tower without layer scale."""
    v, d = DEFAULTS | arch["vision"], arch["embed_dim"]
    w = v["width"]
    if not isinstance(v["layers"], list):
        n = (v["image_size"] // v["patch_size"]) ** 2 + 1
        out = {"conv1.weight": (w, 3, v["patch_size"], v["patch_size"]), "class_embedding": (w,)}
        out |= {"positional_embedding": (n, w), "proj": (w, d)} | norm_shapes("ln_post", w)
        out |= {} if v["no_ln_pre"] else norm_shapes("ln_pre", w)
        return out | block_shapes(w, math.floor(w * float(v["mlp_ratio"])), v["layers"])
    out = {}
    for k, (a, b) in enumerate(pairwise((3, w // 2, w // 2, w)), start=1):
        out |= {f"conv{k}.weight": (b, a, 3, 3)} | norm_shapes(f"bn{k}", b, is_batch=True)
    c = w
    for j, count in enumerate(v["layers"]):
        p = w * 2**j
        for i in range(count):
            one = {"conv1.weight": (p, c, 1, 1), "conv2.weight": (p, p, 3, 3)}
            one |= {"conv3.weight": (4 * p, p, 1, 1)} | norm_shapes("bn3", 4 * p, is_batch=True)
            one |= norm_shapes("bn1", p, is_batch=True) | norm_shapes("bn2", p, is_batch=True)
            if i == 0:
                one |= {"downsample.0.weight": (4 * p, c, 1, 1)}
                one |= norm_shapes("downsample.1", 4 * p, is_batch=True)
            out |= named(f"layer{j + 1}.{i}.", one)
            c = 4 * p
    pool = {"positional_embedding": ((v["image_size"] // 32) ** 2 + 1, c)}
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        pool |= linear_shapes(name, d if name == "c_proj" else c, c)
    return out | named("attnpool.", pool)


def text_shapes(arch, text):
    w = text["width"]
    out = {"token_embedding.weight": (text["vocab_size"], w)} | norm_shapes("ln_final", w)
    out |= {"positional_embedding": (text["context_length"], w)}
    out |= {"text_projection": (w, arch["embed_dim"])}
    return out | block_shapes(w, 4 * w, text["layers"])
