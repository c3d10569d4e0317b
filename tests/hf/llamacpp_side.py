"""Run by a Python that has llama-cpp-python: the ids, greedy text and logits that llama.cpp gets of a GGUF file.

    python llamacpp_side.py ASKED.json TOLD.npz

ASKED: {"file": GGUF, "texts": [...], "prompts": [[ids], ...], "new": tokens}. TOLD: `told`, JSON of `texts` and
`greedy` (lists of ids) and `gaps` (between the two highest logits at each new token); `logits_<i>` float32 [n, V].
"""

import json
import sys

import llama_cpp
import numpy as np


def main(asked: str, told: str) -> None:
    """See the module."""
    with open(asked, encoding="utf-8") as file:
        wanted = json.load(file)
    # Its cache in float32 (0), as ours is here: by default it rounds keys and values to float16.
    how = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "verbose": False}
    model = llama_cpp.Llama(wanted["file"], logits_all=True, **how)
    found: dict[str, object] = {"version": llama_cpp.__version__}
    found["texts"] = [model.tokenize(text.encode(), add_bos=False, special=False) for text in wanted["texts"]]
    found["greedy"], found["gaps"], arrays = [], [], {}
    for number, prompt in enumerate(wanted["prompts"]):
        model.reset()
        model.eval(prompt)
        arrays[f"logits_{number}"] = np.array(model.scores[: len(prompt)], np.float32)
        ids, gaps = [], []
        for _ in range(wanted["new"]):
            scores = np.array(model.scores[model.n_tokens - 1])
            second, first = np.sort(scores)[-2:]
            ids.append(int(scores.argmax()))
            gaps.append(float(first - second))
            model.eval([ids[-1]])
        found["greedy"].append(ids)
        found["gaps"].append(gaps)
    np.savez(told, told=np.frombuffer(json.dumps(found).encode(), np.uint8), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
