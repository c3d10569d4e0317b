"""Does transformers give an exported folder's text the ids that the model was trained on?

Asked of `AutoTokenizer` itself, where transformers is installed; it needs neither PyTorch nor the weights. It changes
no file: what is lacking is said in the export's output, in proof.json and in the card.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What tokenizers disagree on: spaces kept or not, line ends, ideographic space, a character beyond the vocabulary.
AWKWARD = (
    "two  spaces,   three, and a\ttab",
    " leading and trailing ",
    "line\nline\n\n  indented\r\n",
    "主訴：発熱　体温は38.5℃。吉野家ではなく𠮷野家。",
    "患者，男，45岁。\n　　诊断：②型糖尿病（½）",
    "ｶﾞｰｾﾞ ﬁne é é",
    "",
)


def is_possible() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def compare(
    folder: Path, encode: Callable[[list[str]], list[np.ndarray]], before: Sequence[int], texts: Iterable[str]
) -> dict[str, Any]:
    """What `AutoTokenizer.from_pretrained(folder)` makes of the texts, beside our vocabulary.

    Args:
        folder: the exported folder.
        encode: texts → ids, by the vocabulary that the model was trained with.
        before: ids that stand before every document of the training rows.
        texts: to compare ids of; AWKWARD are added.

    Returns:
        `by`: the program; `texts`: how many; `differing`: those with other ids; `begins`: ids that it puts before a
        text; `trained`: those that the training rows have there; `error`: why it cannot be loaded; `passed`.
    """
    # Told in the export's own words where PyTorch is not installed; the tokenizer needs none.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    wanted = [*texts, *AWKWARD]
    found: dict[str, Any] = {"by": f"transformers {importlib.metadata.version('transformers')}", "texts": len(wanted)}
    found |= {"differing": [], "begins": None, "trained": [int(i) for i in before], "error": "", "passed": False}
    try:
        from transformers import AutoTokenizer  # may itself fail, over half an installation of PyTorch

        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        plain = [theirs(text, add_special_tokens=False)["input_ids"] for text in wanted]
        whole = theirs(wanted[0])["input_ids"]
    except Exception as error:  # the tokenizers library raises bare Exception
        return found | {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    ours = [ids.tolist() for ids in encode(wanted)]
    found["differing"] = [text for text, a, b in zip(wanted, plain, ours, strict=True) if a != b]
    found["begins"] = whole[: len(whole) - len(plain[0])] if whole[len(whole) - len(plain[0]) :] == plain[0] else None
    return found | {"passed": not found["differing"] and found["begins"] == found["trained"]}


def summary(found: dict[str, Any]) -> str:
    """The comparison in one line; what is lacking, and what to do about it."""
    start = f"tokenizer, loaded by {found['by']}: "
    if found["error"]:
        return f"{start}FAILED ({found['error']}); give it ids from this project's own vocabulary"
    if found["differing"]:
        return (
            f"{start}OTHER IDS than in training for {len(found['differing'])} of {found['texts']} texts, such as "
            f"{found['differing'][0]!r}; give it ids from this project's own vocabulary"
        )
    if found["begins"] != found["trained"]:
        told = "something else around a text" if found["begins"] is None else f"{found['begins']} before a text"
        return (
            f"{start}the ids of training for {found['texts']} texts, but it puts {told}, where the training rows have "
            f"{found['trained']}; pass add_special_tokens=False and put them there yourself"
        )
    beginning = f"with {found['begins']} before a text, as in training" if found["begins"] else "nothing before a text"
    return f"{start}the ids of training for {found['texts']} texts, {beginning}"
