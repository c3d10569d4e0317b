"""What is written with a cache, in any company, on any mesh, is what the whole forward pass says, token by token."""

import numpy as np
import pytest

from t_elaine.errors import UserError
from t_elaine.generation import batch
from t_elaine.generation.engine import generate, stream
from t_elaine.generation.requests import Generated, Request
from t_elaine.generation.sampling import Sampling
from t_elaine.parallel.mesh import MeshConfig
from tests.generation import tiny

NEW = 12


def ask(prompts: list[np.ndarray], new: int = NEW, **settings: object) -> list[Request]:
    return [Request(tokens=prompt, sampling=Sampling(max_new=new, **settings)) for prompt in prompts]  # type: ignore[arg-type]


def answers(engine: batch.Engine, requests: list[Request]) -> list[Generated]:
    return sorted(generate(engine, requests), key=lambda answer: answer.index)


def same(ours: list[Generated], theirs: list[Generated]) -> None:
    assert [a.tokens.tolist() for a in ours] == [a.tokens.tolist() for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-5)
        assert (a.text, a.finish) == (b.text, b.finish)


@pytest.mark.parametrize("tied", [False, True])
def test_a_ragged_batch_writes_what_the_forward_pass_says(tied: bool) -> None:
    """Nine prompts through four rows: rows are refilled while others write."""
    prompts = tiny.prompts(9)
    found = answers(tiny.engine(tied_embeddings=tied), ask(prompts))
    for prompt, answer in zip(prompts, found, strict=True):
        assert (len(answer.tokens), answer.finish) == (NEW, "length")
        tiny.check_greedy(prompt, answer, tied_embeddings=tied)


def test_answers_of_very_different_lengths() -> None:
    """Rows end at their own time and the ring turns several times for some."""
    prompts = tiny.prompts(10, seed=1)
    lengths = [1, 2, 70, 5, 33, 16, 17, 90, 3, 64]
    requests = [ask([p], n)[0] for p, n in zip(prompts, lengths, strict=True)]
    found = answers(tiny.engine(), requests)
    assert [len(answer.tokens) for answer in found] == lengths
    for prompt, answer in zip(prompts, found, strict=True):
        tiny.check_greedy(prompt, answer)


def test_one_by_one_is_the_same() -> None:
    requests = ask(tiny.prompts(6, seed=2))
    alone = [next(iter(generate(tiny.engine(rows=1), [request]))) for request in requests]
    found = answers(tiny.engine(), requests)
    same(found, [Generated(**{**a.__dict__, "index": i}) for i, a in enumerate(alone)])


def test_a_shared_beginning_is_read_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tiny.prompts(6, seed=3, shared=37)
    read = []
    plain = batch.read
    monkeypatch.setattr(batch, "read", lambda *a: read.append([len(row) for row in a[1]]) or plain(*a))
    found = answers(tiny.engine(), ask(prompts))
    assert read[0] == [37] and max(max(lengths) for lengths in read[1:]) <= 40
    same(found, sorted(generate(tiny.engine(), ask(prompts), share=False), key=lambda answer: answer.index))
    assert read[-1] and min(read[-1]) > 37
    tiny.check_greedy(prompts[0], found[0])


