"""How far the scoring of a model is: a bar on a terminal, plain lines elsewhere. It measures nothing but the time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 10.0  # between two lines, at least
Done = Callable[[int], None]


@contextmanager
def progress(console: Console, label: str, total: int, unit: str = "tokens") -> Iterator[Done]:
    """What is inside tells the yielded function the tokens of each batch; `total`: of all of them."""
    if not console.is_terminal:
        yield _lines(console, label, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda tokens: bar.advance(task, tokens)


def _lines(console: Console, label: str, total: int, unit: str) -> Done:
    console.print(f"{label}: {total:,} {unit}", highlight=False, soft_wrap=True)
    began = told = time.monotonic()
    count = 0

    def done(tokens: int) -> None:
        nonlocal count, told
        count, now = count + tokens, time.monotonic()
        if now - told < SECONDS or count >= total:
            return
        told, left = now, (now - began) / max(count, 1) * (total - count)
        console.print(f"{label}: {count / total:.0%}, about {left:,.0f} s left", highlight=False, soft_wrap=True)

    return done
