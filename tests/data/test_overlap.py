"""Exam items in texts: every copy is found whatever its layout, nothing else is, and hash collisions change nothing."""

import gzip
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from t_elaine.data import grams, overlap
from t_elaine.data.exam_items import ExamItem, ExamItems, find_suites, read_suite
from t_elaine.data.folding import fold
from t_elaine.data.overlap import Overlap, build_index, scan, shares
from t_elaine.errors import UserError

ENGLISH = ExamItem(
    id="en1",
    question="A 45-year-old woman comes to the clinic because of a painful swelling of her left knee since Tuesday.",
    options=("Aspirate the joint", "Order a radiograph of both knees", "Give colchicine at once"),
)
JAPANESE = ExamItem(
    id="ja1",
    question="４５歳の女性。火曜日から左膝の腫脹と疼痛が続くため来院した。この患者にまず行うべき検査として適切なのはどれか。",
    options=("関節穿刺による関節液の性状の確認", "両膝のＸ線撮影", "コルヒチンの速やかな投与"),
)
SHORT = ExamItem(id="s1", question="Where is insulin made?", options=("In the islets", "In the bile duct"))
SHORT_JA = ExamItem(id="s2", question="咳嗽を伴うことが少ない疾患はどれか。", options=("喘息", "肺炎"))
SUITE = ExamItems(name="made", items=(ENGLISH, JAPANESE, SHORT, SHORT_JA))
FILLER = "The weather was fine and nobody asked a question. 天気がよかったので散歩に出かけた。 "


def seen(index: overlap.Index, *texts: str) -> dict[str, tuple[float, float]]:
    hits = scan(index, [(str(i), f"{FILLER}\n{text}\n{FILLER}") for i, text in enumerate(texts)])
    question, whole, found = shares(index, hits)
    rounded = zip(np.round(question, 2).tolist(), np.round(whole, 2).tolist(), strict=True)
    return {name: pair for name, pair, is_seen in zip(index.ids, rounded, found, strict=True) if is_seen}


@pytest.fixture(scope="module")
def index() -> overlap.Index:
    return build_index([SUITE])


def reference(text: str) -> str:
    normal = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in normal if unicodedata.category(c)[0] in "LMN")


def test_folding_is_that_of_unicodedata_for_every_character() -> None:
    points = [p for p in range(0x323B0) if not 0xD800 <= p < 0xE000]
    for first in range(0, len(points), 3000):
        texts = [chr(p) for p in points[first : first + 3000]]
        letters = fold(texts)
        made = np.split(letters.values, letters.ends[:-1])
        assert ["".join(map(chr, part)) for part in made] == [reference(text) for text in texts]


def test_folding_is_that_of_unicodedata_for_what_joins() -> None:
    rng = random.Random(3)
    alphabet = "aéＡが\u3099\u309aｶﾞﾊﾟ①½㎎ﬁß\u0301 \u200b\u00ad각\u1100\u1161\u11a8、。İ病"
    texts = ["".join(rng.choices(alphabet, k=12)) for _ in range(2000)]
    letters = fold(texts)
    made = ["".join(map(chr, part)) for part in np.split(letters.values, letters.ends[:-1])]
    assert made == [reference(text) for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        str.upper,
        lambda t: t.replace(" ", "\n   "),
        lambda t: t.replace(".", " ...").replace("-", "–").replace(",", ";"),
        lambda t: unicodedata.normalize("NFKC", t),
        lambda t: t.translate({i: i + 0xFEE0 for i in range(0x21, 0x7F)}),
        lambda t: t.replace("。", "．\n").replace("、", "，"),
        lambda t: "　".join(t) if t.isascii() is False else t,
        lambda t: unicodedata.normalize("NFD", t),
        lambda t: "\u200b".join(t),
    ],
    ids=["same", "upper", "spacing", "punctuation", "half", "full", "stops", "apart", "decomposed", "zero-width"],
)
def test_layout_hides_no_copy(index: overlap.Index, change: object) -> None:
    for item in (ENGLISH, JAPANESE):
        text = change(item.question + "\n" + "\n".join(item.options))  # type: ignore[operator]
        assert seen(index, text) == {item.id: (1.0, 1.0)}