@pytest.mark.parametrize("shared", [0, 37])
def test_prompts_read_in_pieces(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tiny.prompts(3, seed=4, shared=shared, longest=90)
    monkeypatch.setattr(batch, "PIECE", 32)
    for prompt, answer in zip(prompts, answers(tiny.engine(), ask(prompts)), strict=True):
        tiny.check_greedy(prompt, answer)


def test_long_prompts_attend_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More queries than are computed at once."""
    monkeypatch.setattr("t_elaine.generation.cache.QUERIES", 16)
    prompts = tiny.prompts(2, seed=5, longest=150)
    for prompt, answer in zip(prompts, answers(tiny.engine(rows=2), ask(prompts)), strict=True):
        tiny.check_greedy(prompt, answer)


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2, tensor=4), MeshConfig(replica=2, fsdp=4)])
@pytest.mark.parametrize("shared", [0, 20])
def test_eight_devices_write_the_same(mesh: MeshConfig, shared: int) -> None:
    requests = ask(tiny.prompts(7, seed=6, shared=shared))
    eight = tiny.engine(mesh=mesh)
    assert len(eight.weights["embed"]["table"].sharding.device_set) == 8
    same(answers(eight, requests), answers(tiny.engine(), requests))


def test_bfloat16_runs() -> None:
    engine = tiny.engine(dtype="bfloat16")
    assert engine.weights["layers"][0]["mlp"]["up"].dtype == "bfloat16"
    found = answers(engine, ask(tiny.prompts(5, seed=7, shared=20)))
    exact = answers(tiny.engine(), ask(tiny.prompts(5, seed=7, shared=20)))
    first = [(a.tokens[0], b.tokens[0], a.logprobs[0], b.logprobs[0]) for a, b in zip(found, exact, strict=True)]
    for ours, theirs, logprob, reference in first:
        assert ours != theirs or abs(logprob - reference) < 0.1
    assert sum(ours == theirs for ours, theirs, *_ in first) >= 3


def test_draws_do_not_depend_on_company() -> None:
    settings = {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2, "min_new": 3, "seed": 11}
    requests = ask(tiny.prompts(6, seed=8), **settings)
    found = answers(tiny.engine(), requests)
    numbered = [Request(tokens=r.tokens, sampling=r.sampling, number=i) for i, r in enumerate(requests)]
    for index, request in enumerate(numbered):
        alone = next(iter(generate(tiny.engine(rows=1), [request])))
        assert alone.tokens.tolist() == found[index].tokens.tolist()
    other = answers(tiny.engine(), ask(tiny.prompts(6, seed=8), **{**settings, "seed": 12}))
    assert [a.tokens.tolist() for a in other] != [a.tokens.tolist() for a in found]
    greedy = answers(tiny.engine(), [*ask(tiny.prompts(6, seed=8)[:2]), *requests[2:]])
    tiny.check_greedy(requests[0].tokens, greedy[0])
    assert [a.tokens.tolist() for a in greedy[2:]] == [a.tokens.tolist() for a in found[2:]]


def test_equal_requests_draw_differently() -> None:
    prompt = tiny.prompts(1)[0]
    found = answers(tiny.engine(), ask([prompt] * 6, temperature=2.0))
    assert len({tuple(answer.tokens.tolist()) for answer in found}) == 6


def test_end_ids_and_the_least_length() -> None:
    prompt = tiny.prompts(1, seed=9)[0]
    tokens = answers(tiny.engine(), ask([prompt]))[0].tokens.tolist()
    end = tokens[4]
    place = tokens.index(end)
    request = Request(tokens=prompt, sampling=Sampling(max_new=NEW), end_ids=(end, 95))
    answer = answers(tiny.engine(), [request])[0]
    assert (answer.tokens.tolist(), answer.finish) == (tokens[: place + 1], "end")
    assert len(answer.text) == place
    longer = Request(tokens=prompt, sampling=Sampling(max_new=NEW, min_new=8), end_ids=(end,))
    answer = answers(tiny.engine(), [longer])[0]
    assert end not in answer.tokens[:8] and len(answer.tokens) >= 8


def test_a_stop_string_across_tokens() -> None:
    prompt = tiny.prompts(1, seed=10)[0]
    tokens = answers(tiny.engine(), ask([prompt], 40))[0].tokens.tolist()
    text = "".join(tiny.VOCABULARY.pieces[t].decode() for t in tokens if t not in (1, 2))
    stop = text[21:24]
    cut = text.index(stop)
    answer = answers(tiny.engine(), ask([prompt], 40, stop=("never", stop)))[0]
    assert (answer.text, answer.finish) == (text[:cut], "stop")
    assert len(answer.tokens) == len(answer.logprobs) < 40
    pieces = list(stream(tiny.engine(rows=1), ask([prompt], 40, stop=("never", stop))[0]))
    assert "".join(pieces) == text[:cut] and len(pieces) > 1


def test_streaming_gives_the_whole_answer() -> None:
    request = ask([tiny.prompts(1, seed=11)[0]], 30)[0]
    written = stream(tiny.engine(rows=1), request)
    pieces = []
    while True:
        try:
            pieces.append(next(written))
        except StopIteration as end:
            answer = end.value
            break
    whole = answers(tiny.engine(), [request])[0]
    assert "".join(pieces) == whole.text == answer.text and len(pieces) > 4
    assert answer.tokens.tolist() == whole.tokens.tolist()


def test_progress_is_told() -> None:
    told: list[int] = []
    found = list(generate(tiny.engine(), ask(tiny.prompts(5)), told.append))
    assert sum(told) == sum(len(answer.tokens) for answer in found) == 5 * NEW


def test_nothing_asked_nothing_answered() -> None:
    assert list(generate(tiny.engine(), [])) == []


def test_what_cannot_be_answered_is_told_before_anything_is() -> None:
    long = Request(tokens=np.full(300, 5, np.int32), name="MedQA 17")
    with pytest.raises(UserError, match=r"300 tokens.*256") as caught:
        next(generate(tiny.engine(), [*ask(tiny.prompts(1)), long]))
    assert caught.value.where == "MedQA 17"
    with pytest.raises(UserError, match="empty"):
        next(generate(tiny.engine(), ask([np.zeros(0, np.int32)])))
    with pytest.raises(UserError, match="96 is not one of the model's 96"):
        next(generate(tiny.engine(), ask([np.array([96])])))
    with pytest.raises(UserError, match="context"):
        tiny.engine(mesh=MeshConfig(context=2))


def test_the_context_ends_an_answer() -> None:
    answer = answers(tiny.engine(), ask([np.full(250, 5, np.int32)], 100))[0]
    assert (len(answer.tokens), answer.finish) == (6, "length")


@pytest.mark.parametrize("rows", [2, 4])
def test_no_step_copies_a_cache(rows: int) -> None:
    """Read from the compiled loop: a layer's cache is updated where it lies, with a shared beginning and without."""
    engine = tiny.engine(rows=rows)
    for shared in (0, 20):
        requests = ask(tiny.prompts(rows, shared=shared))
        plan = batch.make_plan(engine, requests, [NEW] * rows)
        common = batch.read_shared(engine, requests[0].tokens[: plan.prefix]) if shared else None
        arguments = (batch.empty_state(engine, plan), common, np.ones(rows, bool), np.int32(8), plan.how)
        text = engine.programs.write.lower(engine.weights, *arguments).compile().as_text()
        cache = f"f32[{rows},{tiny.CONFIG.kv_heads},{plan.slots},{tiny.CONFIG.head_dim}]"
        assert f"{cache}{{3,2,1,0}} dynamic-update-slice" in text
        assert not [line for line in text.splitlines() if f"= {cache}" in line and " copy(" in line]
