"""The Hugging Face hub: fetch a model's files, push an exported folder. Through huggingface_hub, which keeps the token.

Small files come first and can be judged before gigabytes follow. Files land in huggingface_hub's own cache: a broken
connection goes on where it broke, a file gets its name when it is whole, and whole files are not fetched again.
`HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` mean what they always mean.
Knows nothing of models beyond which files belong to one.
"""

import fnmatch
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t_elaine.errors import NO_ROOM, UserError
from t_elaine.hf.tensors import INDEX, SINGLE, legacy_weights

SMALL_FILES = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
RETRIED = (408, 429, 500, 502, 503, 504)
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a busy hub is tried again: after `first_wait`·2ⁿ seconds, or as long as it asks for."""

    attempts: int = 6
    first_wait: float = 2.0
    longest_wait: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A fetched model: the folder, the name on the hub and the commit that the revision stood for."""

    folder: Path
    name: str
    commit: str


def is_name(text: str) -> bool:
    """Whether the text can be owner/name on the hub."""
    return NAME.fullmatch(text) is not None


def fetch(
    name: str,
    revision: str | None = None,
    judge: Callable[[Path], None] = lambda folder: None,
    patience: Patience | None = None,
    say: Callable[[str], None] = print,
) -> Snapshot:
    """Fetch a model's safetensors and its small files.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None is the default branch. All files come from the one commit it stands for.
        judge: called with the folder when the small files are there; what it raises ends the fetch before the weights.
        patience: how often to try again.
        say: takes one line of progress a weights file.

    Raises:
        UserError: no such model or revision, a gated one, no safetensors, a hub that stays busy or out of reach, a file
            whose digest is not the hub's, a full disk.
    """
    from huggingface_hub import HfApi, hf_hub_download

    trying = _Trying(name, revision, patience or Patience())
    say(f"{name}: no folder on this machine, so it is looked for on the hub")
    info = trying.call(lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
    files = {file.rfilename: file for file in info.siblings or []}
    weights = [file for file in (SINGLE, INDEX) if file in files][:1]
    if not weights:
        raise _no_safetensors(name, sorted(files))

    def get(file: str) -> Path:
        path = Path(trying.call(lambda: hf_hub_download(name, file, revision=info.sha)))
        _check_digest(path, file, files[file], name)
        return path

    small = [f for f in files if "/" not in f and any(fnmatch.fnmatch(f, p) for p in SMALL_FILES)]
    if "config.json" not in files:
        raise UserError("the repository has no config.json", f"{name} on the hub", "name a whole model")
    paths = {file: get(file) for file in sorted({*small, *(w for w in weights if w == INDEX)})}
    folder = paths["config.json"].parent
    judge(folder)
    if weights == [INDEX]:
        weights = _shards(paths[INDEX], name)
    for number, file in enumerate(weights, 1):
        if file not in files:
            raise UserError(
                f"the index names {file}, which the repository lacks", f"{name} on the hub", "name another revision"
            )
        say(f"fetching {name} {file} ({number} of {len(weights)}, {(files[file].size or 0) / 1e9:.2f} GB)")
        get(file)
    return Snapshot(folder=folder, name=name, commit=str(info.sha))


def _shards(index: Path, name: str) -> list[str]:
    try:
        return sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(
            f"{INDEX} cannot be read ({problem!r})", f"{name} on the hub", "name another revision"
        ) from problem


def _no_safetensors(name: str, files: list[str]) -> UserError:
    pickles = legacy_weights(files)
    what = f"only legacy pickle weights ({pickles[0]})" if pickles else f"no {SINGLE} and no {INDEX}"
    return UserError(f"the repository has {what}", f"{name} on the hub", "name a model or revision with safetensors")


def _check_digest(path: Path, file: str, entry: Any, name: str) -> None:
    """Compare a file with the hub's record: sha256 of large ones, git's own digest of small ones."""
    kind, expected = ("sha256", entry.lfs.sha256) if entry.lfs else ("sha1", entry.blob_id)
    if expected is None:
        return
    digest = hashlib.new(kind, usedforsecurity=False)
    if kind == "sha1":
        digest.update(f"blob {path.stat().st_size}\0".encode())  # git counts its header in
    with open(path, "rb") as source:
        while piece := source.read(1 << 22):
            digest.update(piece)
    if digest.hexdigest() != expected:
        # The cached blob would be taken for whole by the next run.
        path.resolve().unlink()
        raise UserError(
            f"{file} arrived with {kind} {digest.hexdigest()}, the hub says {expected}",
            f"{name} on the hub",
            "run the command again; the bad file was removed",
        )


def push(
    folder: Path, name: str, public: bool = False, message: str = "Add model", patience: Patience | None = None
) -> str:
    """Upload a folder as owner/name and return its address. A new repository is private unless `public`.

    All files come in one commit, which also removes weights of an earlier push that have other names.

    Raises:
        UserError: no right to write there, a repository that is public although `public` is false, a hub that stays
            busy or out of reach.
    """
    from huggingface_hub import HfApi

    if not is_name(name):
        raise UserError(f"{name!r} is not owner/name", "--push", "for example --push=my-lab/llama-3.1-8b-med")
    api = HfApi()
    trying = _Trying(name, None, patience or Patience())
    trying.call(lambda: api.create_repo(name, private=not public, exist_ok=True))
    if not public and not trying.call(lambda: api.model_info(name)).private:
        raise UserError(
            "the repository exists and is public",
            f"{name} on the hub",
            "make it private there, or give --public to mean it",
        )
    stale = [
        "*.safetensors",
        "*.gguf",
        INDEX,
    ]  # else readers would take an older model.safetensors before the new shards
    trying.call(
        lambda: api.upload_folder(folder_path=folder, repo_id=name, commit_message=message, delete_patterns=stale)
    )
    return f"{api.endpoint}/{name}"


class _Trying:
    """Calls the hub, waits where it is busy, and turns what it refuses into words."""

    def __init__(self, name: str, revision: str | None, patience: Patience) -> None:
        self.name, self.revision, self.patience = name, revision, patience

    def call(self, action: Callable[[], Any]) -> Any:
        from huggingface_hub import errors

        transport = errors.HfHubHTTPError.__mro__[1]  # the HTTP client's own base class, whichever client it is
        for attempt in range(self.patience.attempts):
            try:
                return action()
            except errors.HFValidationError as problem:
                raise UserError(str(problem), self.name, "give owner/name as the hub writes it") from problem
            except (OSError, transport, RuntimeError, json.JSONDecodeError) as problem:  # type: ignore[misc]
                # Uploads wrap what went wrong on the way in a RuntimeError; any other is a bug of ours.
                if isinstance(problem, RuntimeError) and not isinstance(problem.__cause__, (OSError, transport)):
                    raise
                response = _response(problem)
                last = attempt + 1 == self.patience.attempts
                if last or not _passing(problem, response):
                    raise self._refusal(problem, response) from problem
                time.sleep(_wait(self.patience, attempt, response))
        raise AssertionError("attempts is at least 1")

    def _refusal(self, problem: BaseException, response: Any) -> UserError:
        where = f"{self.name}{f' at {self.revision}' if self.revision else ''} on {_endpoint()}"
        status = getattr(response, "status_code", None)
        code = response.headers.get("X-Error-Code", "") if response is not None else ""
        if code == "GatedRepo":
            mend = "ask for access on the model's page, then `hf auth login` or set HF_TOKEN"
            return UserError("the repository is gated: its owner must let you in", where, mend)
        if _offline(problem):
            return UserError("huggingface_hub is told to stay offline", where, "unset HF_HUB_OFFLINE")
        if code == "RevisionNotFound":
            return UserError(
                f"there is no revision {self.revision!r}", where, "give a branch, tag or commit of this model"
            )
        if code == "EntryNotFound":
            return UserError("a file that the hub lists is not there", where, "name another revision")
        if status == 401 and "credential" in response.headers.get("X-Error-Message", "").lower():
            return UserError(
                "the hub does not know your token", where, "`hf auth login`, or set HF_TOKEN to a valid one"
            )
        if status in (401, 404):
            mend = (
                "check the name; for a private one `hf auth login` or set HF_TOKEN; a folder must exist on this machine"
            )
            return UserError("there is no such repository, or it is private and you are not logged in", where, mend)
        if status == 403:
            return UserError("the hub forbids this", where, "use a token with the right to it (`hf auth login`)")
        if status == 429:
            mend = "wait some minutes and run the command again: what was fetched is kept"
            return UserError(f"the hub is limiting requests (429), {self.patience.attempts} attempts", where, mend)
        if getattr(problem, "errno", None) in NO_ROOM:
            return UserError("the disk is full", where, "free space, or point HF_HOME to a larger disk")
        mend = "check the network and run the command again: what was fetched is kept"
        reason = f"status {status}" if status else str(problem).split("\n")[0]
        return UserError(f"the transfer failed ({reason})", where, mend)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _response(problem: BaseException | None) -> Any:
    """The HTTP response behind an error: huggingface_hub wraps some in a file-not-found error."""
    seen = 0
    while problem is not None and seen < 8:
        response = getattr(problem, "response", None)
        if response is not None:
            return response
        problem, seen = problem.__cause__ or problem.__context__, seen + 1
    return None


def _passing(problem: BaseException, response: Any) -> bool:
    """Whether trying again can help: a busy hub or a broken connection, not a refusal or this machine's own fault."""
    if _offline(problem):
        return False
    if response is not None:
        return response.status_code in RETRIED
    return getattr(problem, "errno", None) in (None, 104, 110, 111, 32)


def _offline(problem: BaseException) -> bool:
    from huggingface_hub import errors

    return any(isinstance(one, errors.OfflineModeIsEnabled) for one in (problem, problem.__cause__))


def _wait(patience: Patience, attempt: int, response: Any) -> float:
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    seconds = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else patience.first_wait * 2**attempt
    return min(seconds, patience.longest_wait)
