"""Exams under the protocols that generate, one after another, with any engine: prompts, kept answers, scores.

Any callable that takes prompts and settings and yields (place, answer) is an engine: ours (`generating`), another
library's, a server's. The answers' files stay beside the result. No model is known here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation import answers, grading, items, jmedllm, mmedbench, mmedbench_files, official, repaired
from t_elaine.evaluation.answers import Write
from t_elaine.evaluation.items import Exam
from t_elaine.evaluation.sitting import Sitting

# Protocol → how an exam is asked under it: the exam, items at most, the template where the protocol has several.
ASKED: Mapping[str, Callable[[Exam, int, str], list[Sitting]]] = {
    official.NAME: lambda exam, limit, _: [official.sitting(exam, limit)],
    repaired.NAME: lambda exam, limit, _: [repaired.sitting(exam, limit)],
    jmedllm.NAME: jmedllm.sittings,
    mmedbench.NAME: mmedbench.sittings,
}
# Those that have several templates.
TEMPLATES = (jmedllm.NAME, mmedbench.NAME)
# Those whose published code lets the model's own end of text end an answer.
PUBLISHED_ENDS = (official.NAME, jmedllm.NAME, mmedbench.NAME)


def load(spec: str, suites_dir: str = "") -> Exam:
    """An exam of any kind; see `items.load_exam` and `mmedbench_files.load`."""
    read = mmedbench_files.load if mmedbench_files.is_spec(spec) else items.load_exam
    return read(spec, suites_dir)


def sittings(exams: Sequence[Exam], protocols: Sequence[str], limit: int = 0) -> list[Sitting]:
    """All that is to be asked.

    Args:
        exams: read whole.
        protocols: some of ASKED, with a colon and a template where only one is wanted: jmedllm:alpaca.
        limit: items of each exam, spread evenly; 0 takes all.

    Raises:
        UserError: an unknown protocol, or an exam that cannot be asked under one.
    """
    check_protocols(protocols)
    wanted = [name.partition(":") for name in protocols]
    return [one for exam in exams for name, _, template in wanted for one in ASKED[name](exam, limit, template)]


def check_protocols(names: Sequence[str]) -> None:
    """Raise UserError for a name that is none of ASKED."""
    for name in names:
        family, colon, _ = name.partition(":")
        if family not in ASKED or (colon and family not in TEMPLATES):
            mend = f"give likelihood or some of {', '.join(ASKED)}; official-rescored comes with official"
            raise UserError(f"no protocol that generates is called {name!r}", "protocols", mend)


def take(
    asked: Sequence[Sitting],
    engine: Callable[[Sitting], Write],
    folder: str,
    identity: Any,
    *,
    resamples: int = 2000,
    seed: int = 0,
    done: Callable[[int], None] = lambda answers: None,
) -> list[dict[str, Any]]:
    """Have all answered and score them. What was answered is kept at once: the same call goes on after a kill.

    Args:
        asked: from `sittings`.
        engine: gives what answers a sitting (end ids may depend on the protocol); called where an answer is missing.
        folder: for the answers' files.
        identity: plain data of what answers depend on beside prompts and sampling, as model, dtype, engine, versions.
        resamples, seed: of the bootstrap.
        done: told how many answers are there.

    Returns:
        a score a sitting (`grading.score`) with its file; after an `official` one its answers' `official-rescored`.

    Raises:
        UserError: a kept file holds something else; and whatever the engine raises.
    """
    rows = []
    for sitting in asked:
        path = paths.join(folder, answers.file_name(sitting, identity))
        found = answers.collect(_later(engine, sitting), sitting, path, done)
        scored = [sitting]
        if sitting.protocol == official.NAME:
            again = repaired.rescored(sitting)
            scored += [again] if again.items else []  # few items may all be such as cannot be scored
        kept = {"answers": path.rpartition("/")[2], "answered_by": identity}
        rows += [{**grading.score(one, found, resamples, seed), **kept} for one in scored]
    return rows


def _later(engine: Callable[[Sitting], Write], sitting: Sitting) -> Write:
    """An engine that is made at its first prompt: where all answers are kept, no model is loaded."""
    return lambda prompts, sampling: engine(sitting)(prompts, sampling)
