"""Formats are read whole and in order; what is malformed is set aside alone, what is damaged is one clear message."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t_elaine.data.formats import Rejected, first_line
from t_elaine.data.lines import Piece
from t_elaine.data.sources import Source, check_source, check_text, find_files
from t_elaine.data.texts import Task, Text, texts
from t_elaine.errors import UserError

TEXTS = ["Fever and cough.", "発熱と咳嗽。\n二行目", "发热和咳嗽\u2029第二段", 'tab\tquote" 😀']
ROWS = [{"id": f"d{i}", "text": text, "n": i} for i, text in enumerate(TEXTS)]


def source(path: Path | str, **changes: object) -> Source:
    fields = {"name": "s", "language": "en", "category": "textbook", "licence": "CC0-1.0", "url": "https://example.org"}
    return Source(**(fields | {"files": (str(path),)} | changes))  # type: ignore[arg-type]


def read(src: Source, parts: int = 1, path: str = "") -> tuple[list[Text], list[Rejected]]:
    found = [
        item
        for part in range(parts)
        for item in texts(Task(name="t", sources=(src,)), src, Piece(file=path or src.files[0], part=part, parts=parts))
    ]
    return [x for x in found if isinstance(x, Text)], [x for x in found if isinstance(x, Rejected)]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    else:
        path.write_bytes(content)
    return path


def make(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif ".json." in name + ".":
        write(path, json.dumps(ROWS, ensure_ascii=False, indent=2).encode())
    elif ".csv" in name:
        rows = ["id,text,n", *(f'{r["id"]},"{r["text"].replace(chr(34), chr(34) * 2)}",{r["n"]}' for r in ROWS)]
        write(path, "\r\n".join(rows).encode())
    else:
        write(path, jsonl(ROWS))
    return path


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 3])
def test_formats_give_every_document_once(tmp_path: Path, name: str, parts: int) -> None:
    found, rejected = read(source(make(tmp_path, name)), parts)
    assert not rejected
    assert sorted((t.id, t.text) for t in found) == sorted((r["id"], r["text"]) for r in ROWS)
    if parts == 1:
        assert [t.text for t in found] == TEXTS


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.gz", "a.parquet", "a.arrow", "a.json"]
)
def test_a_truncated_file_is_one_message(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(UserError) as caught:
        read(source(path))
    assert name in caught.value.text() and caught.value.mend


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("name", "encoding"), [("a.jsonl", "utf-8"), ("a.jsonl.gz", "utf-8"), ("a.jsonl", "utf-16")])
def test_rows_cut_short_in_the_middle_of_one_are_one_message(
    tmp_path: Path, name: str, encoding: str, parts: int
) -> None:
    text = jsonl([{"text": f"{i}頭痛と発熱"} for i in range(5)]).decode()
    content = text.encode(encoding)
    for missing in (4, 8, 14):  # half a character in UTF-8, and whole ones
        path = write(tmp_path / name, content[:-missing])
        with pytest.raises(UserError, match="in the middle of a row"):
            read(source(path, encoding=encoding), parts)
    path = write(tmp_path / name, text.removesuffix("\n").encode(encoding))
    assert len(read(source(path, encoding=encoding), parts)[0]) == 5, "a last line end may be missing"


def test_a_flipped_byte_in_gzip_is_one_message(tmp_path: Path) -> None:
    path = make(tmp_path, "a.jsonl.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read(source(path))


BAD = {
    "bad JSON": b'{"id": "x", "text": "no end',
    "missing field": b'{"id": "x", "body": "text"}',
    "field 'text' is int": b'{"text": 3}',
    "empty text": b'{"text": "  \\n "}',
    "NUL": b'{"text": "a\\u0000b"}',
    "invalid UTF-8 (half": b'{"text": "a\\ud800b"}',
    "invalid utf-8: ": b'{"text": "a\xff\xfeb"}',
    "a JSON list": b"[1, 2]",
    "larger than 1000": b'{"text": "' + b"x" * 2000 + b'"}',
    "larger than 1000 bytes": b'{"text": "' + b"x" * 200_000 + b'"}',
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("parts", [1, 4])
def test_malformed_rows_are_set_aside_with_their_line(tmp_path: Path, suffix: str, parts: int) -> None:
    good = jsonl(ROWS).split(b"\n")[0]
    rows = [good, *(row for bad in BAD.values() for row in (bad, good))]
    path = write(tmp_path / f"a.jsonl{suffix}", b"\r\n".join(rows) + b"\n")
    src = source(path, max_document_bytes=1000)
    seen: dict[int, str] = {}
    kept = 0
    for part in range(parts):
        piece = Piece(file=str(path), part=part, parts=parts)
        before = first_line(src, piece)
        for item in texts(Task(name="t", sources=(src,)), src, piece):
            kept += isinstance(item, Text)
            if isinstance(item, Rejected):
                assert len(item.shown) <= 200
                seen[before + item.line] = item.reason
    assert kept == len(BAD) + 1
    assert sorted(seen) == [2 * i + 2 for i in range(len(BAD))]
    for reason, line in zip(BAD, sorted(seen), strict=True):
        assert reason in seen[line]


def test_a_50_megabyte_document_is_set_aside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "' + b"word " * 10_000_000 + b'"}\n' + jsonl(ROWS))
    found, rejected = read(source(path))
    assert len(found) == len(ROWS) and ["larger than" in r.reason for r in rejected] == [True]


def test_a_bom_and_line_separators_are_no_trouble(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS))
    assert [t.text for t in read(source(path))[0]] == TEXTS


CUT = {
    "a.txt": ("utf-8", "経過は良好である。"),
    "a.json": ("utf-8", '[{"text": "発熱'),
    "a.csv": ("utf-8", "id,text\n1,発熱"),
    "b.txt": ("gb18030", "发热和咳嗽"),
    "c.txt": ("utf-16", "fever"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_inside_a_character_is_cut_short_and_not_of_another_encoding(tmp_path: Path, name: str) -> None:
    encoding, text = CUT[name]
    path = write(tmp_path / name, text.encode(encoding)[:-1])
    with pytest.raises(UserError, match="ends in the middle of a character") as caught:
        read(source(path, encoding=encoding))
    assert "cut short" in caught.value.mend and "encoding" not in caught.value.mend


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_named_encodings_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    text = "患者发热，咳嗽三天。"
    content = {
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\r\n",
        "a.csv": f"text\r\n{text}\r\n",
        "a.txt": text,
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    assert [t.text for t in read(source(path, encoding=encoding))[0]] == [text]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "cp932"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
def test_another_encoding_than_stated_is_refused(tmp_path: Path, encoding: str, name: str) -> None:
    text = "患者発熱三天" * 3
    content = {
        "a.jsonl": (json.dumps({"text": text}, ensure_ascii=False) + "\n") * 5,
        "a.csv": f"text\r\n{text}\r\n",
        "a.txt": text,
        "a.json": json.dumps([{"text": text}], ensure_ascii=False),
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match="is not utf-8") as caught:
        read(source(path))
    assert "encoding=" in caught.value.mend


def test_text_units(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\nthree\r\n")
    assert [t.text for t in read(source(path))[0]] == ["one\ntwo\n\nthree\n"]
    assert [t.text for t in read(source(path, unit="line"))[0]] == ["one", "two", "three"]
    assert [(t.text, t.line) for t in read(source(path, unit="paragraph"))[0]] == [("one\ntwo", 1), ("three", 4)]


def test_invalid_utf8_in_parquet_rejects_its_row_alone(tmp_path: Path) -> None:
    column = pa.array([b"good", b"bad \xff", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    found, rejected = read(source(tmp_path / "a.parquet"))
    assert [t.text for t in found] == ["good", "fine"] and [r.line for r in rejected] == [2]


def test_records_can_be_chosen_by_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    assert [t.id for t in read(source(path, where=(("n", "2"),)))[0]] == ["d2"]


def test_long_white_space_is_set_aside(tmp_path: Path) -> None:
    src = source("a.jsonl")
    assert "white-space" in check_text({"text": "a" + " " * 100_000 + "b"}, src)
    assert check_text({"text": "a" + " " * 99_999 + "b"}, src) == ""


@pytest.mark.parametrize("field", ["licence", "url", "language", "category"])
def test_a_source_must_say_where_it_comes_from(field: str) -> None:
    check_source(source("a.jsonl"))
    with pytest.raises(UserError, match=field):
        check_source(source("a.jsonl", **{field: " "}))


def test_only_allowed_licences() -> None:
    check_source(source("a.jsonl"), ("CC0-1.0",))
    with pytest.raises(UserError, match=r"CC0-1\.0"):
        check_source(source("a.jsonl"), ("CC-BY-4.0",))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", b"")
    write(tmp_path / "a.jsonl", b"")
    assert [p.name for p in find_files(source("{data_root}/*.jsonl"), str(tmp_path))] == ["a.jsonl", "b.jsonl"]
    for pattern, root in (("{data_root}/*.jsonl", ""), (str(tmp_path / "c*.jsonl"), "")):
        with pytest.raises(UserError):
            find_files(source(pattern), root)


@pytest.mark.parametrize("changes", [{"encoding": "klingon"}, {"format": "docx"}, {"unit": "page", "format": "text"}])
def test_wrong_settings(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(UserError):
        read(source(write(tmp_path / "a.jsonl", jsonl(ROWS)), **changes))


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no reader for a\.docx"):
        read(source(write(tmp_path / "a.docx", b"x")))
