"""The protocol `repaired`: the published exams without the published evaluation's faults.

Letters are read in the whole answer (`reading`) and the set of them must be right; numbers count by value; what has no
usable answer is left out and counted, and so is what comes a second time; demonstrations are our own; the prompt offers
each item's own letters and keeps to itself how many are right; items about an image are reported apart. `rescored`
grades answers to the `official` prompts in this way, under the name official-rescored.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import comb
from typing import Any

from t_elaine.errors import UserError
from t_elaine.evaluation import reading
from t_elaine.evaluation.items import Exam, Item, spread
from t_elaine.evaluation.sitting import Baselines, Judged, Rules, Sitting, load_rules, mean

NAME = "repaired"
RESCORED = "official-rescored"
IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Gold:
    """What is right: any of `sets` (of option letters, for each text the first letter that has it), or a number."""

    sets: frozenset[frozenset[str]] = frozenset()
    numbers: tuple[Decimal, ...] = ()


def sitting(exam: Exam, limit: int = 0) -> Sitting:
    """The exam's prompts.

    Args:
        exam: in any language; one without a template of its own is asked in English.
        limit: ask only so many items, spread evenly over those that can be scored; 0 takes all.

    Raises:
        UserError: no item can be scored.
    """
    rules, faults = load_rules(NAME), find_faults(exam.items)
    sound = tuple(item for item in exam.items if item.line not in faults)
    if not sound:
        raise UserError("no item of this exam can be scored", exam.path, f"reasons: {dict(Counter(faults.values()))}")
    kind = {item.line: _kind(item, any(len(one.answer) > 1 for one in sound)) for item in sound}
    taken = {_key(item) for item in exam.items}
    shown = [item for item in _demonstrations(rules, exam.language, set(kind.values())) if _key(item) not in taken]
    before = [
        _asked(rules, exam.language, item, _kind(item, "several" in kind.values()))
        + rules.template(exam.language)["before"]
        + ", ".join(item.answer).upper()
        for item in shown
    ]
    items = spread(sound, limit)
    prompts = ["\n\n".join([*before, _asked(rules, exam.language, item, kind[item.line])]) for item in items]
    return Sitting(
        protocol=NAME,
        rules=rules,
        exam=exam,
        items=items,
        prompts=tuple(prompts),
        sampling=rules.sampling(exam.language),
        shots=len(shown),
        excluded=dict(sorted(Counter(faults.values()).items())),
    )


def rescored(official: Sitting) -> Sitting:
    """The same answers under this grading: those items and prompts of an `official` sitting that can be scored."""
    faults = find_faults(official.exam.items)
    places = [i for i, item in enumerate(official.items) if item.line not in faults]
    reasons = Counter(faults[item.line] for item in official.items if item.line in faults)
    return replace(
        official,
        protocol=RESCORED,
        rules=load_rules(NAME),
        items=tuple(official.items[i] for i in places),
        prompts=tuple(official.prompts[i] for i in places),
        excluded=dict(sorted(reasons.items())),
    )


def _kind(item: Item, several: bool) -> str:
    """How an item is asked: "number", "several" or "one"; all items of an exam that has answers of several letters are
    asked alike, so that the prompt tells nothing."""
    return "number" if not item.choices else "several" if several else "one"


def _asked(rules: Rules, language: str, item: Item, kind: str) -> str:
    template = rules.template(language)
    lines = [] if item.context is None else [template["context"] + item.context]
    lines.append(template["question"] + item.text)
    letters = zip(rules.data["letters"], item.choices, strict=False)
    lines += [f"{letter}. {choice}" for letter, choice in letters]
    return "\n".join([*lines, template[kind], template["cue"]])


def _demonstrations(rules: Rules, language: str, kinds: set[str]) -> list[Item]:
    """Five of one letter; where the exam has such items, one of several letters and one number among them."""
    shipped: Mapping[str, Any] = rules.data["demonstrations"]
    found = shipped.get(language, shipped["en"])
    records = list(found["one"])
    if "several" in kinds:
        records[3] = found["several"]
    if "number" in kinds:
        records[1] = found["number"]
    return [
        Item(
            line=0,
            id="",
            text=record["problem_text"],
            context=None,
            choices=tuple(record["choices"]),
            answer=tuple(record["answer"]),
            points=1,
            text_only=True,
        )
        for record in records[: rules.data["shots"]]
    ]


def gold(item: Item) -> Gold | str:
    """What is right, or why nothing can be."""
    if isinstance(item.answer, str):
        return "the answer is no list"
    numbers = load_rules(NAME).data["numbers"].get(item.id) if isinstance(item.id, str) else None
    if not item.choices:
        values = [reading.to_number(text) for text in numbers or item.answer]
        if len(item.answer) != 1 or None in values:
            return "the answer is no number, and there are no options"
        return Gold(numbers=tuple(value for value in values if value is not None))
    ways = item.answer[0].split(" or ") if len(item.answer) == 1 else [item.answer]
    sets = [frozenset(letter.strip().lower() for letter in way) for way in ways]
    if not all(one and one <= set(item.letters) for one in sets):
        return "the answer is outside the options"
    texts = [_plain(item.choices[item.letters.index(letter)]) for one in sets for letter in one]
    return Gold(sets=frozenset(_first_alike(item, one) for one in sets)) if all(texts) else "the right option is blank"


def _first_alike(item: Item, letters: frozenset[str]) -> frozenset[str]:
    """Each letter as the first one whose option has the same text; letters without an option stay."""
    texts = [_plain(choice) for choice in item.choices]
    return frozenset(
        item.letters[texts.index(texts[item.letters.index(letter)])] if letter in item.letters else letter
        for letter in letters
    )


def find_faults(items: Sequence[Item]) -> dict[int, str]:
    """Line → why the item is not scored.

    Items with the same question, context and options count once; if their answers differ, none counts.
    """
    faults, alike = {}, dict[Any, list[tuple[Item, Any]]]()
    for item in items:
        found = gold(item)
        if isinstance(found, str):
            faults[item.line] = found
        else:
            alike.setdefault(_key(item), []).append((item, _right_texts(item, found)))
    for group in alike.values():
        if any(right != group[0][1] for _, right in group):
            faults |= {item.line: "asked twice with different answers" for item, _ in group}
        else:
            faults |= {item.line: "asked before" for item, _ in group[1:]}
    return faults


def _right_texts(item: Item, found: Gold) -> Any:
    texts = [_key_text(choice) for choice in item.choices]
    return found.numbers, {frozenset(texts[item.letters.index(letter)] for letter in one) for one in found.sets}


def _key(item: Item) -> Any:
    return _key_text(f"{item.context or ''} {item.text}"), frozenset(map(_key_text, item.choices))


def _key_text(text: str) -> str:
    """Letters and digits alone, so that punctuation and spacing tell no two items apart."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).lower())


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def judge(item: Item, answer: str | None) -> Judged:
    """One answer to an item that has a gold."""
    found = gold(item)
    assert isinstance(found, Gold)
    text = reading.own_part(answer or "", load_rules(NAME).data["another_question"])
    if found.numbers:
        number = reading.read_number(text)
        return Judged(
            prediction="" if number is None else str(number), right=number in found.numbers, parsed=number is not None
        )
    letters = reading.read_letters(text)
    right = bool(letters) and _first_alike(item, letters) in found.sets
    return Judged(prediction=",".join(sorted(letters)), right=right, parsed=bool(letters))


def part(item: Item) -> str:
    """Items about an image, which no prompt shows, are reported apart."""
    return "" if item.text_only else IMAGES


def baselines(items: tuple[Item, ...]) -> Baselines:
    """Of whole answers: the right one; as many different options as are right, drawn; the most frequent right one."""
    answers = Counter(",".join(sorted(item.answer)) for item in items if item.choices)
    always = min(answers, key=lambda answer: (-answers[answer], answer), default="")
    return Baselines(
        ceiling=mean(judge(item, _oracle(item)).right for item in items),
        chance=mean(_chance(item) for item in items),
        majority=mean(judge(item, always).right for item in items),
        always=always,
    )


def _oracle(item: Item) -> str:
    found = gold(item)
    assert isinstance(found, Gold)
    return str(found.numbers[0]) if found.numbers else ", ".join(sorted(min(found.sets, key=sorted))).upper()


def _chance(item: Item) -> float:
    found = gold(item)
    assert isinstance(found, Gold)
    return sum(1 / comb(len(item.choices), len(one)) for one in found.sets)
