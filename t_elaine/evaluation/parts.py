"""Parts of a model's scores, kept as each is finished: a killed evaluation goes on with the part that was under way.

A part is of some hundred rows whose packing does not depend on others, so figures are the same, to the bit, whether an
evaluation was stopped or not. One file of JSON Lines a model, beside the result to come. It scores nothing.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from t_elaine.errors import UserError
from t_elaine.evaluation.appending import Keeper, whole_lines
from t_elaine.evaluation.progress import Done


@dataclass(frozen=True)
class Parts:
    """Plain data by a part's name: what an earlier start found, and where a new one goes."""

    found: dict[str, Any]
    keep: Callable[[str, Any], None]

    def take(self, name: str, make: Callable[[], Any], tokens: int, done: Done) -> Any:
        """A part's figures: found, where `done` is told of its tokens at once, or made and kept."""
        if name in self.found:
            done(tokens)
            return self.found[name]
        made = make()
        self.keep(name, made)
        return made


NONE = Parts({}, lambda name, made: None)


@contextmanager
def kept_parts(path: str) -> Iterator[Parts]:
    """The parts in the file at `path`; what is made inside goes there.

    Raises:
        UserError: the file holds something else.
    """
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            name, made = json.loads(line)
        except (ValueError, TypeError) as error:
            mend = "remove the file: its parts are scored again"
            raise UserError(f"this is no kept score: {error!r}", f"{path}:{number}", mend) from error
        found[name] = made
    with Keeper(path) as keep:
        yield Parts(found, lambda name, made: keep(json.dumps([name, made]) + "\n"))
