"""Made-up commands and settings, so that the tests of the lint lean on no real recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t_elaine.errors import UserError
from t_elaine.studies.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A learning rate.

    Args:
        peak: highest value.
        warmup_steps: steps on the way up.
        kind: form of the way down.
    """

    peak: float
    warmup_steps: int = 0
    kind: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.peak < 0:
            raise UserError(f"peak is {self.peak}", "Rate", "give a positive number")


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """What is read.

    Args:
        folders: stores.
        weights: share of each.
        shape: two numbers.
        shuffle: in a seeded order or not.
        rate: of the reader.
    """

    folders: Sequence[str]
    weights: Mapping[str, float] | None = None
    shape: tuple[int, int] = (1, 2)
    shuffle: bool = True
    rate: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Settings that no command takes by itself.

    Args:
        size: a number.
        partner: another.
    """

    size: int = 1
    partner: "Idle | None" = None


def train(
    *,
    corpora: Corpora,
    run_dir: str,
    rate: Rate | None = None,
    slow: Rate | None = None,
    steps: int = 1,
    idle: Idle | None = None,
    overwrite: bool = False,
    languages: tuple[str, ...] = (),
    scale: float | None = None,
    hook: Callable[..., Any] | None = None,
    argv: tuple[str, ...] = (),
    config_text: str = "",
) -> int:
    """Train nothing.

    Args:
        corpora: what is read.
        run_dir: where to.
        rate: learning rate.
        slow: another one.
        steps: how many; 13 breaks, 28 fills the disk, 30 is forbidden.
        idle: unused.
        overwrite: replace what is there.
        languages: which.
        scale: a number or nothing.
        hook: a function.
    """
    if steps == 13:
        raise RuntimeError("a bug")
    if steps in (28, 30):
        raise OSError(steps, "No space left on device" if steps == 28 else "Read-only file system", "somewhere/file")
    print("trained", corpora, run_dir, rate, slow, steps, overwrite, languages, scale, sep="\n")
    return 0


def sweep(*, grid: Grid, run_dir: str) -> int:
    """Sweep nothing.

    Args:
        grid: runs.
        run_dir: where to.
    """
    print(grid)
    return 0


def report(*, run_dir: str, argv: tuple[str, ...] = ()) -> int:
    """Show nothing.

    Args:
        run_dir: of what.
    """
    print(run_dir)
    return 0


ROOTS = {name: f"tests.config.made_up:{name}" for name in ("train", "sweep", "report")}
DATACLASSES = tuple(f"tests.config.made_up:{name}" for name in ("Rate", "Corpora", "Idle"))
