"""From files as their publishers have them to documents: one rule a text file of data_tasks/public_corpora.py.

A rule reads published files through `Published` and yields documents in a fixed order; which documents and which
order, where no rule says so, stand in public_sources.json. Nothing is cleaned beyond what a format demands (tags,
line ends, mark-up of a table): that is the work of `prepare`. Fetches nothing; scripts/fetch_texts.py does.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PUBMEDQA, MEDQUAD, JAQUAD = "pubmedqa/pubmedqa", "abachaa/MedQuAD", "SkelterLabsInc/JaQuAD"
JMED, CHINAXIV = "sociocom/JMED-LLM", "DreamBlooms/ChinaXiv-201601-to-202209"
EXAMPLES, SHERLOCK = "pytorch/examples", "GITenberg/The-Adventures-of-Sherlock-Holmes_1661"
WIKINEWS, AOZORA = "tm4roon/jawikinews-headline-dataset", "aozorahack/aozorabunko_text"
CMRC, DRCD = "ymcui/cmrc2018", "DRCKnowledgeTeam/DRCD"


class Document(NamedTuple):
    """One document: a name that is unique in its file, where it came from, one of the categories, the text."""

    id: str
    source: str
    category: str
    text: str


class Published:
    """Published files on disk: FOLDER/<owner>/<name>/<path>. `table` is public_sources.json."""

    def __init__(self, folder: Path, table: dict[str, Any]) -> None:
        self.folder, self.table = folder, table

    def paths(self, repository: str, under: str = "") -> list[str]:
        """Paths of the repository's files that are used, in the table's order."""
        return [path for path in self.table["repositories"][repository]["files"] if path.startswith(under)]

    def read(self, repository: str, path: str) -> bytes:
        return (self.folder / repository / path).read_bytes()

    def chosen(self, name: str) -> list[str]:
        """Names of documents in the order in which they are taken."""
        return self.table["chosen"][name]


def pubmedqa_abstracts(published: Published) -> Iterator[Document]:
    """The expert-labelled abstracts that are not in the published test set, sections joined."""
    held = json.loads(published.read(PUBMEDQA, "data/test_ground_truth.json"))
    for number, row in json.loads(published.read(PUBMEDQA, "data/ori_pqal.json")).items():
        if number not in held:
            lines = [f"{label}: {text}" for label, text in zip(row["LABELS"], row["CONTEXTS"], strict=True)]
            text = "\n".join([*lines, f"CONCLUSION: {row['LONG_ANSWER']}"])
            yield Document(f"pmid-{number}", PUBMEDQA, "PubMed abstract", text)


def _lines(text: str | None) -> str:
    """Runs of blanks as one, no empty lines."""
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in (text or "").split("\n"))
    return "\n".join(line for line in lines if line)


def medquad_nih_web(published: Published) -> Iterator[Document]:
    """One page a document: its subject, then question and answer pairs; pairs without an answer are left out."""
    for path in published.paths(MEDQUAD):
        page = ElementTree.fromstring(published.read(MEDQUAD, path))
        pairs = [
            (pair.findtext("Question", "").strip(), _lines(pair.findtext("Answer"))) for pair in page.iter("QAPair")
        ]
        text = "\n\n".join([page.findtext("Focus", "").strip(), *(f"{q}\n{a}" for q, a in pairs if a)])
        yield Document(f"medquad-{path.removesuffix('.xml').replace('/', '-')}", MEDQUAD, "web text", text)


def _jaquad(published: Published, name: str, category: str) -> Iterator[Document]:
    """Wikipedia articles by name: the title, then the paragraphs."""
    articles: dict[str, list[str]] = {}
    for path in published.paths(JAQUAD):
        for article in json.loads(published.read(JAQUAD, path))["data"]:
            paragraphs = articles.setdefault(article["title"], [article["title"]])
            paragraphs += [paragraph["context"] for paragraph in article["paragraphs"]]
    names = {f"jaquad-{hashlib.md5(title.encode()).hexdigest()[:10]}": title for title in articles}
    for one in published.chosen(name):
        yield Document(one, JAQUAD, category, "\n\n".join(articles[names[one]]))


def wikipedia_medical_jaquad(published: Published) -> Iterator[Document]:
    """Articles of Wikipedia with many medical words."""
    return _jaquad(published, "wikipedia_medical_jaquad", "web text")


def case_and_radiology_reports(published: Published) -> Iterator[Document]:
    """The reports that the tasks' questions quote, each once."""
    seen: set[str] = set()
    for path in published.paths(JMED):
        case = path.endswith(("CRADE.csv", "CRNER.csv"))
        kind, category = ("case", "scientific paper") if case else ("radiology", "web text")
        table = csv.DictReader(io.StringIO(published.read(JMED, path).decode("utf-8-sig"), newline=""))
        for row in table:
            found = re.search(r"？\s*「(.*)」\s*$", row["question"], re.DOTALL)
            text = found.group(1).replace("\r\n", "\n").strip() if found else ""
            if text and text not in seen:
                seen.add(text)
                yield Document(f"jmed-{kind}-{len(seen) - 1:04d}", JMED, category, text)


