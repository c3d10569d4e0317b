"""The one table between our parameter tree and Hugging Face's tensor names, read in both directions.

A row gives our path, the tensor's name there, and both layouts as axis letters (`H` query heads, `K` kv heads, `h` head
size, `D` embed, `F` mlp, `V` vocabulary); `(H h)` is one axis there that is two here. Ours leaves out the leading layer
axis: a stacked parameter `[L, ...]` is L tensors there, `{layer}` in the name. No file is opened here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from t_elaine.model.config import LlamaConfig


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row of the table; `when` names the condition under which the model has it."""

    path: str
    name: str
    ours: str
    theirs: str
    when: str = "always"

    @property
    def stacked(self) -> bool:
        """Whether our parameter has a leading layer axis."""
        return "{layer}" in self.name


def _layer(path: str, name: str, ours: str, theirs: str, when: str = "always") -> Weight:
    return Weight(path=f"layers/{path}", name=f"model.layers.{{layer}}.{name}", ours=ours, theirs=theirs, when=when)


TABLE = (
    Weight(path="embed/table", name="model.embed_tokens.weight", ours="V D", theirs="V D"),
    _layer("attention_norm/scale", "input_layernorm.weight", "D", "D"),
    _layer("attention/q", "self_attn.q_proj.weight", "D H h", "(H h) D"),
    _layer("attention/k", "self_attn.k_proj.weight", "D K h", "(K h) D"),
    _layer("attention/v", "self_attn.v_proj.weight", "D K h", "(K h) D"),
    _layer("attention/o", "self_attn.o_proj.weight", "H h D", "D (H h)"),
    _layer("attention/q_bias", "self_attn.q_proj.bias", "H h", "(H h)", "qkv_bias"),
    _layer("attention/k_bias", "self_attn.k_proj.bias", "K h", "(K h)", "qkv_bias"),
    _layer("attention/v_bias", "self_attn.v_proj.bias", "K h", "(K h)", "qkv_bias"),
    _layer("mlp_norm/scale", "post_attention_layernorm.weight", "D", "D"),
    _layer("mlp/gate", "mlp.gate_proj.weight", "D F", "F D"),
    _layer("mlp/up", "mlp.up_proj.weight", "D F", "F D"),
    _layer("mlp/down", "mlp.down_proj.weight", "F D", "D F"),
    Weight(path="final_norm/scale", name="model.norm.weight", ours="D", theirs="D"),
    Weight(path="head/table", name="lm_head.weight", ours="D V", theirs="V D", when="untied"),
)


@dataclass(frozen=True, kw_only=True)
class HfTensor:
    """One tensor of a Hugging Face folder: its name and shape there, and the parameter (and layer) that it is here."""

    name: str
    shape: tuple[int, ...]
    weight: Weight
    layer: int | None


def weights(config: LlamaConfig) -> list[Weight]:
    """The rows that a model of this config has."""
    present = {"always": True, "qkv_bias": config.qkv_bias, "untied": not config.tied_embeddings}
    return [weight for weight in TABLE if present[weight.when]]


def sizes(config: LlamaConfig) -> dict[str, int]:
    """Axis letter → length."""
    return {
        "V": config.vocab_size,
        "D": config.embed,
        "F": config.mlp,
        "H": config.q_heads,
        "K": config.kv_heads,
        "h": config.head_dim,
    }


def our_shape(weight: Weight, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of one layer of our parameter (of the whole one where it is not stacked)."""
    return tuple(sizes(config)[axis] for axis in weight.ours.split())


def hf_shape(weight: Weight, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of the Hugging Face tensor."""
    return tuple(math.prod(sizes(config)[axis] for axis in group) for group in _groups(weight.theirs))


def hf_tensors(config: LlamaConfig) -> list[HfTensor]:
    """Every tensor of a model of this config: embedding, layers in order, final norm, head."""
    rows = weights(config)
    before = [w for w in rows if w.path == "embed/table"]
    after = [w for w in rows if not w.stacked and w.path != "embed/table"]
    order: list[tuple[Weight, int | None]] = [(w, None) for w in before]
    order += [(w, layer) for layer in range(config.layers) for w in rows if w.stacked]
    order += [(w, None) for w in after]
    return [
        HfTensor(name=w.name.format(layer=layer), shape=hf_shape(w, config), weight=w, layer=layer)
        for w, layer in order
    ]


def parameters(config: LlamaConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(tensor.shape) for tensor in hf_tensors(config))


def to_hf(weight: Weight, ours: np.ndarray) -> np.ndarray:
    """One layer of our parameter in Hugging Face's layout: a transposed view, nothing is copied."""
    axes = weight.ours.split()
    groups = _groups(weight.theirs)
    length = dict(zip(axes, ours.shape, strict=True))
    turned = ours.transpose([axes.index(axis) for group in groups for axis in group])
    return turned.reshape([math.prod(length[axis] for axis in group) for group in groups])


def row_boxes(weight: Weight, config: LlamaConfig, block_bytes: int) -> Iterator[list[slice]]:
    """Boxes of one layer of our float32 parameter that are runs of Hugging Face's rows, in their order.

    Each is as large as fits `block_bytes`, but at least one step of the outermost axis there.
    """
    axes, outer = weight.ours.split(), _groups(weight.theirs)[0][0]
    length = sizes(config)
    step = max(1, block_bytes * length[outer] // (4 * math.prod(our_shape(weight, config))))
    for start in range(0, length[outer], step):
        part = slice(start, min(start + step, length[outer]))
        yield [part if axis == outer else slice(None) for axis in axes]


def from_hf(
    weight: Weight,
    config: LlamaConfig,
    read: Callable[[Sequence[slice]], np.ndarray],
    box: Sequence[slice] | None = None,
) -> np.ndarray:
    """A box of one layer of our parameter, in our layout, reading no more rows than the box needs.

    Args:
        weight: the row of the table.
        config: gives the axis lengths.
        read: called once with a slice for each axis of the Hugging Face tensor.
        box: a slice with step 1 for each of our axes (layer axis apart); None is the whole.
    """
    length = sizes(config)
    axes = weight.ours.split()
    wanted = box if box is not None else [slice(None)] * len(axes)
    ranges = {axis: part.indices(length[axis])[:2] for axis, part in zip(axes, wanted, strict=True)}
    groups = _groups(weight.theirs)
    values = read([_outer_slice(group, ranges, length) for group in groups])
    # An axis of two is read in whole rows of its outer part; the inner part is cut afterwards.
    outer = {group[0] for group in groups}
    shape = [length[a] if a not in outer else ranges[a][1] - ranges[a][0] for group in groups for a in group]
    flat = [axis for group in groups for axis in group]
    values = values.reshape(shape)
    values = values[tuple(slice(None) if axis in outer else slice(*ranges[axis]) for axis in flat)]
    return values.transpose([flat.index(axis) for axis in axes])


def _outer_slice(group: list[str], ranges: dict[str, tuple[int, int]], length: dict[str, int]) -> slice:
    inner = math.prod(length[axis] for axis in group[1:])
    start, stop = ranges[group[0]]
    return slice(start * inner, stop * inner)


def _groups(layout: str) -> list[list[str]]:
    """`"(H h) D"` → `[["H", "h"], ["D"]]`."""
    groups: list[list[str]] = []
    inside = False
    for word in layout.split():
        if inside:
            groups[-1].append(word.strip("()"))
        else:
            groups.append([word.strip("()")])
        inside = (inside or word.startswith("(")) and not word.endswith(")")
    return groups
