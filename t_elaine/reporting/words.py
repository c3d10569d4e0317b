"""Numbers and sentences of the report: how a figure is written, what a difference may be called.

A difference is called a gain or a loss only where its interval leaves out zero. Knows no HTML.
"""

import math
import statistics
import zlib
from collections.abc import Sequence
from typing import Any

from t_elaine.reporting.record import Line, Record

LANGUAGE_NAMES = {
    "en": "English",
    "ja": "日本語",
    "zh": "中文",
    "fr": "français",
    "es": "español",
    "ru": "русский",
    "de": "Deutsch",
    "ko": "한국어",
}
FEW_QUESTIONS = 100
COLOURS = 8  # of the page


def colours(languages: Sequence[str]) -> dict[str, int]:
    """The number of each language's colour: on every page the same for those named above.

    Others take the colour of their name's digest, or the next that no other language of the page has.
    """
    known = list(LANGUAGE_NAMES)
    found = {name: known.index(name) for name in languages if name in known}
    for name in sorted(set(languages) - set(known)):
        start = zlib.crc32(name.encode())
        wanted = [(start + i) % COLOURS for i in range(COLOURS)]
        found[name] = next((i for i in wanted if i not in found.values()), wanted[0])
    return found


def number(value: float | None, digits: int = 2, factor: float = 1.0, signed: bool = False) -> str:
    """A number with a true minus sign; – for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{factor * value:{'+' if signed else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−").replace(",", "\u202f")


def count(n: float) -> str:
    """A count: whole below 100,000, then in three digits."""
    if n < 100_000:
        return f"{n:,.0f}".replace(",", "\u202f")
    for unit in ("k", "M", "G"):
        n /= 1000
        if n < 999.5:
            return f"{n:.3g}\u202f{unit}"
    return f"{n / 1000:.3g}\u202fT"


def in_bytes(n: float) -> str:
    """A size in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f}\u202f{unit}" if n >= 99.5 or unit == "B" else f"{n:.2g}\u202f{unit}"
        n /= 1000
    return f"{n:.3g}\u202fTB"


