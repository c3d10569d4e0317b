"""Whole characters, and texts cut at the first stop string, however tokens cut them up."""

import numpy as np
import pytest

from t_elaine.generation.stopping import Text

BYTES = tuple(bytes([i]) for i in range(256))
WRITTEN = "血圧は120です。\n問題: 次は🩺？ 终止 the end"


def shown(text: Text, tokens: list[bytes]) -> list[str]:
    """Pieces as a stream would show them."""
    text.pieces = tokens
    pieces = []
    for token in range(len(tokens)):
        stopped = text.add(token)
        pieces.append(text.ready())
        if stopped:
            return pieces
    text.close()
    return [*pieces, text.ready(whole=True)]


@pytest.mark.parametrize("stop", ["\n問題", "🩺", "终止", "the end", "です。\n", "never", "血"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_a_stop_string_is_found_across_tokens(stop: str, size: int) -> None:
    raw = WRITTEN.encode()
    tokens = [raw[i : i + size] for i in range(0, len(raw), size)]
    text = Text(tokens, (stop, "also never"))
    pieces = shown(text, tokens)
    wanted = WRITTEN[: WRITTEN.index(stop)] if stop in WRITTEN else WRITTEN
    assert text.close() == wanted == "".join(pieces)
    assert text.stopped == (stop in WRITTEN)
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_first_of_several_stop_strings_cuts() -> None:
    text = Text([b"abcdefgh"], ("fg", "cd", "de"))
    assert text.add(0) and text.close() == "ab"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    text = Text([b"one #", b"#", b"x ##", b"#!"], ("###",))
    pieces = []
    for token in range(4):
        text.add(token)
        pieces.append(text.ready())
    assert pieces == ["one ", "", "##x ", ""] and text.close() == "one ##x "


def test_stop_strings_within_the_least_length_are_not_heard() -> None:
    text = Text([b"\n", b"a", b"\n"], ("\n",), min_new=2)
    assert [text.add(i) for i in range(3)] == [False, False, True]
    assert text.close() == "\na"


def test_a_broken_character_at_the_end_shows_as_one() -> None:
    text = Text([b"ok \xe8\xa1", b""], ())
    text.add(0)
    assert text.ready() == "ok "
    assert text.close() == "ok \ufffd"


def test_ids_without_bytes_are_not_seen() -> None:
    text = Text(BYTES[:100])
    assert not text.add(65) and not text.add(4000)
    assert text.close() == "A"


def test_random_cuts_give_the_text_again() -> None:
    rng = np.random.default_rng(0)
    raw = (WRITTEN * 20).encode()
    for _ in range(50):
        cuts = np.sort(rng.choice(len(raw), 40, replace=False))
        tokens = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        text = Text(tokens, ("🩻", "終止"))
        assert "".join(shown(text, tokens)) == WRITTEN * 20
