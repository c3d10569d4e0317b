"""The root of report's evaluation page: joins results, the paired comparison and the page; HTML and Markdown."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from t_elaine import paths
from t_elaine.errors import UserError
from t_elaine.evaluation import compared, comparing
from t_elaine.reporting import entrants, evaluation_page, evaluation_text
from t_elaine.reporting.entrants import Entrant


def compare(given: Sequence[str], suites_dir: str, to: str, console: Console) -> list[str]:
    """Set two models beside each other; returns the files written.

    Args:
        given: two results or run folders, whose children are compared; or one, whose child is compared with its parent.
        suites_dir: folder of the published exams, for the questions' texts.
        to: page to write, ending in .html; "" takes a name beside the first result.
        console: gets the table.

    Raises:
        UserError: more than two, or nothing to compare with.
    """
    if len(given) not in (1, 2):
        raise UserError(f"{len(given)} results are given to compare", "report.compare", "give two: --compare=A,B")
    models = entrants.entrants(given, ("child",)) if len(given) == 2 else entrants.entrants(given)
    if len(models) < 2:
        raise UserError("there is no second model to compare with", given[-1], "give two results: --compare=A,B")
    found = paired(models)
    if not found["rows"] and not all(model.result["bits_per_byte"] for model in models[:2]):
        reasons = "; ".join(f"{row['suite']}, {row['protocol']}: {row['why']}" for row in found["left_out"][:3])
        what = f"the two have no score that can be compared ({reasons or 'neither was asked an exam'})"
        raise UserError(what, ", ".join(given), "ask both the same exams under the same protocols")
    compared.show(found, (models[0].name, models[1].name), console)
    path = to or f"{models[0].path.removesuffix('.json')}-against-{_stem(models[1])}.html"
    return write(models[:2], found, path, suites_dir)


def _stem(model: Entrant) -> str:
    parts = model.path.removesuffix(".json").split("/")
    return "-".join(part for part in parts[-3:] if part not in ("evaluation", ".", "..", ""))


def write_page(results: Sequence[str], suites_dir: str, to: str) -> list[str]:
    """The page of one or more results; the first two models are compared. Returns the files written.

    Args:
        results: files of `evaluate`, or run folders.
        suites_dir, to: see `compare`; "" takes the first result's name.
    """
    models = entrants.entrants(results)
    path = to or f"{models[0].path.removesuffix('.json')}.html"
    return write(models, paired(models) if len(models) > 1 else None, path, suites_dir)


def paired(models: Sequence[Entrant]) -> dict[str, list[dict[str, Any]]]:
    """The first model against the second, item by item."""
    first, second = (comparing.scores(model.result, model.side) for model in models[:2])
    identity = models[0].result["identity"]
    return comparing.compare(first, second, resamples=int(identity["resamples"]), seed=int(identity["seed"]))


def write(models: Sequence[Entrant], found: Any, path: str, suites_dir: str) -> list[str]:
    """The page at `path` and its Markdown beside it."""
    if not path.endswith(".html"):
        raise UserError(f"the page would be called {path}", "report.to", "give a name that ends in .html")
    folder = path.rpartition("/")[0] or "."
    shown = evaluation_page.content(models, found, folder, suites_dir)
    text = f"{path.removesuffix('.html')}.md"
    paths.write_text(path, evaluation_page.render(shown))
    paths.write_text(text, evaluation_text.render(shown))
    return [path, text]
