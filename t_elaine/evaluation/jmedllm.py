"""The protocol `jmedllm`: how JMedLLM's authors ask IgakuQA, with each of their prompt templates, fault for fault.

Zero-shot; the answer is to be an option's text, not its letter. Its first line is compared with the options in two
ways: exactly, and by Gestalt match, which picks the options that resemble it most (Ratcliff and Obershelp, as difflib
has it). Source of templates and rules: stardust-coder/japanese-lm-med-harness, template.py and eval_bench.py.
"""

import difflib
from collections import Counter
from functools import lru_cache, partial
from itertools import permutations
from math import comb

from t_elaine.errors import UserError
from t_elaine.evaluation.items import LETTERS, Exam, Item, spread
from t_elaine.evaluation.sitting import Baselines, Judge, Judged, Sitting, load_rules, mean
from t_elaine.generation.sampling import Sampling

NAME = "jmedllm"
# A constant predictor that says nothing: Gestalt match then picks the first options.
NOTHING = "(nothing)"


def sittings(exam: Exam, limit: int = 0, chosen: str = "") -> list[Sitting]:
    """The exam with each template of its language.

    Args:
        exam: in Japanese or English.
        limit: ask only so many items, spread evenly over those that are asked; 0 takes all.
        chosen: one template alone, with or without its ending _ja.

    Raises:
        UserError: another language, no such template, or no item that is asked.
    """
    rules = load_rules(NAME)
    templates = {name: one for name, one in rules.data["templates"].items() if one["language"] == exam.language}
    if not templates:
        raise UserError(f"jmedllm has no template for the language {exam.language!r}", exam.path, "it has ja and en")
    named = {name: one for name, one in templates.items() if not chosen or _style(name) == _style(chosen)}
    if not named:
        what = f"jmedllm has no template {chosen!r} for the language {exam.language!r}"
        raise UserError(what, "protocols", f"give jmedllm, or jmedllm: with one of {', '.join(templates)}")
    reasons = {item.line: why for item in exam.items if (why := left_out(item, exam.language))}
    items = spread(tuple(item for item in exam.items if item.line not in reasons), limit)
    if not items:
        mend = f"reasons: {dict(Counter(reasons.values()))}"
        raise UserError("jmedllm asks no item of this exam", exam.path, mend)
    return [
        Sitting(
            protocol=f"{NAME}:{name}",
            rules=rules,
            exam=exam,
            items=items,
            prompts=tuple(prompt(name, item) for item in items),
            sampling=Sampling(**rules.data["sampling"]),
            shots=0,
            excluded=dict(sorted(Counter(reasons.values()).items())),
        )
        for name in named
    ]


def _style(name: str) -> str:
    return name.removesuffix("_ja")


def left_out(item: Item, language: str) -> str:
    """Why the published evaluation does not ask an item; "" where it does."""
    rules = load_rules(NAME).data
    if not item.text_only:
        return "about an image"
    if len(item.choices) != rules["options"]:
        return f"not {rules['options']} options"
    longest = rules["characters"][language]
    return f"longer than {longest} characters" if len(item.text) > longest else ""


def prompt(template: str, item: Item) -> str:
    """An item's prompt. Options stand with commas between, whatever commas they have themselves."""
    one = load_rules(NAME).data["templates"][template]
    options = ",".join(item.choices)
    if one["options"] == "letters":
        options = "\n".join(
            f"({letter.upper()}){text}" for letter, text in zip(item.letters, item.choices, strict=True)
        )
    before, _, rest = one["text"].partition("{{instruction}}")
    between, _, after = rest.partition("{{input}}")
    return f"{before}{item.text}{between}{options}{after}"


def response(template: str, answer: str | None) -> str:
    """The line that is compared: the first of what follows the first of the marks that the text has.

    The published code looks in prompt and answer together, so a mark of the prompt counts unless one that is looked for
    earlier stands in the answer. A template without a mark would leave the prompt's own first line; here the answer
    counts, as with the published code's option --use_vllm.
    """
    rules = load_rules(NAME).data
    text = rules["templates"][template]["marker"] + (answer or "")
    mark = next((mark for mark in rules["markers"] if mark in text), None)
    found = text if mark is None else text.split(mark)[1]
    return found.strip().split("\n")[0].strip()


def gold(item: Item) -> str:
    """The right options' texts, with commas between."""
    return ",".join(item.choices[LETTERS.index(letter)] for letter in item.answer)


def exact(item: Item, line: str) -> bool:
    """The line is the right options' texts, in their order; full stops do not count."""
    return _plain(gold(item)) == _plain(line)


def _plain(text: str) -> str:
    return text.replace(".", "").strip()


def gestalt(item: Item, line: str) -> bool:
    """As many options as the gold has commas and one more, those that resemble the line most, are the right ones."""
    wanted = gold(item).split(",")
    if len(wanted) > len(item.choices):
        return False
    alike = [_likeness(choice, _plain(line)) for choice in item.choices]
    best = sorted(range(len(alike)), key=lambda place: -alike[place])[: len(wanted)]  # of equal ones the first
    return sorted(item.choices[place] for place in best) == sorted(wanted)


def _likeness(one: str, other: str) -> float:
    """The mean of both directions, which differ: tide and diet have 0.25 and 0.5."""
    pairs = ((one, other), (other, one))
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2


def judges() -> dict[str, Judge]:
    """The grading of each template by protocol; right is what Gestalt match finds right, since that is published."""
    return {
        f"{NAME}:{name}": Judge(judge=partial(judge, name), part=lambda item: "", baselines=baselines)
        for name in load_rules(NAME).data["templates"]
    }


def judge(template: str, item: Item, answer: str | None) -> Judged:
    """One answer. It counts as parsed where it is the text of an option, or of several with commas between."""
    line = response(template, answer)
    texts = {_plain(choice) for choice in item.choices}
    parsed = _plain(line) in texts or all(_plain(part) in texts for part in line.split(","))
    return Judged(prediction=line, right=gestalt(item, line), parsed=parsed, marks={"exact": float(exact(item, line))})


@lru_cache(maxsize=8)
def baselines(items: tuple[Item, ...]) -> Baselines:
    """Under Gestalt match: the right options' texts in their best order, as many drawn as are right, and always the
    text of the option at one place, or nothing at all."""
    constant = {letter: mean(gestalt(item, _said(item, letter)) for item in items) for letter in ("", *LETTERS[:5])}
    always = max(constant, key=lambda letter: constant[letter])
    return Baselines(
        ceiling=mean(any(gestalt(item, ",".join(way)) for way in _ways(item)) for item in items),
        chance=mean(1 / comb(len(item.choices), len(item.answer)) if _can_be_right(item) else 0.0 for item in items),
        majority=constant[always],
        always=always or NOTHING,
    )


def _said(item: Item, letter: str) -> str:
    return item.choices[LETTERS.index(letter)] if letter else ""


def _ways(item: Item) -> list[tuple[str, ...]]:
    return list(permutations(item.choices[LETTERS.index(letter)] for letter in item.answer))


def _can_be_right(item: Item) -> bool:
    """No right option has a comma of its own, which would make more options of it."""
    return len(gold(item).split(",")) == len(item.answer)
