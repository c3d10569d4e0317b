"""Lines for a terminal: those that are too long for one are broken between words."""

import textwrap

WIDTH = 120


def wrapped(line: str) -> str:
    """The line, or where it is longer than WIDTH several, the later ones indented; no word is broken."""
    if len(line) <= WIDTH:
        return line
    found = textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(found)
