"""The protocol `mmedbench`: MMedBench as its authors ask and grade it, in six languages.

Two templates: `answer` asks for the option's letter, `rationale` for the reason first. Accuracy is `answer`'s; reasons
are compared with those of the file that people have passed, by BLEU and ROUGE. Published are BLEU-1 and ROUGE-1; the
published code computes BLEU-4 and ROUGE-L under these names: all are given. Source: MAGIC-AI4Med/MMedLM, inference/ and
metrics/. The test files are not at hand here, and no published figure was made again.
"""

from collections import Counter
from functools import lru_cache, partial
from math import comb

from t_elaine.errors import UserError
from t_elaine.evaluation import similarity, words
from t_elaine.evaluation.items import Exam, Item, Rationale, spread
from t_elaine.evaluation.mmedbench_files import NAME
from t_elaine.evaluation.sitting import Baselines, Judge, Judged, Sitting, load_rules, mean
from t_elaine.generation.sampling import Sampling

ANSWER, RATIONALE = "answer", "rationale"


def sittings(exam: Exam, limit: int = 0, chosen: str = "") -> list[Sitting]:
    """The exam with both templates.

    Args:
        exam: of MMedBench (`mmedbench_files.load`).
        limit: ask only so many items, spread evenly over the exam; 0 takes all.
        chosen: one template alone.

    Raises:
        UserError: another exam, no such template, or a package that is needed for the language is not installed.
    """
    rules = load_rules(NAME)
    if not exam.name.startswith(f"{NAME}/"):
        mend = f"give {NAME}/ with one of {', '.join(rules.data['languages'])}, or {NAME}:FILE"
        raise UserError("the protocol mmedbench asks MMedBench's own files alone", exam.path, mend)
    if chosen and chosen not in rules.data["instructions"]:
        mend = f"give mmedbench, or mmedbench: with one of {', '.join(rules.data['instructions'])}"
        raise UserError(f"mmedbench has no template {chosen!r}", "protocols", mend)
    names = [chosen] if chosen else list(rules.data["instructions"])
    if RATIONALE in names:
        words.check(exam.language)
    items = spread(exam.items, limit)
    return [
        Sitting(
            protocol=f"{NAME}:{name}",
            rules=rules,
            exam=exam,
            items=items,
            prompts=tuple(prompt(name, exam, item) for item in items),
            sampling=Sampling(**rules.data["sampling"]),
            shots=0,
            excluded={},
        )
        for name in names
    ]


def prompt(template: str, exam: Exam, item: Item) -> str:
    """An item's prompt: the published one, which adds to each question that it is about a treatment."""
    rules = load_rules(NAME).data
    options = "".join(
        _filled(rules["option"], letter=letter, text=text)
        for letter, text in zip(item.letters.upper(), item.choices, strict=True)
    )
    asked = _filled(rules["input"], question=item.text, options=options)
    told = rules["instructions"][template].replace("{lang}", exam.name.partition("/")[2])
    return _filled(rules["frame"], instruction=told, input=asked)


def _filled(template: str, **values: str) -> str:
    """The template with its two marks filled in, in this order; braces in the values stay."""
    (one, first), (two, second) = values.items()
    before, _, rest = template.partition("{" + one + "}")
    between, _, after = rest.partition("{" + two + "}")
    return f"{before}{first}{between}{second}{after}"


def response(answer: str | None) -> str:
    """The answer on one line, up to where the model goes on with another task; lines are joined without a blank."""
    mark = load_rules(NAME).data["response"]
    return (answer or "").split(mark)[0].strip().replace("\n", "")


def judges() -> dict[str, Judge]:
    """The grading of each template, by protocol."""
    return {
        f"{NAME}:{name}": Judge(judge=partial(judge, name), part=lambda item: "", baselines=baselines)
        for name in load_rules(NAME).data["instructions"]
    }


def judge(template: str, item: Item, answer: str | None) -> Judged:
    """One answer; under `rationale`, with marks where people have passed the item's reason.

    Of `rationale` the letters behind the first "###Answer: OPTION " count, which the published code never finds.
    """
    rules = load_rules(NAME).data
    said = response(answer)
    reason, _, last = said.partition(rules["before_answer"])
    letters = last if template == RATIONALE else said.replace(rules["before_answer"], "")
    read = letters.strip().removesuffix(rules["after_answer"]).strip()
    gold = [letter.upper() for letter in item.answer]
    reason = reason.replace(rules["before_rationale"], "").strip()
    return Judged(
        prediction=read,
        right=read == gold[0] if len(gold) == 1 else set(read.split(",")) == set(gold),
        parsed=set(read.split(",")) <= set(item.letters.upper()),
        marks=similar(item.rationale, reason) if template == RATIONALE and item.rationale else {},
    )


@lru_cache(maxsize=1 << 14)
def similar(rationale: Rationale, reason: str) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of words, ROUGE-1, -2 and -L of what stands between blanks; 0 for an empty reason.

    Args:
        rationale: the file's.
        reason: the model's.
    """
    ours, theirs = (words.words(text, rationale.language) for text in (reason, rationale.text))
    pair = (reason, rationale.text)
    if rationale.language in words.PACKAGES:
        pair = (" ".join(ours), " ".join(theirs))
    return {
        **{f"bleu_{order}": similarity.bleu(ours, theirs, order) for order in range(1, 5)},
        **{f"rouge_{order}": similarity.rouge(*pair, order) for order in (1, 2)},
        "rouge_l": similarity.rouge_l(*pair),
    }


def baselines(items: tuple[Item, ...]) -> Baselines:
    """Of letters: the right ones, as many drawn as are right, and always the most frequent right ones."""
    golds = [",".join(sorted(item.answer)).upper() for item in items]
    counts = Counter(golds)
    always = min(counts, key=lambda gold: (-counts[gold], gold))
    return Baselines(
        ceiling=mean(judge(ANSWER, item, gold).right for item, gold in zip(items, golds, strict=True)),
        chance=mean(1 / comb(len(item.choices), len(item.answer)) for item in items),
        majority=mean(judge(ANSWER, item, always).right for item in items),
        always=always,
    )
