"""Tries settings of one recipe on one topology: which to try, in what order, what is known of each already.

Each trial is a plan of its own in a process of its own (a compiler that aborts ends only that trial); its record is
kept under a hash of everything that it depends on, so that a search goes on where it was stopped.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t_elaine.errors import UserError
from t_elaine.planning.question import Question
from t_elaine.planning.roofline import roofline
from t_elaine.planning.words import DOES_NOT_FIT, WIDTH, size, table

Record = dict[str, Any]
REMAT = ("full", "q+k+v+attention", "q+k+v+attention+middle", "q+k+v+attention+gate")
SECONDS_TO_END = 10.0
NO_TIME = "no time told"
DIFFERS_LITTLE = 1.03  # arithmetic's total over the limit, up to which a compile may still say that it fits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What `plan --search` tries: every combination, within a budget.

    Args:
        rows: rows per device; (): the recipe's and twice as many.
        remat: "full", "none", "minimal", or names to save joined by "+": "q+k+v+attention".
        blocks: attention blocks.
        attention: kernels; (): the recipe's.
        meshes: MeshConfigs as mappings, {"fsdp": -1, "tensor": 2}; (): the recipe's.
        budget: seconds of compiling; what is known from before costs nothing.
        folder: where the records are kept.
    """

    rows: Sequence[int] = ()
    remat: Sequence[str] = REMAT
    blocks: Sequence[int] = (512, 1024, 2048)
    attention: Sequence[str] = ()
    meshes: Sequence[Mapping[str, int]] = ()
    budget: float = 3600.0
    folder: str = "~/.cache/t-elaine/plans"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination.

    Args:
        settings: setting → value, as gin takes them.
        reason: why it is not compiled, "" if it is to be.
        seconds: a step's by roofline, for the order.
    """

    settings: Mapping[str, Any]
    reason: str = ""
    seconds: float = 0.0


def combinations(search: Search, rows: int, attention: str, mesh: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Setting → value of every combination; the recipe's own rows, kernel and mesh fill what is left open."""
    for count in search.rows or (rows, 2 * rows):
        for axes in search.meshes or (mesh,):
            for kernel in search.attention or (attention,):
                for block in search.blocks:
                    for remat in search.remat:
                        names = tuple(remat.split("+")) if remat not in ("full", "none", "minimal") else ()
                        yield {
                            "train.rows_per_device": count,
                            **{f"MeshConfig.{axis}": size for axis, size in axes.items()},
                            "ComputeConfig.attention": kernel,
                            "ComputeConfig.attention_block": block,
                            "ComputeConfig.remat": "names" if names else remat,
                            "ComputeConfig.saved": names,
                        }


def ordered(found: Iterable[dict[str, Any]], asked: Callable[[dict[str, Any]], Question]) -> list[Trial]:
    """Trials, the fastest by roofline first; those that cannot fit or do not divide are not to be compiled.

    Args:
        found: combinations.
        asked: the question that one puts; raises UserError where it does not divide.
    """
    trials = []
    for settings in found:
        try:
            question = asked(settings)
        except UserError as error:
            trials.append(Trial(settings=settings, reason=f"does not divide: {error.what}"))
            continue
        need, limit = question.needs(), question.rates.memory
        if need.total > DIFFERS_LITTLE * limit:
            trials.append(Trial(settings=settings, reason=f"by arithmetic {size(need.total)}"))
            continue
        seconds = roofline(question)["step_seconds"]["sync exposed"]
        trials.append(Trial(settings=settings, seconds=seconds / question.tokens))
    return sorted(trials, key=lambda trial: (bool(trial.reason), trial.seconds))


