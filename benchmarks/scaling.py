"""How the cost of Llama-3-8B grows: tokens/s/chip over chips, slices and sequence lengths. Estimated, not measured.

    python -m benchmarks.scaling                            arithmetic alone (roofline): minutes, no libtpu needed
    python -m benchmarks.scaling --compile --budget=10800   every step compiled whole: 3 to 10 minutes each on two
                                                            cores, an hour and more in all; killed, it goes on later
    python -m benchmarks.scaling --chip=v6e --chips 16 256 --slices --lengths
    python -m benchmarks.scaling -- --gin_file=models/llama31_8b.gin          further arguments of `plan`

Each point is a `plan --json` in a process of its own; what is known is kept (Search.folder of docs/plan.md). The tokens
of a chip stay the same everywhere: rows of 8192 times the rows of the hardware file; longer rows are cut over
T / 8192 chips (mesh axis `context`), further slices, or machines of 8 GPUs, are further copies (`replica`). A point
that does not fit with what its hardware file saves for the backward pass tries the next of `LADDER`, which saves less.
Efficiency compares equal settings: those that the smaller number of chips can hold. Exit code 0 if it reaches the goal,
1 if not, 3 if a point that it compares has no figure.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from t_elaine import interrupts
from t_elaine.planning import compile as compiling
from t_elaine.planning import search, topology
from t_elaine.planning.words import size

FILES = {"v5e": "v5e_256", "v5p": "v5p_128", "v6e": "v6e_256", "h100": "gpu_80gb_8", "a100": "gpu_80gb_8"}
ROWS = {"v5e": 1, "v5p": 2, "v6e": 2, "h100": 2, "a100": 2}  # of 8192, as in those files
SHAPES = {
    "v5e": {8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v6e": {8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v5p": {8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8"},
}
LENGTH, GOAL = 8192, 0.95
LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as shipped", {}),
    ("q k v attention", {"ComputeConfig.remat": "names", "ComputeConfig.saved": ("q", "k", "v", "attention")}),
    ("attention", {"ComputeConfig.remat": "names", "ComputeConfig.saved": ("attention",)}),
    ("nothing", {"ComputeConfig.remat": "full", "ComputeConfig.saved": ()}),
)
Point = dict[str, Any]


def point(chip: str, chips: int, slices: int = 1, length: int = LENGTH) -> Point:
    """The settings of one point; `chips` are those of one slice."""
    rows = ROWS[chip]
    shape = SHAPES[chip][chips] if chip in SHAPES else str(chips)
    copies = slices if chip in SHAPES else max(1, chips // topology.CHIPS[chip].node)
    return {
        "plan.topology": f"{chip}:{shape}",
        "plan.slices": slices,
        "train.rows_per_device": rows,
        "MeshConfig.replica": copies,
        "MeshConfig.context": length // LENGTH,
        "Mixture.sequence_length": length,
        "Mixture.batch_tokens": rows * LENGTH * chips * slices,
    }


def described(settings: Mapping[str, Any]) -> str:
    """A point in a few words."""
    slices, length = settings["plan.slices"], settings["Mixture.sequence_length"]
    where = f"{slices} slices of {settings['plan.topology']}" if slices > 1 else settings["plan.topology"]
    return f"{where}, rows of {length:,}"


class Asker:
    """Asks `plan` for points within one budget of seconds, and keeps what it said."""

    def __init__(self, chip: str, compile: bool, budget: float, folder: str, further: Sequence[str]) -> None:
        """Settings that all points share."""
        files = ("cpt.gin", f"hardware/{FILES[chip]}.gin", "recipes/bench_8k.gin")
        self.shared = [*(f"--gin_file={file}" for file in files), *further, f"--gin.plan.compile={compile}"]
        self.left, self.folder = budget, folder
        self.versions = compiling.versions({})

    def ask(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The record of one point: a figure, or a reason why there is none."""
        begun = time.monotonic()
        wanted = search.Search(budget=self.left, folder=self.folder)
        trials = [search.Trial(settings=settings)]
        base, ours = " ".join(self.shared), {interrupts.ENDS_WITH: str(os.getpid())}
        found = search.run(trials, wanted, base, self.versions, self.command, _say, described, ours)[0]
        self.left -= time.monotonic() - begun
        return found

    def command(self, settings: Mapping[str, Any]) -> list[str]:
        """The plan of one point."""
        bound = [f"--gin.{name}={value!r}" for name, value in settings.items()]
        return [sys.executable, "-m", "t_elaine.plan", *self.shared, *bound, "--json"]

    def best(self, settings: Point) -> dict[str, Any]:
        """The first rung of `LADDER` that fits; where none does, the last one's reason, its rate without a limit."""
        for name, saved in LADDER:
            found = {**self.ask({**settings, **saved}), "saved": name}
            if "tokens_per_second_per_chip" in found or "peak" not in found:
                return found
        endless = {**settings, **LADDER[-1][1], "Assumptions.memory": 1e15, "plan.compile": False}
        return found | {"were": self.ask(endless).get("tokens_per_second_per_chip")}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def line(settings: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A row of the table."""
    name = f"{described(settings):38} {found['saved']:16}"
    if "tokens_per_second_per_chip" in found:
        rate, mfu = found["tokens_per_second_per_chip"], 100 * found["mfu"]
        return f"{name} {size(found['peak']):>10} {rate:>10,.0f} {mfu:>6.1f} %"
    were = f"; {found['were']:,.0f} tokens/s/chip if memory had no end" if found.get("were") else ""
    return f"{name} {found['reason']}{were}"


def efficiency(asker: Asker, chip: str, few: int, many: int) -> float | None:
    """Tokens/s/chip on many chips over those on few, with what the few can hold; None where one has no figure."""
    held = asker.best(point(chip, few))
    saved = dict(LADDER)[held["saved"]]
    found = asker.ask({**point(chip, many), **saved})
    name = "tokens_per_second_per_chip"
    return float(found[name] / held[name]) if name in held and name in found else None


def points(args: argparse.Namespace) -> list[Point]:
    """What the table holds."""
    most = max(args.chips)
    slices = args.slices if topology.CHIPS[args.chip].kind == "tpu" else ()
    return [
        *(point(args.chip, chips) for chips in args.chips),
        *(point(args.chip, most, slices=count) for count in slices),
        *(point(args.chip, most, length=length) for length in args.lengths if length != LENGTH),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, print the table, judge the efficiency."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=tuple(FILES), default="v5e")
    parser.add_argument("--chips", type=int, nargs="*", default=[8, 16, 64, 256], choices=(8, 16, 64, 256))
    parser.add_argument("--slices", type=int, nargs="*", default=[2, 4], help="of the largest of --chips")
    parser.add_argument("--lengths", type=int, nargs="*", default=[8192, 32768, 131072])
    parser.add_argument("--compile", action="store_true", help="compile every step (TPUs, with libtpu)")
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds for what is not known yet")
    parser.add_argument("--folder", default=search.Search.folder)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("further", nargs="*", help="arguments of plan, after --")
    args = parser.parse_args(argv)
    asker = Asker(args.chip, args.compile, args.budget, args.folder, args.further)
    how = "compiled steps, synchronous collectives exposed" if args.compile else "ARITHMETIC alone (roofline)"
    print(f"estimated, not measured: {how}; {args.chip}, Llama-3-8B unless told otherwise")
    if not args.compile:
        print("--compile compiles each step whole (3 to 10 minutes for 8 B parameters on two cores, and libtpu)")
    print(f"{'':38} {'saved':16} {'memory':>10} {'tok/s/chip':>10} {'MFU':>8}", flush=True)
    rows = []
    for settings in points(args):
        rows.append({"settings": settings, **asker.best(settings)})
        print(line(settings, rows[-1]), flush=True)
    few, many = (16, 256) if {16, 256} <= set(args.chips) else (min(args.chips), max(args.chips))
    compared = few != many
    share = efficiency(asker, args.chip, few, many) if compared else None
    told = "no figure" if share is None else f"{share:.3f}, goal {GOAL}: {'reached' if share >= GOAL else 'missed'}"
    if compared:
        print(f"{many} chips against {few}, equal settings: {told}")
    if args.json:
        print(json.dumps({"estimated": how, "points": rows, "efficiency": share}, default=str))
    return (3 if compared else 0) if share is None else int(share < GOAL)


if __name__ == "__main__":
    sys.exit(main())