@pytest.mark.parametrize("mark", ["{}. ", "({}) ", "{}：", "{}）"])
@pytest.mark.parametrize("names", ["abc", "ABC", "123", "①②③"])
def test_labelled_options_are_found(index: overlap.Index, mark: str, names: str) -> None:
    for item in (ENGLISH, JAPANESE, SHORT):
        options = [mark.format(name) + option for name, option in zip(names, item.options, strict=False)]
        assert seen(index, "\n".join([item.question, *options])) == {item.id: (1.0, 1.0)}


def test_options_alone_are_seen_and_cover_nothing_of_the_question(index: overlap.Index) -> None:
    assert seen(index, " ".join(ENGLISH.options)) == {"en1": (0.0, round(13 / 33, 2))}
    options, question = (len(reference(text)) for text in ("".join(JAPANESE.options), JAPANESE.question))
    assert seen(index, " ".join(JAPANESE.options)) == {"ja1": (0.0, round(options / (options + question), 2))}


def test_a_part_is_graded(index: overlap.Index) -> None:
    words = ENGLISH.question.split(" ")
    assert seen(index, " ".join(words[:11])) == {"en1": (13 / 20, round(13 / 33, 2))}  # 45-year-old is three words
    assert seen(index, " ".join(words[:10])) == {}


def test_an_item_cut_in_two_documents_is_found_only_by_whole_passages(index: overlap.Index) -> None:
    question = ENGLISH.question.split(" ")
    assert seen(index, " ".join(question[:9]), " ".join(question[9:])) == {}
    hits = scan(index, [("a", " ".join(question[:9])), ("b", " ".join(question[9:]))])  # nothing between the two
    assert not hits.documents.any()


def test_short_items_are_found_whole_only(index: overlap.Index) -> None:
    assert seen(index, "Where is insulin made? In the islets / in the bile duct") == {"s1": (1.0, 1.0)}
    assert seen(index, "Where is insulin made? In the islets") == {}
    assert seen(index, "咳嗽を伴うことが少ない疾患はどれか。心不全") == {"s2": (1.0, round(17 / 21, 2))}
    assert seen(index, "咳嗽を伴うことが少ない疾患はどれ") == {}


def test_words_are_compared_as_words(index: overlap.Index) -> None:
    assert seen(index, ENGLISH.question.replace("painful swelling", "painfulswelling").replace("to the", "tothe")) == {}


def test_common_ngrams_are_boilerplate() -> None:
    frame = "以下の文章を注意深く読んだうえで最も適切な選択肢を必ず一つだけ選び解答用紙に記入しなさい。"
    ends = [
        "心臓の弁はいくつあるか答えよ",
        "腎臓の主な働きを一つ選べ",
        "肺の区域の数はいくつか答えよ",
        "肝臓の位置はどこか答えよ",
    ]
    items = [ExamItem(id=str(i), question=frame + end, options=("一", "二")) for i, end in enumerate(ends)]
    three, four = (build_index([ExamItems(name="x", items=tuple(items[:n]))]) for n in (3, 4))
    assert list(seen(three, frame)) == ["0", "1", "2"]
    assert seen(four, frame) == {}
    assert list(seen(four, frame + ends[2])) == ["2"]
    others = ExamItems(name="y", items=tuple(items[:1]))
    both = build_index([ExamItems(name="x", items=tuple(items)), others])
    hits = scan(both, [("a", frame)])
    assert np.flatnonzero(hits.documents).tolist() == [4], "boilerplate of one suite counts in another"


def test_a_short_question_inside_many_items_is_boilerplate() -> None:
    short = "次のうち正しい組合せを選んでください"
    items = [ExamItem(id="s", question=short, options=("心臓と右心房の弁", "腎臓と尿管の弁"))]
    items += [
        ExamItem(id=str(i), question=f"{'肝胆膵脾腎'[i]}臓について述べた。{short}", options=("甲", "乙"))
        for i in range(4)
    ]
    assert seen(build_index([ExamItems(name="x", items=tuple(items))]), short) == {}
    assert list(seen(build_index([ExamItems(name="x", items=tuple(items[:2]))]), short)) == ["s"]


def test_collisions_of_hashes_make_no_hit_and_hide_none(index: overlap.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    words = (ENGLISH.question + " " + " ".join(ENGLISH.options)).split() + list(JAPANESE.question)
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(20)]
    texts += [ENGLISH.question, JAPANESE.question, SHORT.question + " ".join(SHORT.options)]
    colliding = build_index([SUITE], mask=0x7)
    assert seen(colliding, *texts) == seen(index, *texts) != {}
    monkeypatch.setattr(grams, "same", lambda a, a_range, *rest: np.ones(len(a_range[0]), bool))
    assert scan(colliding, [("", texts[0])]).documents.any(), "without the exact check there are false hits"


