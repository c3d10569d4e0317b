"""The protocol `official`: prompts, parsing and grading of the published evaluation, fault for fault.

Its purpose is a number that may stand in the published table (aistairc/medLLM_QA_benchmark, scripts/). The first five
items of the file are every prompt's demonstrations and are not scored; the answer is its first character; an item with
several right letters can never be right. What would be better is `repaired`.
"""

import unicodedata
from functools import cache

from t_elaine.errors import UserError
from t_elaine.evaluation.items import LETTERS, Exam, Item, spread
from t_elaine.evaluation.sitting import Baselines, Judged, Rules, Sitting, load_rules, mean

NAME = "official"


def sitting(exam: Exam, limit: int = 0) -> Sitting:
    """The exam's prompts.

    Args:
        exam: in one of the three languages that the published scripts have a template for.
        limit: ask only so many items, spread evenly over those that are scored; the demonstrations stay. 0 takes all.

    Raises:
        UserError: another language, or no item is left after the demonstrations.
    """
    rules = load_rules(NAME)
    shots = int(rules.data["shots"])
    if exam.language not in rules.data["templates"]:
        mend = f"the published scripts have {', '.join(rules.data['templates'])}; ask with another protocol"
        raise UserError(f"official has no template for the language {exam.language!r}", exam.path, mend)
    if len(exam.items) <= shots:
        what = f"it has {len(exam.items)} items, of which {shots} are demonstrations"
        raise UserError(what, exam.path, f"give at least {shots + 1}")
    before = [line for item in exam.items[:shots] for line in (_asked(rules, exam.language, item), shown(item))]
    items = spread(exam.items[shots:], limit)
    return Sitting(
        protocol=NAME,
        rules=rules,
        exam=exam,
        items=items,
        prompts=tuple("\n".join([*before, _asked(rules, exam.language, item)]) + "\n" for item in items),
        sampling=rules.sampling(exam.language),
        shots=shots,
        excluded={},
    )


def _asked(rules: Rules, language: str, item: Item) -> str:
    """An item up to its cue; without options it is the bare question."""
    template = rules.template(language)
    lines = [] if item.context is None else [template["context"] + item.context]
    lines.append(template["question"] + item.text)
    if item.choices:
        lines += [f"{letter}: {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
        lines += [template["instruction"].replace("{}", str(len(item.answer))), template["cue"]]
    return "\n".join(lines)


def shown(item: Item) -> str:
    """The answer of a demonstration; an answer that is a text, not a list, falls into its letters."""
    return ",".join(item.answer)


def predict(answer: str | None) -> str:
    """The prediction: the first character of the first line that is not empty, folded and in lower case.

    None, where the engine failed, becomes "NA"; an answer of empty lines alone "na".
    """
    rules = load_rules(NAME)
    if answer is None:
        return str(rules.data["failed"])
    first = next((line for line in answer.split("\n") if line), "")
    return folded(first[0] if first else str(rules.data["empty"])).lower()


def folded(text: str) -> str:
    """Full width to half width, as the published scripts' library does it."""
    return text.translate(_folding())


@cache
def _folding() -> dict[int, str]:
    found = load_rules(NAME).data["folding"]
    table = dict(zip(map(ord, found["from"]), found["to"], strict=True))
    for name, mark in (("voiced", "\uff9e"), ("half_voiced", "\uff9f")):
        pairs = zip(map(ord, found[name]["from"]), found[name]["to"], strict=True)
        table |= {code: plain + mark for code, plain in pairs}
    return table


def is_right(item: Item, prediction: str) -> bool:
    """The published grading of a prediction."""
    data = load_rules(NAME).data
    if item.id in data["always_right"]:
        return True
    plain = unicodedata.normalize("NFKC", prediction).replace("、", ",").replace("，", ",")
    parts = sorted(part.strip() for part in plain.split(","))
    too = data["right_too"].get(item.id, ()) if isinstance(item.id, str) else ()
    return parts in [[letter] for letter in too] or parts == sorted(item.answer)


def judge(item: Item, answer: str | None) -> Judged:
    """One answer. It counts as parsed where the prediction is a letter that the prompt offers."""
    prediction = predict(answer)
    plain = unicodedata.normalize("NFKC", prediction)
    offered = set("abcde" + item.letters) if item.choices else set("0123456789")
    return Judged(prediction=prediction, right=is_right(item, prediction), parsed=plain in offered)


def part(item: Item) -> str:
    """The published evaluation reports nothing apart."""
    return ""


def baselines(items: tuple[Item, ...]) -> Baselines:
    """Of one letter an item: the best there is, one drawn among the item's own options, always the same."""
    rights = {letter: mean(is_right(item, letter) for item in items) for letter in LETTERS}
    always = max(rights, key=lambda letter: rights[letter])  # the first of equal ones
    return Baselines(
        ceiling=mean(any(is_right(item, predict(letter)) for letter in {*LETTERS, shown(item)}) for item in items),
        chance=mean(
            mean(is_right(item, x) for x in item.letters) if item.choices else is_right(item, "") for item in items
        ),
        majority=rights[always],
        always=always,
    )
