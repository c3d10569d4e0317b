"""A file of lines that grows while work goes on, for work that may be killed and goes on later. It reads no meaning."""

from collections.abc import Callable
from typing import Any

from t_elaine import paths

# Lines between two uploads: an object store cannot append.
UPLOADED = 64


def whole_lines(path: str) -> list[str]:
    """The lines of a file, without the last if a kill has cut it; none where there is no file."""
    if not paths.exists(path):
        return []
    with paths.open_file(path) as handle:
        whole, newline, _ = bytes(handle.read()).rpartition(b"\n")
    return whole.decode().split("\n") if newline else []


class Keeper:
    """Adds lines to a file, so that each is safe at once on a disk, and at the latest at the end in an object store.

    The file is touched at the first line.
    """

    def __init__(self, path: str) -> None:
        self.path, self.waiting = path, 0
        self.lines = whole_lines(path)
        self.handle: Any = None

    def __enter__(self) -> Callable[[str], None]:
        return self._keep

    def _keep(self, line: str) -> None:
        if not paths.is_remote(self.path):
            self.handle = self.handle or self._open()
            self.handle.write(line.encode())
            self.handle.flush()
            return
        self.lines.append(line.rstrip("\n"))
        self.waiting += 1
        if self.waiting >= UPLOADED:
            self._upload()

    def _open(self) -> Any:
        paths.make_folder(self.path.rpartition("/")[0] or ".")
        paths.write_text(self.path, self._text())  # without the line that a kill has cut
        return paths.open_file(self.path, "ab")

    def _upload(self) -> None:
        self.waiting = 0
        paths.write_text(self.path, self._text())

    def _text(self) -> str:
        return "".join(line + "\n" for line in self.lines)

    def __exit__(self, *_: object) -> None:
        if self.handle:
            self.handle.close()
        elif self.waiting:
            self._upload()
