"""The models that results of `evaluate` tell of, each with its scores, ready to stand beside each other on a page.

Reads result files; computes nothing. A result holds one model or a child and its parent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.reporting.record import evaluations, parsed

LIKELIHOOD = "likelihood"
SIDES = ("child", "parent")
FIRST = ("official", "official-rescored", "repaired")
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model of one result.

    Attributes:
        name: of the model on the page, unlike all others'.
        side: "child" or "parent".
        path: of the result's file.
        result: its content.
        rows: its scores, those by option likelihood among them, all in the shape of written ones.
    """

    name: str
    side: str
    path: str
    result: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def model(self) -> Mapping[str, Any]:
        """Path, kind, step, tokens and identity."""
        found: Mapping[str, Any] = self.result["models"][self.side]
        return found


def read_result(path: str) -> dict[str, Any]:
    """The result in a file, or the newest one of a run folder.

    Raises:
        UserError: nothing there, or something that is no result.
    """
    file = find_result(path)
    result = parsed(paths.read_text(file), file)
    if not {"models", "exams", "bits_per_byte", "identity"} <= set(result):
        raise UserError("the file there is no evaluation result", file, "give a file that `t-elaine evaluate` wrote")
    return result


def find_result(path: str) -> str:
    """The file itself; of a run folder, the result of its last step (see `evaluations`)."""
    if path.endswith(".json"):
        if not paths.exists(path):
            raise UserError(
                "there is no such result", path, "give a file that `t-elaine evaluate` wrote, or a run folder"
            )
        return path
    found = list(evaluations(path))
    if not found:
        raise UserError("there is no result of evaluate in it", path, "give a result's file, or evaluate the run first")
    return paths.join(path, "evaluation", f"{found[-1]}.json")


def entrants(files: Sequence[str], sides: Sequence[str] = SIDES) -> list[Entrant]:
    """All models of some results; `sides`: those wanted of each.

    Raises:
        UserError: see `read_result`.
    """
    found: list[Entrant] = []
    for file in map(find_result, files):
        found += of_result(read_result(file), file, sides, {one.name for one in found})
    return found


def of_result(
    result: Mapping[str, Any], path: str, sides: Sequence[str] = SIDES, taken: Iterable[str] = ()
) -> list[Entrant]:
    """The models of one result; `taken`: names that others have."""
    found: list[Entrant] = []
    for side in (side for side in SIDES if side in result["models"] and side in sides):
        name = _name(result["models"][side], {*taken, *(one.name for one in found)})
        found.append(Entrant(name=name, side=side, path=path, result=result, rows=tuple(_rows(result, side))))
    return found


def base(models: Sequence[Entrant]) -> str:
    """What is said of the texts before the record of training, as a sentence; "" where there is nothing to say."""
    found = [row["contamination"] for model in models for row in model.rows if "contamination" in row]
    return next((f"{one['base'][0].upper()}{one['base'][1:]}." for one in found if one["base"]), "")


def by_protocol(models: Sequence[Entrant]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Protocol → exams, each with a score or None of every model and the first there is.

    Templates of one protocol ("jmedllm:alpaca") stand together; `template` names an exam's, "" where there are none.
    """
    keys = list(dict.fromkeys((row["protocol"], row["suite"]) for model in models for row in model.rows))
    found: dict[str, list[dict[str, Any]]] = {}
    for protocol, exam in sorted(keys, key=lambda key: _order(key[0])):
        scores = [_score(model, exam, protocol) for model in models]
        family, _, template = protocol.partition(":")
        row = {"first": next(score for score in scores if score), "scores": scores, "template": template}
        found.setdefault(family, []).append(row)
    return list(found.items())


def _order(protocol: str) -> tuple[int, str]:
    later = len(FIRST) + (protocol == LIKELIHOOD)
    return (FIRST.index(protocol) if protocol in FIRST else later, protocol.partition(":")[0])


def _score(model: Entrant, exam: str, protocol: str) -> Row | None:
    return next((row for row in model.rows if row["suite"] == exam and row["protocol"] == protocol), None)


def _name(model: Row, taken: set[str]) -> str:
    parts = [part for part in str(model["path"]).split("/") if part and part != "checkpoints" and not part.isdigit()]
    name = (parts or ["model"])[-1] + (f", step {model['step']}" if model["step"] else "")
    number = 2
    while name in taken:
        name, number = f"{name.partition(' (')[0]} ({number})", number + 1
    return name


def _rows(result: Mapping[str, Any], side: str) -> list[Row]:
    written = [row for row in result.get("generated", {}).get(side, ()) if row["questions"]]
    return [
        *written,
        *(_likelihood(result, exam, side) for exam in result["exams"] if side in exam["scores"][exam["headline"]]),
    ]


def _likelihood(result: Mapping[str, Any], exam: Row, side: str) -> Row:
    """An exam scored by option likelihood in the shape of a written one."""
    way, found = exam["headline"], exam.get("contamination")
    if found and found["known"]:
        left = found.get("scores", {}).get(way)
        without = {"questions": found["unseen"]} | ({"accuracy": left[side]} if left else {})
        found = found | {"without": without}
    return {
        "suite": exam["suite"],
        "language": exam["language"],
        "protocol": LIKELIHOOD,
        "protocol_sha256": result.get("protocol", {}).get("sha256", ""),
        "suite_sha256": result["identity"].get("exams", {}).get(exam["suite"], ""),
        "prompts_sha256": "",
        "questions": exam["questions"],
        "accuracy": exam["scores"][way][side],
        "ceiling": 1.0,
        "chance": exam["chance"],
        "majority": exam["majority"],
        "items": [],
        **({"contamination": found} if found else {}),
    }
