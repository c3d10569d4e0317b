"""The arithmetic of merging, one tensor at a time, in float32 numpy: linear, SLERP, task arithmetic, TIES, DARE.

Conventions are mergekit 0.1.5's (https://github.com/arcee-ai/mergekit), so that a recipe written for it gives the same
weights here; docs/merge.md lists them. No file is opened here and no name of a tensor means anything, except as the
seed of what DARE drops.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from t_elaine.errors import UserError

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "dare_linear")
ON_DIFFERENCES = METHODS[2:]
NORMALIZED = ("linear", "ties")
RESCALES = ("l1", "density", "none")
DOT_THRESHOLD = 0.9995  # beyond it two tensors are as good as parallel and SLERP is a straight line
NO_NORM = 1e-8
NO_WEIGHT = 1e-8
NO_SUM = 1e-7

# Gives one tensor of a model, float32; asked once, so that no more tensors are in memory than a method needs.
Get = Callable[[], np.ndarray]
# A number, or numbers spread over the layers from the first to the last.
Gradient = float | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How models are merged. Fields that a method does not know must keep their defaults.

    Args:
        method: linear; slerp; task_arithmetic, ties, dare_ties, dare_linear (on differences from a base).
        weights: one for each model, each a number or numbers spread over the layers; () is 1 for all.
        t: of slerp: 0 is the base (or the first model), 1 the other.
        density: share of each difference that ties and dare keep, one for all or one for each model.
        normalize: divide by the sum of the weights; None: as mergekit (linear and ties do).
        scale: times the merged difference (mergekit's lambda).
        rescale: what makes up for what dare drops: "l1" (the difference keeps its sum of absolute values, as in
            mergekit), "density" (1/density, as in the paper) or "none"; ties knows "none" and "l1"; None: as mergekit.
        seed: of what dare drops.
    """

    method: str = "linear"
    weights: tuple[Gradient, ...] = ()
    t: Gradient = 0.5
    density: tuple[float, ...] = (1.0,)
    normalize: bool | None = None
    scale: float = 1.0
    rescale: str | None = None
    seed: int = 0


def settled(how: Merging, models: int) -> Merging:
    """The same with every default filled in and every number checked; `models` does not count the base.

    Raises:
        UserError: a method that is not known, numbers that do not fit the models or cannot be meant.
    """
    if how.method not in METHODS:
        raise UserError(f"method is {how.method!r}", "merge.method", f"give one of {', '.join(METHODS)}")
    _check_known(how)
    weights = how.weights or (1.0,) * models
    if len(weights) != models:
        given = f"{len(weights)} weight{'s' * (len(weights) != 1)}"
        what = f"{given} for {models} model{'s' * (models != 1)} (the base has none)"
        raise UserError(what, "merge.weights", "give one weight for each model, in their order")
    density = how.density * models if len(how.density) == 1 else how.density
    if len(density) != models or not all(0 < share <= 1 for share in density):
        what = f"density is {how.density} for {models} models"
        raise UserError(what, "merge.density", "give one share above 0, at most 1, for all or for each model")
    normalize = how.method in NORMALIZED if how.normalize is None else how.normalize
    rescale = ("l1" if "dare" in how.method else "none") if how.rescale is None else how.rescale
    if rescale not in RESCALES:
        raise UserError(f"rescale is {rescale!r}", "merge.rescale", f"give one of {', '.join(RESCALES)}")
    t = how.t[0] if isinstance(how.t, tuple | list) and len(how.t) == 1 else how.t  # --t=0.3 comes as a list
    done = replace(how, t=t, weights=weights, density=density, normalize=normalize, rescale=rescale)
    _check_numbers(done)
    return done


def _check_known(how: Merging) -> None:
    """Refuse the number that another method goes by: it would be left out without a word."""
    if how.method == "slerp" and how.weights:
        mend = "give --t=, 0 the base or first model, 1 the other; or --method=linear"
        raise UserError("slerp goes by t and knows no weights", "merge.weights", mend)
    if how.method != "slerp" and how.t != Merging().t:
        raise UserError(
            f"t is slerp's, and the method is {how.method}", "merge.t", "give --method=slerp, or --weights="
        )