def chinaxiv_medical_papers(published: Published) -> Iterator[Document]:
    """Papers as Markdown, as they are."""
    for path in published.paths(CHINAXIV):
        name = Path(path).stem
        yield Document(name, CHINAXIV, "scientific paper", published.read(CHINAXIV, path).decode("utf-8"))


def general_en(published: Published) -> Iterator[Document]:
    """WikiText-2's validation articles, then the twelve adventures of Sherlock Holmes, the last with the file's end."""
    text = published.read(EXAMPLES, "word_language_model/data/wikitext-2/valid.txt").decode("utf-8")
    articles = re.split(r"(?m)(?=^ = [^=].*[^=] = $)", text)[1:]
    for number, article in enumerate(articles):
        yield Document(f"wikitext2-valid-{number:03d}", EXAMPLES, "general", article.removesuffix("\n"))
    book = published.read(SHERLOCK, "1661.txt").decode("utf-8").replace("\r\n", "\n")
    heads = re.finditer(r"(?m)^(?:ADVENTURE )?(?:[IVX]+)\. (?:THE ADVENTURE OF |A |THE )[A-Z ,'-]+$", book)
    starts = [head.start() for head in heads]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(book)], strict=True), 1):
        yield Document(f"gutenberg-1661-{number:02d}", SHERLOCK, "general", book[start:stop].strip())


def general_ja(published: Published) -> Iterator[Document]:
    """Wikipedia articles, news whose words are set apart, and literature with its mark-up."""
    yield from _jaquad(published, "general_ja/jaquad", "general")
    table = gzip.decompress(published.read(WIKINEWS, "full-articles/origin.tsv.gz")).decode("utf-8")
    cells = (line.rstrip("\r").split("\t") for line in table.split("\n")[1:] if line)
    articles = {number: f"{headline}\n{article}" for number, article, headline in cells}
    for one in published.chosen("general_ja/wikinews"):
        yield Document(f"wikinews-ja-{one}", WIKINEWS, "general", articles[one])
    for path in published.paths(AOZORA):
        text = published.read(AOZORA, path).decode("cp932").replace("\r\n", "\n")
        yield Document(f"aozora-{Path(path).stem}", AOZORA, "general", text)


def general_zh(published: Published) -> Iterator[Document]:
    """Paragraphs of Wikipedia in simplified and, with titles, in traditional characters."""
    texts: dict[str, str] = {}
    for path in published.paths(CMRC):
        for paragraph in json.loads(published.read(CMRC, path)):
            texts[paragraph["context_id"]] = paragraph["context_text"]
    for one in published.chosen("general_zh/cmrc"):
        yield Document(f"cmrc-{one}", CMRC, "general", texts[one])
    for article in json.loads(published.read(DRCD, "DRCD_dev.json"))["data"]:
        text = "\n\n".join([article["title"], *(paragraph["context"] for paragraph in article["paragraphs"])])
        yield Document(f"drcd-{article['id']}", DRCD, "general", text)


RULES: dict[str, Callable[[Published], Iterator[Document]]] = {
    "corpora/en/pubmedqa_abstracts.jsonl.gz": pubmedqa_abstracts,
    "corpora/en/medquad_nih_web.jsonl.gz": medquad_nih_web,
    "corpora/ja/wikipedia_medical_jaquad.jsonl.gz": wikipedia_medical_jaquad,
    "corpora/ja/case_and_radiology_reports.jsonl.gz": case_and_radiology_reports,
    "corpora/zh/chinaxiv_medical_papers.jsonl.gz": chinaxiv_medical_papers,
    "general_replay/en.jsonl.gz": general_en,
    "general_replay/ja.jsonl.gz": general_ja,
    "general_replay/zh.jsonl.gz": general_zh,
}


def digest(documents: list[Document]) -> str:
    """SHA-256 of ids, categories and texts in order."""
    lines = (json.dumps([d.id, d.category, d.text], ensure_ascii=False) + "\n" for d in documents)
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def write(documents: list[Document], language: str, target: Path) -> None:
    """JSON Lines, gzipped; the same documents give the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = ({**d._asdict(), "lang": language} for d in documents)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part = target.with_name(target.name + ".part")
    part.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    part.replace(target)
