"""The published exams by name: where a file lies in a folder of them, whether it is the published one, how to get it.

The list is data_tasks/benchmarks.json. `python -m t_elaine.evaluation.benchmarks FOLDER [NAME…]` fetches and verifies;
with --from=CLONE it takes the files of a clone of their repository.
"""

import difflib
import functools
import hashlib
import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation import igakuqa

# Exams that no file is published of: what they are made of, and how.
MADE = {"en/IgakuQA": (igakuqa.files, igakuqa.english)}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published file, or one that is made of published ones.

    Attributes:
        name: language/exam.
        items, bytes, sha256: of the file.
        url: of the file; of one that is made, with {part} for the files that it is made of.
        subjects: by a table's name of it, {"subject": name, "lines": [first, last]} of the file.
    """

    name: str
    file: str
    items: int
    bytes: int
    sha256: str
    licence: str
    repository: str
    commit: str
    url: str
    subjects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def language(self) -> str:
        return self.name.partition("/")[0]

    @property
    def path(self) -> str:
        """Inside a folder of exams."""
        return f"{self.name}/{self.file}"


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """All that are known, by name."""
    found = json.loads((paths.shipped("data_tasks") / "benchmarks.json").read_text(encoding="utf-8"))
    shared = {"repository": found["repository"], "commit": found["commit"], "url": found["files"]}
    made = {}
    for name, entry in found["suites"].items():
        one = {**shared, **entry, "name": name}
        made[name] = Benchmark(**one | {"url": one["url"].format(**one, part="{part}")})
    return made


def named(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        UserError: there is none.
    """
    known = benchmarks()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.4)
        mend = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"no benchmark is called {name!r}", "exams", f"{mend}known are {', '.join(known)}")
    return known[name]


def published(sha256: str) -> Benchmark | None:
    """The benchmark whose file has this digest."""
    return next((one for one in benchmarks().values() if one.sha256 == sha256), None)


def find(benchmark: Benchmark, suites_dir: str) -> Path:
    """Its file, whole and as published.

    Raises:
        UserError: it is not there, or it is another file; with the command that fetches it.
    """
    if not suites_dir:
        mend = f"give --suites_dir=FOLDER, where {benchmark.path} lies; to fetch it: {command(benchmark, 'FOLDER')}"
        raise UserError(f"no folder of exams is given for {benchmark.name}", "suites_dir", mend)
    path = Path(suites_dir) / benchmark.path
    if not path.is_file():
        raise UserError(f"{benchmark.name} is not there", str(path), origin(benchmark, suites_dir))
    check(benchmark, path.read_bytes(), str(path))
    return path


def check(benchmark: Benchmark, content: bytes, where: str) -> None:
    """Raise UserError where the content is not the published file's."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == benchmark.sha256:
        return
    what = f"this is not {benchmark.name} as published: {len(content):,} bytes with sha256 {digest[:16]}…, "
    what += f"published are {benchmark.bytes:,} with {benchmark.sha256[:16]}…"
    if len(content) < benchmark.bytes:
        what += " (is it cut off?)"
    mend = f"{origin(benchmark, 'FOLDER')}; a version of your own is given as a file: {benchmark.language}:FILE"
    raise UserError(what, where, mend)


def origin(benchmark: Benchmark, folder: str) -> str:
    """Where a file comes from, and the command that fetches and verifies it."""
    told = f"it comes from {benchmark.repository} at {benchmark.commit} (licence: {benchmark.licence})"
    return f"{told}; fetch and verify it with: {command(benchmark, folder)}"


def command(benchmark: Benchmark, folder: str) -> str:
    """What to type."""
    return f"python -m t_elaine.evaluation.benchmarks {folder} {benchmark.name}"


def read_url(url: str) -> bytes:
    """What lies at a URL."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def fetch(folder: str, names: Sequence[str] = (), read: Callable[[str], bytes] = read_url) -> list[Path]:
    """Fetch benchmarks, all where no name is given; what is there already and as published stays.

    Raises:
        UserError: an unknown name, no answer, or an answer that is not the published file.
    """
    made = []
    for benchmark in [named(name) for name in names] or list(benchmarks().values()):
        path = Path(folder) / benchmark.path
        if not (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == benchmark.sha256):
            content = _content(benchmark, read)
            check(benchmark, content, benchmark.url)
            paths.make_folder(path.parent)
            paths.write_text(path, content.decode("utf-8"))
        made.append(path)
    return made


def _content(benchmark: Benchmark, read: Callable[[str], bytes]) -> bytes:
    parts, make = MADE.get(benchmark.name, (lambda: [""], bytes))
    try:
        return make(b"".join(read(benchmark.url.replace("{part}", part)) for part in parts()))
    except OSError as error:
        raise UserError(f"it cannot be fetched: {error}", benchmark.url, "check the network") from error
    except (ValueError, KeyError) as error:
        mend = f"the files of {benchmark.repository} at {benchmark.commit} are needed"
        raise UserError(f"it cannot be made of what is there: {error!r}", benchmark.url, mend) from error


def read_clone(folder: str) -> Callable[[str], bytes]:
    """Reads, instead of a URL, the file in a clone of the repository that the URL names."""
    return lambda url: (Path(folder) / url.split("/", 6)[6]).read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch into the folder given, and say of each file what it is."""
    given = list(sys.argv[1:] if argv is None else argv)
    clones = [one.removeprefix("--from=") for one in given if one.startswith("--from=")]
    given = [one for one in given if not one.startswith("--from=")]
    if not given or given[0].startswith("-"):
        usage = "usage: python -m t_elaine.evaluation.benchmarks FOLDER [NAME …] [--from=CLONE]"
        print(f"{usage}\nnames: {', '.join(benchmarks())}")
        return 0 if given else 2
    try:
        for path in fetch(given[0], given[1:], read_clone(clones[0]) if clones else read_url):
            print(f"{path}: as published")
    except UserError as error:
        print(error.text(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
