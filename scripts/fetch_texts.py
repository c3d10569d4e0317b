"""Fetch the public texts of the real run, each file from its publisher's repository at a fixed commit.

    python -m scripts.fetch_texts --to=texts [--mirror=https://raw.githubusercontent.com]

Every file is checked against the size and SHA-256 that public_sources.json names; what broke off goes on where it
stopped, at once or when the command is started again; what is there is not fetched again. Then the documents are put
where data_tasks/public_corpora.py expects them, by the rules of public_texts.py, and their digests are checked too.
About 53 MB. The licences are the publishers'; nothing of these texts is part of this project.
"""

import argparse
import concurrent.futures
import hashlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import public_texts
from t_elaine.errors import UserError

TABLE = Path(__file__).with_name("public_sources.json")
SERVER = "https://raw.githubusercontent.com"
AGAIN = "start the command again: it goes on where it stopped"
# Answers that another try may change.
PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file: where it is, where it goes, its size in bytes and its digest."""

    url: str
    target: Path
    bytes: int
    sha256: str


def wanted(table: dict[str, Any], folder: Path, server: str = SERVER) -> Iterator[Wanted]:
    """The files of a table of sources; `folder` gets <owner>/<name>/<path>."""
    for repository, entry in table["repositories"].items():
        for path, (size, digest) in entry["files"].items():
            url = f"{server.rstrip('/')}/{repository}/{entry['commit']}/{urllib.parse.quote(path)}"
            yield Wanted(url=url, target=folder / repository / path, bytes=size, sha256=digest)


def is_there(one: Wanted) -> bool:
    """True where the file is complete and has its digest."""
    path = one.target
    return path.is_file() and path.stat().st_size == one.bytes and sha256(path) == one.sha256


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def receive(one: Wanted, part: Path, timeout: float) -> None:
    """Add to `part` what it lacks; a server that knows no ranges sends all of it again."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "t-elaine"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(one.url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        mode = "ab" if answer.status == http.HTTPStatus.PARTIAL_CONTENT else "wb"
        with open(part, mode) as handle:
            while block := answer.read(1 << 16):
                handle.write(block)


def fetch(one: Wanted, tries: int = 5, pause: float = 1.0, timeout: float = 30.0) -> bool:
    """Fetch a file unless it is there; returns whether it was fetched.

    Args:
        one: the file.
        tries: connections before it is given up.
        pause: seconds before the second try, doubled before each later one.
        timeout: seconds without a byte.

    Raises:
        UserError: no network; the server refuses; connections keep breaking off; the digest is another.
    """
    if is_there(one):
        return False
    one.target.parent.mkdir(parents=True, exist_ok=True)
    part = one.target.with_name(one.target.name + ".part")
    if part.is_file() and part.stat().st_size >= one.bytes:
        part.unlink()  # as long as the file or longer, yet not moved: nothing to go on from
    for attempt in range(tries):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        told = attempt_once(one, part, timeout)
        if part.is_file() and part.stat().st_size >= one.bytes:
            return accept(one, part)
    have = part.stat().st_size if part.is_file() else 0
    raise UserError(f"given up after {tries} tries with {have:,} of {one.bytes:,} bytes: {told}", one.url, AGAIN)


def attempt_once(one: Wanted, part: Path, timeout: float) -> str:
    """One connection; returns what went wrong with it, if it is of the kind that passes."""
    try:
        receive(one, part, timeout)
    except urllib.error.HTTPError as error:
        if error.code not in PASSING:
            mend = "see whether the repository is still public, or give a server that has it with --mirror"
            raise UserError(f"the server answered {error.code} {error.reason}", one.url, mend) from error
        return f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            return "no answer in time"
        host = urllib.parse.urlsplit(one.url).netloc
        mend = "connect this machine, or fetch elsewhere and copy the folder here; --mirror names another server"
        raise UserError(f"{host} cannot be reached: {error.reason}", one.url, mend) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return f"the connection broke off ({type(error).__name__})"
    return "the connection broke off"


def accept(one: Wanted, part: Path) -> bool:
    """Move a whole file to its place if it has its digest; one that has another is thrown away."""
    found, size = sha256(part), part.stat().st_size
    if found != one.sha256:
        part.unlink()
        what = f"the file is not the one that was named: {size:,} bytes, SHA-256 {found}, not {one.sha256}"
        raise UserError(what, one.url, f"see whether --mirror sends other files; otherwise {AGAIN}")
    part.replace(one.target)
    return True


def fetch_all(table: dict[str, Any], folder: Path, server: str = SERVER, workers: int = 8, **how: Any) -> int:
    """Fetch what is not there; returns how many files were fetched. `how`: as `fetch` takes it.

    Raises:
        UserError: the first that `fetch` raised; connections that are open are finished, no new ones begun.
    """
    files = list(wanted(table, folder, server))
    fetched = 0
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(fetch, one, **how) for one in files]
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                fetched += job.result()
                if done % 200 == 0 or done == len(jobs):
                    print(f"{done} of {len(jobs)} files", flush=True)
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return fetched


def make_texts(table: dict[str, Any], published: Path, folder: Path) -> None:
    """Put the documents where the tasks expect them.

    Raises:
        UserError: the documents are not those that the table names.
    """
    for name, expected in table["texts"].items():
        documents = list(public_texts.RULES[name](public_texts.Published(published, table)))
        if public_texts.digest(documents) != expected["sha256"]:
            what = f"{len(documents)} documents came out, and not the {expected['documents']} that are named"
            raise UserError(what, name, f"take {TABLE.name} and public_texts.py from the same version")
        language = next(part for part in Path(name).with_suffix("").with_suffix("").parts if len(part) == 2)
        public_texts.write(documents, language, folder / name)
        print(f"{folder / name}: {len(documents)} documents", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--to", type=Path, required=True, help="folder of texts; published/ in it keeps the sources")
    parser.add_argument("--mirror", default=SERVER, help="server with the same paths: OWNER/NAME/COMMIT/PATH")
    given = parser.parse_args(argv)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    try:
        fetched = fetch_all(table, given.to / "published", given.mirror)
        print(f"{fetched} files fetched, the others were there")
        make_texts(table, given.to / "published", given.to)
    except UserError as error:
        print(error.text(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