def test_it_finds_what_a_search_of_strings_finds() -> None:
    """Random items and texts over four characters, so that there are many chance hits, against plain string search."""
    rng = random.Random(7)
    letters = "心肺肝腎"
    items = [ExamItem(id=str(i), question="".join(rng.choices(letters, k=20)), options=()) for i in range(40)]
    settings = Overlap(characters=6, question_characters=6, common=1000)
    index = build_index([ExamItems(name="x", items=tuple(items))], settings)
    texts = ["".join(rng.choices(letters, k=rng.randint(1, 90))) for _ in range(60)]
    found = overlap.items_in(index, texts)
    runs = [{item.question[i : i + 6] for i in range(15)} for item in items]
    assert found == [[i for i, some in enumerate(runs) if any(run in text for run in some)] for text in texts]
    assert 50 < sum(map(len, found)) < 2000


def test_a_share_can_be_asked_for() -> None:
    index = build_index([SUITE], Overlap(share=0.7))
    part, most = " ".join(ENGLISH.question.split(" ")[:11]), " ".join(ENGLISH.question.split(" ")[:15])
    assert seen(index, part) == {} and list(seen(index, most)) == ["en1"]
    assert overlap.items_in(index, [part, most]) == [[], [0]]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4"):
        build_index([SUITE], Overlap(words=2))
    with pytest.raises(UserError, match="between 0 and 1"):
        build_index([SUITE], Overlap(share=1.5))


@pytest.mark.parametrize(
    "bad", ['{"problem_id": 1, "choices": []}', '{"problem_id": 1', "[]", '{"problem_id": 1, "problem_text": 7}']
)
def test_a_malformed_suite_is_refused_with_file_and_line(tmp_path: Path, bad: str) -> None:
    good = json.dumps({"problem_id": "a", "problem_text": "x", "choices": ["y"]})
    (tmp_path / "exam.jsonl").write_text(f"{good}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_suite(tmp_path / "exam.jsonl")
    assert caught.value.where == f"{tmp_path / 'exam.jsonl'}:3"
    (tmp_path / "exam.jsonl").write_bytes(f"{good}\n".encode() + b"\xff\xfe\n")
    with pytest.raises(UserError) as caught:
        read_suite(tmp_path / "exam.jsonl")
    assert caught.value.where == f"{tmp_path / 'exam.jsonl'}:2"
    with pytest.raises(UserError, match="no such exam"):
        find_suites([str(tmp_path / "nowhere")])


def test_all_verbatim_questions_of_the_real_notes_are_found(shared_data: Path) -> None:
    """The 83 questions of at least 18 characters that stand in the notes letter by letter."""
    notes = shared_data / "corpora" / "ja" / "fornix_medical_notes.jsonl.gz"
    with gzip.open(notes, "rt", encoding="utf-8", newline="\n") as file:
        documents = [(row["id"], row["text"]) for row in map(json.loads, file)]
    suites = [read_suite(path) for path in find_suites([str(shared_data / "benchmarks" / "elaine" / "ja")])]
    texts = [_plain(text) for _, text in documents]
    verbatim = {
        (suite.name, item.id)
        for suite in suites
        for item in suite.items
        if len(item.question) >= 18 and any(_plain(item.question) in text for text in texts)
    }
    assert len(verbatim) == 83

    def covered(settings: Overlap) -> dict[tuple[str, str], float]:
        index = build_index(suites, settings)
        question, _, found = shares(index, scan(index, documents))
        return {(index.suites[index.suite[i]][0], index.ids[i]): question[i] for i in np.flatnonzero(found).tolist()}

    everything = covered(Overlap(common=10_000))
    assert {name for name in verbatim if everything.get(name, 0) < 0.5} == set()
    # "まず行う対応として適切なのはどれか。" ends other questions of the suite too: boilerplate, by the rule.
    named = covered(Overlap())
    assert {name for name in verbatim if named.get(name, 0) < 0.5} == {("igakuqa", "115C68")}


def _plain(text: str) -> str:
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c)[0] != "P")