def small(value: float | None) -> str:
    """A small number in powers of ten: 3.1·10⁻⁶; 0 as it is."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words that fit a tile."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def verdict(difference: dict[str, Any], lower_is_better: bool) -> str:
    """ "better" or "worse" where there is an interval and it leaves out zero, else ""."""
    if difference["low"] is None or difference["low"] <= 0 <= difference["high"]:
        return ""
    return "better" if (difference["value"] < 0) == lower_is_better else "worse"


def bar(difference: dict[str, Any], scale: float) -> dict[str, float] | None:
    """Places of a difference and its interval on a track from -scale to +scale, in percent; None without one."""
    if difference["low"] is None:
        return None
    low, value, high = (round(50 + 48 * difference[name] / scale, 2) for name in ("low", "value", "high"))
    return {"low": low, "value": value, "width": round(high - low, 2)}


def scale(rows: Sequence[Line]) -> float:
    """The largest end of an interval of a difference."""
    ends = [
        abs(row["difference"][end])
        for row in rows
        if "difference" in row
        for end in ("low", "high")
        if row["difference"][end] is not None
    ]
    return max(ends, default=0.0) or 1.0


def lead(record: Record, result: dict[str, Any] | None) -> str:
    """How far the run came."""
    if record.steps:
        last = record.steps[-1]
        return f"{count(last['step'])} steps, {count(last['tokens'])} tokens."
    return "No training steps are recorded in this folder."


def tiles(record: Record, rows: Sequence[Line]) -> list[dict[str, str]]:
    """The key figures."""
    found = []
    if record.steps:
        last, recent = record.steps[-1], record.steps[-20:]
        losses = [line["loss"] for line in recent if line.get("loss") is not None]
        found.append(
            {"name": "tokens trained on", "value": count(last["tokens"]), "note": f"{count(last['step'])} steps"}
        )
        if losses:
            mean = sum(losses) / len(losses)
            found.append(
                {"name": "training loss", "value": number(mean, 3), "note": f"mean of the last {len(losses)} steps"}
            )
        found += _speed(record.steps) + _cost(last, record.versions.get("devices", {}))
    for row in rows:
        if row["level"] == "language" and len(found) < 8:
            note = "child"
            if "difference" in row:
                change = row["difference"]["value"] / row["parent"]["value"]
                note = f"{number(change, 1, 100, True)} % against the parent"
            found.append(
                {"name": f"bits per byte, {row['language']}", "value": number(row["child"]["value"], 3), "note": note}
            )
    return found


def _speed(steps: Sequence[Line]) -> list[dict[str, str]]:
    timed = [line["seconds"] for line in steps if line.get("seconds", {}).get("step")]
    rates = [line["tokens_per_second"] for line in steps if line.get("tokens_per_second")]
    if not timed or not rates:
        return []
    whole = sum(seconds["step"] for seconds in timed)
    parts = (
        (name, sum(seconds.get(key, 0.0) for seconds in timed) / whole)
        for name, key in (("data", "data"), ("checkpoint", "checkpoint"))
    )
    note = ", ".join(f"{name} {number(share, 1, 100)} %" for name, share in parts)
    utilisation = [line["mfu"] for line in steps if line.get("mfu")]
    speed = f"MFU {number(statistics.median(utilisation), 1, 100)} %" if utilisation else "median"
    return [
        {"name": "tokens a second", "value": count(statistics.median(rates)), "note": speed},
        {"name": "time in steps", "value": duration(whole), "note": note},
    ]


def _cost(last: Line, devices: dict[str, Any]) -> list[dict[str, str]]:
    """Chip-hours of the whole run, with what they cost where a price was given; nothing in older records."""
    if "chip_hours" not in last:
        return []
    hours = last["chip_hours"]
    parts = [f"{devices['count']} × {devices['kind']}"] if devices else []
    parts += [f"{number(last['money'], 2)} at the price given"] if "money" in last else []
    return [{"name": "chip-hours", "value": number(hours, 3 if hours < 1 else 1), "note": ", ".join(parts)}]


def lost(mixture: dict[str, Any]) -> str:
    """Documents that the packing left out or cut, in one sentence; "" if none."""
    sums = {
        key: sum(source.get(key, 0) for source in mixture.get("sources", {}).values())
        for key in ("dropped", "truncated")
    }
    return " ".join(f"Documents {key} as too long for a row: {count(n)}." for key, n in sums.items() if n)


def findings(rows: Sequence[Line], exams: Sequence[Line]) -> list[tuple[str, str]]:
    """What changed against the parent: (subject, sentence)."""
    said = {"better": "fell", "worse": "rose", "": "did not clearly change"}
    found: list[tuple[str, str]] = []
    for row in rows:
        if row["level"] == "language" and "difference" in row:
            subject = str(LANGUAGE_NAMES.get(row["language"], row["language"]))
            word = said[verdict(row["difference"], True)]
            found.append((subject, f"held-out bits per byte {word}: {_change(row, 3)}."))
    said = {"better": "more right answers", "worse": "fewer right answers", "": "no clear change"}
    for exam in exams:
        score = exam["scores"][exam["headline"]]
        if "difference" in score:
            word = said[verdict(score["difference"], False)]
            sentence = f"{word} over {exam['questions']} questions: {_change(score, 1, 100)}."
            found.append((f"Exam {exam['suite']}", sentence))
    return found


def text_of(row: Line) -> str:
    """What a row of bits per byte is of."""
    if "store" in row:
        return f"corpus {row['store']}"
    name = str(LANGUAGE_NAMES.get(row["language"], row["language"]))
    told = {"language": "without general text", "general": "general text"}
    return f"{name}, {row.get('category') or told.get(row['level'], '')}"


def forgetting(rows: Sequence[Line]) -> list[tuple[str, str]] | None:
    """The lines on general text; none where none was evaluated, None where there is no parent to compare with."""
    if not any("difference" in row for row in rows):
        return None
    said = {"better": "nothing forgotten: bits per byte fell", "worse": "forgotten: bits per byte rose"}
    return [
        (
            f"General text, {LANGUAGE_NAMES.get(row['language'], row['language'])}",
            f"{said.get(verdict(row['difference'], True), 'no clear change')}, {_change(row, 3)}.",
        )
        for row in rows
        if row["level"] == "general" and "difference" in row
    ]


def _change(row: Line, digits: int, factor: float = 1.0) -> str:
    """Parent's value to child's; a factor of 100 makes them percent, and the gap percentage points."""
    before, after = (number(row[side]["value"], digits, factor) for side in ("parent", "child"))
    gap, low, high = (number(row["difference"][name], digits, factor, True) for name in ("value", "low", "high"))
    interval = "too few for an interval" if low == "–" else f"interval {low} to {high}"
    percent, points = ("\u202f%", " points") if factor == 100 else ("", "")
    return f"{before} to {after}{percent} ({gap}{points}, {interval})"


def small_exams(exams: Sequence[Line]) -> str:
    """A warning where exams are too small to tell much; "" otherwise."""
    few = [exam for exam in exams if exam["questions"] < FEW_QUESTIONS]
    if not few:
        return ""
    return "With so few questions the intervals are wide and say little about how good a model is."