def key(settings: Mapping[str, Any], base: str, versions: Mapping[str, str]) -> str:
    """A name for a trial's record, by all that it depends on: settings, the other settings' text, versions, code."""
    told = json.dumps([dict(settings), base, dict(versions), code()], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def code() -> str:
    """A hash of the sources that a plan is made by."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in ("model", "parallel", "training", "planning"):
        for path in sorted((package / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run(
    trials: Sequence[Trial],
    search: Search,
    base: str,
    versions: Mapping[str, str],
    command: Callable[[Mapping[str, Any]], Sequence[str]],
    say: Callable[[str], None],
    describe: Callable[[Mapping[str, Any]], str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Record]:
    """Compile what is not known, until the budget is spent; one record a trial.

    Args:
        trials: in the order to try them.
        search: budget and folder.
        base: text of the settings that all trials share.
        versions: of the compilers.
        command: settings → a command that prints a plan as JSON.
        say: takes messages.
        describe: settings → a few words; None: `short`, which is for combinations of a search.
        environment: variables that the trials get beside this process's own.
    """
    folder = Path(os.path.expanduser(search.folder))
    folder.mkdir(parents=True, exist_ok=True)
    left, records = search.budget, []
    for number, trial in enumerate(trials, 1):
        record = {"settings": dict(trial.settings), "reason": trial.reason, "cached": False}
        records.append(record)
        if trial.reason:
            continue
        path = folder / f"{key(trial.settings, base, versions)}.json"
        record["cached"] = path.exists()
        if not path.exists():
            if left <= 0:
                record["reason"] = "not tried: budget spent"
                continue
            begun = time.monotonic()
            name = (describe or short)(trial.settings)
            say(f"trial {number} of {len(trials)}: {name} ({left:.0f} s of the budget left)")
            told = _compiled(command(trial.settings), left, environment or {})
            left -= time.monotonic() - begun
            if "stopped" in told:
                record["reason"] = told["stopped"]
                continue
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(told), encoding="utf-8")
            part.replace(path)
        record |= _figures(json.loads(path.read_text(encoding="utf-8")))
    return sorted(records, key=lambda r: (-r.get("tokens_per_second_per_chip", 0.0), r["reason"]))


def _compiled(command: Sequence[str], limit: float, environment: Mapping[str, str]) -> Record:
    """One plan in a process of its own, which does not outlive this call."""
    pipe, variables = subprocess.PIPE, {**os.environ, **environment}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"stopped": "stopped: budget spent"}
        finally:
            _end(process)
    if process.returncode in (0, DOES_NOT_FIT) and out.startswith("{"):
        return dict(json.loads(out))
    told = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    return {"error": told[0] if told else f"the compiler ended with code {process.returncode}"}


def _end(process: "subprocess.Popen[str]") -> None:
    """SIGTERM, on which a plan removes what it has begun to write; SIGKILL for one that does not end."""
    process.terminate()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()


def _figures(told: Record) -> Record:
    """What the table needs of a trial's record."""
    if "error" in told:
        return {"reason": told["error"]}
    used = told["memory"]["peak"] if "memory" in told else told["arithmetic"]["total"]
    limit = told["memory"]["limit"] if "memory" in told else told["arithmetic"]["limit"]
    if used > limit or "step_seconds" not in told:
        return {"peak": used, "reason": f"does not fit: {size(used)}" if used > limit else NO_TIME}
    return {
        "peak": used,
        "tokens_per_second_per_chip": told["tokens_per_second_per_chip"]["sync exposed"],
        "mfu": told["mfu"]["sync exposed"],
        "step_seconds": told["step_seconds"]["sync exposed"],
        "compile_seconds": told.get("compile_seconds", 0.0),
    }


def short(settings: Mapping[str, Any]) -> str:
    """A combination in a few words."""
    sizes = {name.partition(".")[2]: size for name, size in settings.items() if name.startswith("MeshConfig.")}
    axes = " ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (1, -1))
    remat = "+".join(settings["ComputeConfig.saved"]) or settings["ComputeConfig.remat"]
    kernel = f"{settings['ComputeConfig.attention']} {settings['ComputeConfig.attention_block']}"
    return ", ".join(filter(None, [f"rows {settings['train.rows_per_device']}", remat, kernel, axes]))


def told(records: Sequence[Record], best: str) -> str:
    """The table, the fastest first, and the command that trains so."""
    rows = [
        (
            short(record["settings"]),
            size(record["peak"]) if "peak" in record else "",
            f"{record['tokens_per_second_per_chip']:,.0f}" if "tokens_per_second_per_chip" in record else "",
            f"{100 * record['mfu']:.1f} %" if "mfu" in record else "",
        )
        for record in records
    ]
    titles = ("rows, remat, attention, mesh", "memory", "tokens/s/chip", "MFU")
    lines = ["SEARCH: everything below is estimated, not measured (synchronous collectives exposed).", ""]
    head, *body = table(titles, rows)
    lines += [
        head,
        *(f"{line}  {record['reason']}"[:WIDTH].rstrip() for line, record in zip(body, records, strict=True)),
    ]
    if any(record["reason"] == NO_TIME for record in records):
        nothing = "what fits cannot be ranked: for simulated devices nothing tells a time"
    elif any("peak" in record for record in records):
        nothing = "nothing that was tried fits"
    else:
        nothing = "nothing was compiled: raise Search.budget or widen Search"
    return "\n".join([*lines, "", f"best: {best}" if best else nothing])
