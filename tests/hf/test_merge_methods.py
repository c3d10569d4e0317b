"""The arithmetic of merging: equal to what mergekit made of the same models; the papers' rules on small vectors."""

import base64
import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.hf import mapping, merge_methods
from t_elaine.hf.merge_methods import Merging, at_layer, drawn, for_layer, largest, merge, settled, slerp
from t_elaine.model.config import LlamaConfig


@cache
def record() -> dict[str, Any]:
    """Three tiny models and what mergekit 0.1.5 made of them (benchmarks/merge.py --record)."""
    return json.loads(Path(__file__).with_name("mergekit.json").read_text(encoding="utf-8"))


CONFIG = LlamaConfig(**record()["config"])


def unpacked(text: str) -> dict[str, np.ndarray]:
    """All tensors of a model in our layout, by Hugging Face's name."""
    values, found = np.frombuffer(base64.b64decode(text), "<f4"), {}
    for tensor in mapping.hf_tensors(CONFIG):
        part, values = np.split(values, [math.prod(tensor.shape)])
        hf = part.reshape(tensor.shape)
        found[tensor.name] = mapping.from_hf(tensor.weight, CONFIG, lambda box, hf=hf: hf[tuple(box)])
    return found


def settings(case: dict[str, Any]) -> Merging:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return Merging(**{name: tuples(value) for name, value in case.items()})


def merged_model(how: Merging, models: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    base, *others = models
    others = others[:1] if how.method == "slerp" else others
    how = settled(how, len(others))
    return {
        t.name: merge(
            for_layer(how, t.layer, CONFIG.layers),
            t.name,
            partial(base.__getitem__, t.name) if how.method != "linear" else None,
            [partial(one.__getitem__, t.name) for one in others],
        )
        for t in mapping.hf_tensors(CONFIG)
    }


@pytest.mark.parametrize("name", record()["cases"])
def test_equal_to_mergekit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = record()["cases"][name]
    by_name = {tensor.name: tensor for tensor in mapping.hf_tensors(CONFIG)}

    def replayed(shape: tuple[int, ...], density: float, seed: str) -> np.ndarray:
        _, tensor, place = seed.split("/")
        bits = np.frombuffer(base64.b64decode(case["masks"][tensor][int(place)]), np.uint8)
        hf = np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(by_name[tensor].shape)
        return mapping.from_hf(by_name[tensor].weight, CONFIG, lambda box: hf[tuple(box)])

    if case["masks"]:
        monkeypatch.setattr(merge_methods, "drawn", replayed)
    ours = merged_model(settings(case["settings"]), [unpacked(text) for text in record()["models"]])
    theirs = unpacked(case["merged"])
    for tensor, values in ours.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, theirs[tensor], rtol=2e-6, atol=2e-6, err_msg=tensor)
    assert "dare" not in name or case["masks"]


def test_a_merge_of_one_kind_of_models_is_that_model() -> None:
    """Half of each of two equal models, a difference of weight 1 to the base, slerp at its ends."""
    a, b = (np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32) for seed in (0, 1))
    same = merge(settled(Merging(weights=(0.5, 0.5)), 2), "x", None, [lambda: a, lambda: a])
    np.testing.assert_array_equal(same, a)
    moved = merge(settled(Merging(method="task_arithmetic"), 1), "x", lambda: a, [lambda: b])
    np.testing.assert_allclose(moved, b, atol=1e-6)
    np.testing.assert_allclose(slerp(0.0, a, b), a, atol=1e-6)
    np.testing.assert_allclose(slerp(1.0, a, b), b, atol=1e-6)


def test_slerp_keeps_the_length_and_is_straight_past_its_threshold() -> None:
    a, b = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(slerp(0.5, a, b), np.full(2, math.sqrt(0.5)), atol=1e-6)
    near = np.array([1.0, 0.02], np.float32)  # cos = 0.9998
    np.testing.assert_array_equal(slerp(0.5, a, near), (a + near) / 2)
    farther = np.array([1.0, 0.04], np.float32)  # cos = 0.9992
    assert np.abs(slerp(0.5, a, farther) - (a + farther) / 2).max() > 1e-5
    np.testing.assert_array_equal(slerp(0.5, a, -a), np.zeros(2))
    np.testing.assert_allclose(slerp(0.25, a, 0 * a), math.sin(0.75 * math.pi / 2) * a)  # no length: at right angles


