"""Which exam questions stand in the texts that a model was trained on, and its scores without them.

What the model that a run began from had read is not known, nor what a folder without a record was trained on: then this
says so. How questions are found stands in data/overlap.py, what that cannot see in docs/contamination.md.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t_elaine import parentage, paths
from t_elaine.checkpoints import layout, reading
from t_elaine.data import exam_items, trained_texts
from t_elaine.data.exam_items import ExamItems
from t_elaine.data.overlap import Overlap, check
from t_elaine.data.trained_texts import Place
from t_elaine.errors import UserError
from t_elaine.evaluation.engines import Model
from t_elaine.evaluation.items import Exam
from t_elaine.evaluation.suites import Suite

CACHE = "overlap"
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a model was trained on. `why`: why that is not known, "" if it is; `base`: what came before its record."""

    places: tuple[Place, ...]
    why: str
    base: str


def trained_on(model: Model, given: Sequence[str], wanted: bool = True) -> Trained:
    """The stores and files of a model's training: those given, else those in the records of its run and earlier ones.

    Raises:
        UserError: a place that was given is not there.
    """
    if not wanted:
        return Trained(places=(), why="not looked for", base="")
    if given:
        return Trained(places=_different([trained_texts.open_place(path) for path in given]), why="", base="")
    if model.kind != "run":
        return Trained(places=(), why="not known: this folder does not say what it was trained on", base="")
    places, told = _recorded(model.path)
    if not places:
        return Trained(places=(), why="not known: the run has no record of its stores (data.json)", base="")
    return Trained(
        places=_different(places), why="", base="" if told else "what the model it began from had read is not known"
    )


def _recorded(path: str) -> tuple[list[Place], bool]:
    """The stores of a run, of the runs it began from and of those it was merged from; whether that is all it read."""
    try:
        run_dir, step = reading.resolve(path)
    except UserError:
        return [], False  # a name of the hub, a folder in another format, or one that is no more
    record, merged = paths.join(run_dir, "data.json"), paths.join(parentage.folder(run_dir), parentage.MERGE)
    parent = layout.read_meta(run_dir, step).parent
    own, before = list[Place](), [] if parent is None else [parent]
    if paths.exists(record):
        for name, store in json.loads(paths.read_text(record)).items():
            own.append(Place(name=name, path=store["folder"], digest=store["manifest_sha256"], is_store=True))
    elif parent is None and paths.exists(merged):
        before = [one["path"] for one in json.loads(paths.read_text(merged))["parents"]]
    elif parent is None:
        return [], False  # an imported model
    found = [_recorded(one) for one in before]
    return [*own, *(place for places, _ in found for place in places)], all(told for _, told in found)


def _different(places: Sequence[Place]) -> tuple[Place, ...]:
    return tuple({place.digest: place for place in reversed(places)}.values())[::-1]


def identity(trained: Trained, settings: Overlap) -> dict[str, Any]:
    """What the figures depend on besides the exams."""
    check(settings)
    return {"trained_on": [place.digest for place in trained.places] or trained.why, **asdict(settings)}


