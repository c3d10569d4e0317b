"""Do jax and jaxlib go together? Asked of the packages' metadata, before JAX is imported and fails in its own words."""

import importlib.metadata
import re
import sys
from collections.abc import Sequence

from t_elaine.errors import UserError


def version_of(package: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def refuse_mixed_jax() -> None:
    """Raise UserError where jax and jaxlib do not go together (importing jax would be a traceback)."""
    told = mixed_jax()
    if told is not None:
        raise told


def leave_if_jax_is_mixed(arguments: Sequence[str]) -> None:
    """End the process with a message and code 2 where jax and jaxlib do not go together, unless it is the doctor's."""
    told = mixed_jax()
    if told is not None and not any("doctor" in argument for argument in arguments):
        print(told.text(), file=sys.stderr)
        sys.exit(2)


def mixed_jax() -> UserError | None:
    """What is wrong with the pair jax and jaxlib; None if it fits. Does not import them."""
    jax, jaxlib = version_of("jax"), version_of("jaxlib")
    if jax is None or jaxlib is None:
        lacking = "jax" if jax is None else "jaxlib"
        return UserError(f"{lacking} is not installed", "this Python", f"pip install -U jax{'==' + jax if jax else ''}")
    needs = next((text for text in importlib.metadata.requires("jax") or [] if re.match(r"jaxlib\b", text)), "")
    bounds = re.findall(r"(<=|>=|==|<|>)\s*([\d.]+)", needs.split(";")[0])
    if all(_holds(_numbers(jaxlib), sign, _numbers(bound)) for sign, bound in bounds):
        return None
    wanted = next((bound for sign, bound in bounds if sign in ("<=", "==")), jax)
    mend = f"pip install jax=={jax} jaxlib=={wanted}"
    return UserError(f"jax {jax} does not work with jaxlib {jaxlib}", "the packages of this Python", mend)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0].split("dev")[0])[:3])


def _holds(version: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    order = (version > bound) - (version < bound)
    return {"<=": order <= 0, ">=": order >= 0, "==": order == 0, "<": order < 0, ">": order > 0}[sign]