def _check_numbers(how: Merging) -> None:
    lists = [_numbers(value) for value in (*how.weights, how.t, how.scale)]
    if not all(lists) or not np.isfinite([number for numbers in lists for number in numbers]).all():
        raise UserError("a weight is no finite number", "merge.weights, merge.t, merge.scale", "give finite numbers")
    if how.method == "slerp":
        return
    stretch = max(len(_numbers(weight)) for weight in how.weights)
    sums = [sum(at_layer(weight, i, max(stretch, 2)) for weight in how.weights) for i in range(max(stretch, 2))]
    if how.normalize and min(abs(total) for total in sums) < NO_WEIGHT:
        what = f"the weights {how.weights} sum to 0, and normalize divides by their sum"
        raise UserError(what, "merge.weights", "give other weights, or --gin.merge.normalize=False")
    if how.method != "linear" and not any(any(_numbers(weight)) for weight in how.weights):
        raise UserError("all weights are 0", "merge.weights", "the result would be the base: give other weights")


def _numbers(value: Gradient) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def at_layer(value: Gradient, layer: int | None, layers: int) -> float:
    """The number for one layer: several are spread evenly from the first layer to the last, straight lines between.

    Tensors outside the layers take the first number (as in mergekit, of the final norm and the head too).
    """
    numbers = _numbers(value)
    share = 0.0 if layer is None else layer / (layers - 1) if layers > 1 else 1.0
    place = share * (len(numbers) - 1)
    before = int(place)
    after, part = min(before + 1, len(numbers) - 1), place - before
    return (1 - part) * numbers[before] + part * numbers[after]


def plain(value: Gradient) -> float:
    """The number of settings that `for_layer` made."""
    return at_layer(value, None, 1)


def for_layer(how: Merging, layer: int | None, layers: int) -> Merging:
    """The settings with plain numbers, as they are for one layer (None: outside the layers)."""
    weights = tuple(at_layer(weight, layer, layers) for weight in how.weights)
    return replace(how, weights=weights, t=at_layer(how.t, layer, layers))


def merge(how: Merging, name: str, base: Get | None, models: Sequence[Get]) -> np.ndarray:
    """One tensor of the merged model, float32.

    Args:
        how: settled, for this layer.
        name: of the tensor; what DARE drops follows from it, the seed and the model's place.
        base: the base's tensor; None where the method needs none.
        models: the other models' tensors.
    """
    if how.method == "linear":
        return linear(how, models)
    if how.method == "slerp":
        first, second = (base, *models) if base is not None else models
        return slerp(plain(how.t), first(), second())
    assert base is not None
    return on_differences(how, name, base(), models)


def linear(how: Merging, models: Sequence[Get]) -> np.ndarray:
    """Σ w·x, over Σ w where normalised (Wortsman et al., Model soups, arXiv 2203.05482)."""
    total: np.ndarray | None = None
    for weight, get in zip(how.weights, models, strict=True):
        part = get() * np.float32(plain(weight))
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return np.divide(total, _weight_sum(how), out=total) if how.normalize else total


