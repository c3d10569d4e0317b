"""What a compiler refuses is told by what it refuses; anything else is left as it is."""

from typing import Any

import jax
import pytest

from t_elaine.errors import UserError
from t_elaine.training.compilation import compiled


class Refusing:
    """Stands for a step and for what lowering it gives."""

    def __init__(self, message: str) -> None:
        self.run, self._message = self, message

    def lower(self, *_: Any) -> "Refusing":
        return self

    def compile(self) -> None:
        raise jax.errors.JaxRuntimeError(self._message)


@pytest.mark.parametrize(
    ("message", "where", "what"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nmore", "compiler", "does not fit the device"),
        ("E1000: CompileTimeHbmOom: the total memory (20G) exceeds available HBM (15G)", "compiler", "does not fit"),
        ("INVALID_ARGUMENT: No such compile option: 'xla_x'\nmore", "train.compiler_options", "'xla_x'"),
        ("INVALID_ARGUMENT: While setting option xla_y, 'true' is not a bool", "train.compiler_options", "xla_y"),
    ],
)
def test_a_refusal_is_told(message: str, where: str, what: str) -> None:
    step: Any = Refusing(message)
    with pytest.raises(UserError) as caught:
        compiled(step, None, {}, print)
    assert caught.value.where == where and what in caught.value.what and "more" not in caught.value.what


def test_anything_else_is_a_bug() -> None:
    step: Any = Refusing("INTERNAL: a mystery")
    with pytest.raises(jax.errors.JaxRuntimeError, match="mystery"):
        compiled(step, None, {}, print)