def test_ties_elects_by_mass_and_leaves_out_who_disagrees() -> None:
    base = np.zeros(4, np.float32)
    one, two, three = (np.array(x, np.float32) for x in ([1, -1, 0, 3], [1, -1, 2, -4], [-5, 1, 2, 1]))
    how = settled(Merging(method="ties"), 3)
    merged = merge(how, "x", lambda: base, [lambda: one, lambda: two, lambda: three])
    np.testing.assert_array_equal(merged, [-5, -1, 2, 2])  # 3 − 4 + 1 = 0 counts as +; a 0 has no sign


def test_ties_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    d = np.array([[3, -1, 2], [2, -2, 0.5]], np.float32)
    np.testing.assert_array_equal(largest(d, 0.5), [[True, False, True], [True, False, False]])
    assert largest(d, 0.01).sum() == 1 and largest(d, 1.0) is None
    ones = np.ones((3, 4), np.float32)
    assert np.flatnonzero(largest(ones, 0.5)).tolist() == [0, 1, 2, 3, 4, 5]


def test_dare_draws_by_seed_tensor_and_place_alone() -> None:
    shape = (200, 50)
    first = drawn(shape, 0.3, "0/model.norm.weight/0")
    assert first is not None and abs(first.mean() - 0.3) < 0.02
    np.testing.assert_array_equal(first, drawn(shape, 0.3, "0/model.norm.weight/0"))
    for other in ("1/model.norm.weight/0", "0/model.embed_tokens.weight/0", "0/model.norm.weight/1"):
        assert abs((first == drawn(shape, 0.3, other)).mean() - 0.58) < 0.03  # 0.3² + 0.7²


@pytest.mark.parametrize("rescale", ["l1", "density", "none"])
def test_dare_makes_up_for_what_it_drops(rescale: str) -> None:
    base, model = (np.random.default_rng(seed).normal(size=(100, 100)).astype(np.float32) for seed in (0, 1))
    how = settled(Merging(method="dare_linear", density=(0.4,), rescale=rescale), 1)
    d, wanted = merge(how, "x", lambda: base, [lambda: model]) - base, model - base
    share = np.abs(d).sum() / np.abs(wanted).sum()
    expected = {"l1": 1.0, "density": 1.0, "none": 0.4}[rescale]
    assert abs(share - expected) < (1e-4 if rescale == "l1" else 0.03)
    kept = d[np.abs(d) > 1e-3] / wanted[np.abs(d) > 1e-3]
    assert np.ptp(kept) < 1e-2 and (rescale != "density" or abs(kept.mean() - 2.5) < 1e-3)


def test_numbers_are_spread_over_the_layers() -> None:
    assert [at_layer((0.0, 1.0, 0.0), layer, 5) for layer in range(5)] == [0, 0.5, 1, 0.5, 0]
    assert at_layer((0.25, 1.0), None, 5) == 0.25 and at_layer(3.0, 2, 5) == 3.0
    assert at_layer((0.0, 1.0), 0, 1) == 1.0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (Merging(method="average"), "method"),
        (Merging(weights=(1.0, 1.0, 1.0)), "3 weights for 2 models"),
        (Merging(weights=(1.0,)), "1 weight for 2 models"),
        (Merging(t=0.3), "t is slerp's, and the method is linear"),
        (Merging(method="slerp", weights=(1.0, 2.0)), "slerp goes by t and knows no weights"),
        (Merging(weights=(1.0, -1.0)), "sum to 0"),
        (Merging(method="ties", weights=((1.0, 1.0), (1.0, -1.0))), "sum to 0"),
        (Merging(method="task_arithmetic", weights=(0.0, 0.0)), "all weights are 0"),
        (Merging(weights=(1.0, math.nan)), "no finite number"),
        (Merging(method="ties", density=(0.0,)), "density"),
        (Merging(method="ties", density=(0.5, 0.5, 0.5)), "density"),
        (Merging(method="dare_ties", density=(1.5,)), "density"),
        (Merging(method="dare_ties", rescale="l2"), "rescale"),
        (Merging(method="slerp", t=()), "no finite number"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(how: Merging, told: str) -> None:
    with pytest.raises(UserError, match=told):
        settled(how, 2)


def test_opposite_weights_are_a_task_vector_taken_away() -> None:
    """Without normalisation a sum of 0 divides nothing."""
    assert settled(Merging(method="task_arithmetic", weights=(1.0, -1.0)), 2).normalize is False
