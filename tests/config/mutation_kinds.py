"""A function for each kind of mutation that `mutations.py` describes: scene → mutation, None if it has no place."""

import keyword
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from t_elaine.config import settings
from t_elaine.config.gin_files import MacroUse, Reference, Statement
from tests.config.mutations import Mutation, Scene


def misspelt(name: str, taken: set[str], rng: random.Random) -> str | None:
    """The name with one slip of the keyboard; None if nothing came that is a free name."""
    for _ in range(20):
        i = rng.randrange(len(name))
        slips = [
            name[:i] + name[i + 1 :],
            name[:i] + name[i] + name[i:],
            name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :],
            name[:i] + rng.choice("aeioust") + name[i + 1 :],
            name.swapcase()[:1] + name[1:],
            name.replace("_", "", 1),
        ]
        slip = rng.choice(slips)
        if len(name) > 2 and slip.isidentifier() and slip not in taken and not keyword.iskeyword(slip):
            return slip
    return None


def replaced_once(line: str, old: str, new: str) -> str | None:
    """The line with one whole word replaced, if the word stands in it exactly once (comments and strings count)."""
    pattern = rf"(?<![\w']){re.escape(old)}(?![\w'])"
    return re.sub(pattern, new, line) if len(re.findall(pattern, line)) == 1 else None


def _pick(rng: random.Random, found: list[Any]) -> Any:
    return rng.choice(found) if found else None


def selector(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if f"{s.selector}.{s.parameter}" in scene.line(s)])
    slip = s and misspelt(s.selector, scene.names(), rng)
    if not slip:
        return None
    line = scene.line(s).replace(f"{s.selector}.{s.parameter}", f"{slip}.{s.parameter}", 1)
    return scene.changed("selector", s, line, s.selector)


def parameter(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, scene.bindings)
    slip = s and misspelt(s.parameter, scene.names(), rng)
    if not slip:
        return None
    head, sign, tail = scene.line(s).partition("=")
    line = re.sub(rf"{s.parameter}(\s*)$", rf"{slip}\1", head)
    return scene.changed("parameter", s, line + sign + tail, s.parameter) if line != head else None


def _referring(scene: Scene) -> list[Statement]:
    return [s for s in scene.statements if isinstance(s.value, Reference) and scene.line(s).count("@") == 1]


def reference(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, _referring(scene))
    slip = s and misspelt(s.value.name, scene.names(), rng)
    if not slip:
        return None
    head, at, tail = scene.line(s).partition("@")
    return scene.changed("reference", s, head + at + tail.replace(f"{s.value.name}(", f"{slip}(", 1), s.value.name)


def macro_defined(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if not s.parameter])
    slip = s and misspelt(s.key, scene.names(), rng)
    line = slip and replaced_once(scene.line(s), s.key, slip)
    return scene.changed("macro_defined", s, line, s.key) if line else None


def macro_used(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if isinstance(s.value, MacroUse)])
    slip = s and misspelt(s.value.name, scene.names(), rng)
    if not slip:
        return None
    return scene.changed("macro_used", s, scene.line(s).replace(f"%{s.value.name}", f"%{slip}"), s.value.name)


def scope_bound(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if s.scope and f"{s.scope}/{s.selector}" in scene.line(s)])
    slip = s and misspelt(s.scope, scene.names(), rng)
    if not slip:
        return None
    return scene.changed("scope_bound", s, scene.line(s).replace(f"{s.scope}/", f"{slip}/", 1), s.scope)


def scope_entered(scene: Scene, rng: random.Random) -> Mutation | None:
    entered = [s.value.scope for s in _referring(scene)]
    bound = {s.scope for s in scene.bindings}
    fit = [s for s in _referring(scene) if s.value.scope in bound and entered.count(s.value.scope) == 1]
    s = _pick(rng, [s for s in fit if s.value.scope])
    slip = s and misspelt(s.value.scope, scene.names(), rng)
    if not slip:
        return None
    line = scene.line(s).replace(f"@{s.value.scope}/", f"@{slip}/", 1)
    return scene.changed("scope_entered", s, line, s.value.scope)


def dead_scope(scene: Scene, rng: random.Random) -> Mutation | None:
    fit = [s for s in scene.bindings if not s.scope and scene.line(s).startswith(f"{s.selector}.")]
    s = _pick(rng, fit)
    word = rng.choice(["eval", "validation", "other", "final"])
    if s is None or any(word in other.key or word in str(other.value) for other in scene.statements):
        return None
    return scene.changed("dead_scope", s, f"{word}/{scene.line(s)}")