def look(
    trained: Trained,
    suites: Sequence[Suite | Exam],
    settings: Overlap,
    folder: str,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """For each suite what was found: {"known", "why", "base", "settings", "stores", "untold", "items"}.

    Args:
        trained: what the model was trained on.
        suites: exams, of files; the same one may come again.
        settings: when a question counts as seen.
        folder: of the evaluation's result; what is found is kept beside it.
        workers: processes; 0: one for each core.
        say: takes messages.
    """
    about = {"why": trained.why, "base": trained.base, "settings": asdict(settings)}
    unknown = [{"known": False, **about, "stores": {}, "untold": 0, "items": {}} for _ in suites]
    if trained.why or not suites:
        return unknown
    read: dict[str, ExamItems] = {}
    for suite in suites:
        read[_key(suite)] = exam_items.read_suite(Path(suite.path), _key(suite))
    cache = paths.join(folder, CACHE)
    try:
        found = trained_texts.look_through(trained.places, tuple(read.values()), settings, cache, workers, say)
    except trained_texts.Absent as error:
        return [row | {"why": f"not known: {error.what} ({error.where})"} for row in unknown]
    return [
        _joined({place: suites_found[_key(suite)] for place, suites_found in found.items()}, about, settings)
        for suite in suites
    ]


def _key(suite: Suite | Exam) -> str:
    return f"{suite.name} {suite.sha256[:8]}"


def _joined(found: Mapping[str, dict[str, Any]], about: dict[str, Any], settings: Overlap) -> dict[str, Any]:
    """One suite's items over all stores: a question's share is that of what any of them covers."""
    items: dict[str, dict[str, Any]] = {}
    for place, part in found.items():
        for name, item in part["items"].items():
            one = items.setdefault(name, {"units": item["units"], "covered": [], "stores": {}})
            one["covered"] += item["covered"]
            one["stores"][place] = {"documents": item["documents"], "examples": item["examples"]}
    for one in items.values():
        question, whole = one.pop("units")
        covered, edges = np.zeros(whole, bool), one.pop("covered")
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            covered[first:last] = True
        one["question"] = round(float(covered[:question].mean()), 4) if question else 0.0
        one["whole"] = round(float(covered.mean()), 4)
        one["seen"] = one["question"] > settings.share if settings.share else True
    stores = {place: {"documents": part["documents"], "bytes": part["bytes"]} for place, part in found.items()}
    untold = max((part["untold"] for part in found.values()), default=0)
    return {"known": True, **about, "stores": stores, "untold": untold, "items": items}


Compare = Callable[[Sequence[np.ndarray], np.ndarray, dict[str, int]], dict[str, Any]]


def row(exam: Mapping[str, Any], found: dict[str, Any], compare: Compare, draws: dict[str, int]) -> dict[str, Any]:
    """What stands beside an exam's scores: questions seen, and the scores on those that were not.

    Args:
        exam: an exam of a result, with its items.
        found: of `look`.
        compare: `summary.compared`.
        draws: its draws.
    """
    items = exam["items"]
    there = {item["id"]: found["items"][item["id"]] for item in items if item["id"] in found["items"]}
    if not found["known"]:
        return found
    seen = np.array([there.get(item["id"], {}).get("seen", False) for item in items], bool)
    half = sum(one["seen"] and one["question"] >= HALF for one in there.values())
    made = {**found, "items": there, "seen": int(seen.sum()), "half": int(half), "unseen": int((~seen).sum())}
    sides = [side for side in ("child", "parent") if side in items[0]]
    made["scores"] = {}
    for way in exam["scores"] if made["unseen"] else ():
        right = [np.array([i[side][way]["choice"] == i["gold"] for i in items], np.float64)[~seen] for side in sides]
        made["scores"][way] = compare(right, np.ones(made["unseen"]), draws)
    return made


def sentence(exam: Mapping[str, Any], percent: Callable[[dict[str, Any]], str]) -> str:
    """What to print under an exam's scores. percent: writes a value with its interval."""
    found = exam.get("contamination")
    if found is None:
        return ""
    if not found["known"]:
        return f"questions seen in training: {found['why']}"
    told = f"seen in the texts trained on: {found['seen']} of {exam['questions']} questions"
    if found["seen"]:
        told += f" ({found['half']} at least half of the question)"
        scores = found["scores"].get(exam["headline"])
        told += f"; without them {percent(scores['child'])} of {found['unseen']}" if scores else "; none is left"
    return f"{told}; {found['base']}" if found["base"] else told


def markdown(result: Mapping[str, Any]) -> str:
    """A table in Markdown: each score of the child, questions seen, and the score without them."""
    lines = ["| exam | protocol | % right | n | seen | ≥ half | % right, unseen | n |", f"|{'---|' * 8}"]
    for exam in result["exams"]:
        found, way = exam.get("contamination", {"known": False}), exam["headline"]
        score, without = exam["scores"][way]["child"], found.get("scores", {}).get(way, {}).get("child")
        lines.append(_row([exam["suite"], "likelihood", _percent(score), str(exam["questions"])], found, without))
    for row in result.get("generated", {}).get("child", ()):
        if row["questions"]:
            found = row.get("contamination", {"known": False})
            cells = [row["suite"], row["protocol"], _percent(row["accuracy"]), str(row["questions"])]
            lines.append(_row(cells, found, found.get("without", {}).get("accuracy")))
    return "\n".join(lines) + "\n"


def _row(cells: list[str], found: Mapping[str, Any], without: Mapping[str, Any] | None) -> str:
    more = ["not known", "", "", ""]
    if found["known"]:
        more = [str(found["seen"]), str(found["half"]), _percent(without) if without else "–", str(found["unseen"])]
    return f"| {' | '.join(cells + more)} |"


def _percent(value: Mapping[str, Any]) -> str:
    shown = f"{100 * value['value']:.1f}"
    return shown if value["low"] is None else f"{shown} [{100 * value['low']:.1f}–{100 * value['high']:.1f}]"