def slerp(t: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the great circle from a (t = 0) to b (Shoemake 1985), the whole tensor taken as one vector.

    The angle is that between the two; lengths are mixed with the same two factors. Where |cos| passes 0.9995 the two
    are mixed in a straight line. Sums are float64.
    """
    lengths = [_norm(x) for x in (a, b)]
    lengths = [length if length > NO_NORM else 1.0 for length in lengths]
    cosine = float(np.clip(_dot(a, b) / (lengths[0] * lengths[1]), -1.0, 1.0))
    if abs(cosine) > DOT_THRESHOLD:
        first, second = 1.0 - t, t
    else:
        angle = np.arccos(cosine)
        first, second = np.sin((1.0 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    mixed = a * np.float32(first)
    mixed += b * np.float32(second)
    return mixed


def on_differences(how: Merging, name: str, base: np.ndarray, models: Sequence[Get]) -> np.ndarray:
    """Base + scale · merged differences from it.

    Task arithmetic (Ilharco et al., arXiv 2212.04089; a chat vector where the base is the chat model's parent: Huang et
    al., arXiv 2310.04799): Σ w·d. TIES (Yadav et al., arXiv 2306.01708): of each d only the largest share `density` is
    kept, then of each weight only those that have the sign of Σ w·d are summed. DARE (Yu et al., arXiv 2311.03099):
    what is kept is drawn at random.
    """
    differences = []
    for place, (weight, density, get) in enumerate(zip(how.weights, how.density, models, strict=True)):
        d = get() - base
        if how.method == "ties":
            d = _rescaled(d, largest(d, density), density, how.rescale)
        elif how.method.startswith("dare"):
            d = _rescaled(d, drawn(d.shape, density, f"{how.seed}/{name}/{place}"), density, how.rescale)
        d *= np.float32(plain(weight))
        differences.append(d)
    if how.method in ("ties", "dare_ties"):
        merged, divisor = _elected(how, differences)
    else:
        merged = differences[0]
        for d in differences[1:]:
            merged += d
        divisor = np.asarray(_weight_sum(how))
    if how.normalize:
        merged /= divisor
    if how.scale != 1:
        merged *= np.float32(how.scale)
    merged += base
    return merged


def largest(d: np.ndarray, density: float) -> np.ndarray | None:
    """True at the ⌊density·n⌋ values (at least one) of greatest size; of equal ones the first. None keeps all."""
    if density >= 1:
        return None
    size = np.abs(d).reshape(-1)
    keep = max(1, int(density * size.size))
    edge = np.partition(size, size.size - keep)[size.size - keep]
    kept = size > edge
    equal = np.flatnonzero(size == edge)
    kept[equal[: keep - int(kept.sum())]] = True
    return kept.reshape(d.shape)


def drawn(shape: tuple[int, ...], density: float, seed: str) -> np.ndarray | None:
    """True with probability `density`, each drawn by a counter-based generator seeded by a text. None keeps all."""
    if density >= 1:
        return None
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(shape, np.float32) < np.float32(density)


def _rescaled(d: np.ndarray, kept: np.ndarray | None, density: float, rescale: str | None) -> np.ndarray:
    """The difference with 0 where it is not kept, made as large again as `rescale` says."""
    if kept is None:
        return d
    before = _size(d) if rescale == "l1" else 0.0
    d *= kept
    if rescale == "density":
        d /= np.float32(density)
    elif rescale == "l1" and before >= NO_SUM and (after := _size(d)) >= NO_SUM:
        d *= np.float32(before / after)
    return d


def _elected(how: Merging, differences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the differences that have the elected sign, sum of their weights, 1 where that is 0).

    The sign is that of the weighted sum, + where that is 0 (by mass, not by count); a difference of 0 has none.
    """
    total = differences[0].copy()
    for d in differences[1:]:
        total += d
    sign = np.where(total >= 0, np.float32(1), np.float32(-1))
    merged, divisor = total, np.zeros_like(total)
    merged[...] = 0
    for weight, d in zip(how.weights, differences, strict=True):
        agrees = np.sign(d) == sign
        merged += d * agrees
        divisor += np.float32(plain(weight)) * agrees
    divisor[divisor == 0] = 1
    return merged, divisor


def _weight_sum(how: Merging) -> np.float32:
    total = np.sum(np.asarray([plain(weight) for weight in how.weights], np.float32), dtype=np.float32)
    return np.float32(1) if abs(total) < NO_WEIGHT else total


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(_dot(x, x)))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """In float64, a row block at a time, so that no float64 copy of a tensor exists."""
    step = max(1, (1 << 22) * len(a) // max(a.size, 1))
    parts = [
        float(np.sum(np.multiply(a[i : i + step], b[i : i + step], dtype=np.float64))) for i in range(0, len(a), step)
    ]
    return float(sum(parts))


def _size(x: np.ndarray) -> float:
    step = max(1, (1 << 22) * len(x) // max(x.size, 1))
    return float(sum(float(np.sum(np.abs(x[i : i + step]), dtype=np.float64)) for i in range(0, len(x), step)))