WRONG: dict[type, list[tuple[str, str]]] = {  # type of the value → (text in its place, word that must not be allowed)
    int: [("'5'", "str"), ("[5]", "Sequence"), ("0.5", "float"), ("{'a': 1}", "Mapping")],
    float: [("'1e-4'", "str"), ("[0.1, 0.2]", "Sequence"), ("True", "bool")],
    str: [("5", "int"), ("['a', 'b']", "Sequence"), ("True", "bool"), ("0.25", "float")],
    bool: [("'True'", "str"), ("'yes'", "str"), ("2", "int"), ("[True]", "Sequence")],
    list: [("7", "int"), ("'one'", "str"), ("{'a': 1}", "Mapping")],
    tuple: [("7", "int"), ("'one'", "str"), ("{'a': 1}", "Mapping")],
    dict: [("'one'", "str"), ("0.5", "float"), ("['a']", "Sequence")],
    Reference: [("'cosine'", "str"), ("3", "int"), ("[1, 2]", "Sequence")],
}
# Words that allow a value too, beside the one in the table.
ALSO = {"int": ("float",), "Sequence": ("tuple", "list", "Grid"), "Mapping": ("dict",)}


def _wrong_text(annotation: str, value: Any, rng: random.Random) -> str | None:
    words = set(re.findall(r"\w+", annotation))
    if words & {"Any", "object"}:
        return None
    kind = next((k for k in (Reference, bool, int, float, str, list, tuple, dict) if isinstance(value, k)), None)
    fit = [text for text, word in WRONG.get(kind, []) if not words & {word, *ALSO.get(word, ())}] if kind else []
    return _pick(rng, fit)


def wrong_type(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if scene.one_line(s) and not isinstance(s.value, MacroUse)])
    text = s and _wrong_text(scene.annotation(s), s.value, rng)
    return scene.changed("wrong_type", s, f"{scene.line(s).split('=')[0]}= {text}") if text else None


def wrong_inside(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if scene.one_line(s) and _inner(scene, s) is not None])
    if s is None:
        return None
    item, wrong = _inner(scene, s)
    line = scene.line(s).replace(repr(item), rng.choice(wrong), 1)
    return scene.changed("wrong_inside", s, line) if line != scene.line(s) else None


def _inner(scene: Scene, s: Statement) -> tuple[Any, list[str]] | None:
    """Something inside a value that holds texts only, or numbers only, and what may not stand there."""
    annotation = scene.annotation(s)
    of_text = any(word in annotation for word in ("tuple[str", "Sequence[str", "list[str"))
    if isinstance(s.value, list | tuple) and s.value and isinstance(s.value[-1], str) and of_text:
        return s.value[-1], ["5", "['x']", "0.5", "True"]
    if isinstance(s.value, dict) and "Mapping[str, float]" in annotation:
        return list(s.value.values())[-1], ["'much'", "[0.5]", "True", "None"]
    return None


def wrong_macro(scene: Scene, rng: random.Random) -> Mutation | None:
    users = {s.value.name: s for s in scene.bindings if isinstance(s.value, MacroUse)}
    s = _pick(rng, [s for s in scene.statements if not s.parameter and s.key in users and scene.one_line(s)])
    if s is None or [other.key for other in scene.statements].count(s.key) > 1:
        return None
    text = _wrong_text(scene.annotation(users[s.key]), s.value, rng)
    return scene.changed("wrong_macro", s, f"{s.key} = {text}") if text else None


def wrong_reference(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in _referring(scene) if s.parameter and scene.one_line(s)])
    if s is None:
        return None
    words = set(re.findall(r"\w+", scene.annotation(s)))
    dataclasses = {path.split(":")[1] for path in settings.DATACLASSES} & set(scene.targets)
    other = _pick(rng, sorted(dataclasses - words))
    return scene.changed("wrong_reference", s, f"{scene.line(s).split('@')[0]}@{other}()") if other else None


def no_parentheses(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, _referring(scene))
    return scene.changed("no_parentheses", s, scene.line(s).replace("()", "", 1)) if s else None


def duplicate(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if scene.free_line(s)])
    return scene.added("duplicate", rng, scene.line(s), s.source) if s else None


def duplicate_key(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if isinstance(s.value, dict) and s.value])
    if s is None:
        return None
    key = rng.choice(list(s.value))
    return scene.changed("duplicate_key", s, scene.line(s).replace("{", f"{{{key!r}: 0.5, ", 1))


def unused_macro(scene: Scene, rng: random.Random) -> Mutation | None:
    name = rng.choice(["WARMUP_TOKENS", "EXTRA", "TRAIN_STEPS_TYPO", "VARIANT_B", "Old_rate"])
    used = scene.names() | {name for s in scene.statements for name in re.findall(r"\w+", str(s.value))}
    line = f"{name} = {rng.choice(['7', '3e-4', repr('text'), '[1, 2]'])}"
    return None if name in used else scene.added("unused_macro", rng, line, rng.choice(scene.sources))


def circle(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if not s.parameter and scene.one_line(s)])
    if s is None or [other.key for other in scene.statements].count(s.key) > 1:
        return None
    return scene.changed("circle", s, f"{s.key} = %{s.key}")


def _referred(scene: Scene) -> set[str]:
    found = set()
    for s in scene.statements:
        found |= {name.split("/")[-1] for name in re.findall(r"@([\w/]+)", "\n".join(scene.lines[s.source]))}
    return found


def unreachable(scene: Scene, rng: random.Random) -> Mutation | None:
    free = sorted({path.split(":")[1] for path in settings.DATACLASSES} & set(scene.targets) - _referred(scene))
    name = _pick(rng, free)
    fit = (
        [p for p in settings.parameters(scene.targets[name]).values() if p.annotation in (int, float, str)]
        if name
        else []
    )
    chosen = _pick(rng, fit)
    if chosen is None:
        return None
    value = {int: "3", float: "0.5", str: "'text'"}[chosen.annotation]
    return scene.added("unreachable", rng, f"{name}.{chosen.name} = {value}", rng.choice(scene.sources))


def cut(scene: Scene, rng: random.Random) -> Mutation | None:
    everything = "\n".join(line for lines in scene.lines.values() for line in lines)
    fit = []
    for s in _referring(scene):
        orphans = tuple(o.place for o in scene.bindings if o.selector == s.value.name and o.source == s.source)
        if orphans and len(re.findall(rf"@[\w/]*\b{s.value.name}\(", everything)) == 1 and scene.one_line(s):
            fit.append((s, orphans))
    chosen = _pick(rng, fit)
    return scene.changed("cut", chosen[0], "", "", chosen[1]) if chosen else None


def command(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if scene.one_line(s) and "=" in scene.line(s)])
    name = rng.choice(sorted(settings.ROOTS))
    return scene.changed("command", s, f"{scene.line(s).split('=')[0]}= @{name}()") if s else None


def misplaced(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.bindings if f"{s.selector}.{s.parameter}" in scene.line(s)])
    if s is None:
        return None
    others = [n for n, t in scene.targets.items() if s.parameter not in settings.parameters(t)]
    return scene.changed("misplaced", s, scene.line(s).replace(f"{s.selector}.", f"{_pick(rng, sorted(others))}.", 1))


def syntax(scene: Scene, rng: random.Random) -> Mutation | None:
    s = _pick(rng, [s for s in scene.statements if scene.free_line(s)])
    if s is None:
        return None
    line = scene.line(s)
    lost = [line.replace("=", "", 1), line.replace("=", "==", 1), line.rstrip() + "]"]
    lost += [line.rstrip()[:-1]] * line.rstrip().endswith(("'", "]", "}"))
    last = len(scene.lines[s.source])
    # An open bracket is noticed at whatever comes after it.
    places = tuple(f"{s.source}:{n}" for n in range(s.line, last + 3))
    return scene.changed("syntax", s, rng.choice(lost), "", places)


KINDS: dict[str, Callable[[Scene, random.Random], Mutation | None]] = {
    kind.__name__: kind
    for kind in (
        selector, parameter, reference, macro_defined, macro_used, scope_bound, scope_entered, dead_scope, wrong_type,
        wrong_inside, wrong_macro, wrong_reference, no_parentheses, duplicate, duplicate_key, unused_macro, circle,
        unreachable, cut, command, misplaced, syntax,
    )
}  # fmt: skip


def mutations(files: list[str], seed: int) -> Iterator[Mutation]:
    """Endless mutations of a set of gin files, kinds in turn, each with one changed line."""
    rng = random.Random(seed)
    scene = Scene(files)
    while True:
        order = list(KINDS)
        rng.shuffle(order)
        for kind in order:
            made = KINDS[kind](scene, rng)
            if made is not None:
                yield made
