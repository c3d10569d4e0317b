"""The root of `export --quantize`: GGUF files beside a proven export's weights, and what each of them costs.

Joins the file (hf/gguf_*), the vocabulary (data/gguf_vocabulary) and the judging (evaluation/quantised). The caller
gives the folder its name when all is well, so a file that fails is never seen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from t_elaine import __version__
from t_elaine.data.gguf_vocabulary import gguf_vocabulary
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.evaluation import engines
from t_elaine.evaluation import quantised as judging
from t_elaine.evaluation.quantised import Measured, QuantisedCheck, Texts
from t_elaine.hf import gguf_layout, gguf_reading, gguf_writing, importing, tensors
from t_elaine.hf.importing import Source
from t_elaine.hf.prompts import PROMPTS
from t_elaine.model.config import LlamaConfig
from t_elaine.paths import file_sha256


def check_names(quantize: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once; refused before any work where one is unknown or the package gguf is missing."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in quantize if name.strip()))
    for name in names:
        gguf_layout.kind_of(name)
    if names:
        gguf_writing.library()
    return names


def needed_bytes(config: LlamaConfig, names: Sequence[str]) -> int:
    """Bytes on the disk of all files; refuses a model that GGUF cannot hold."""
    return sum(gguf_writing.planned_bytes(gguf_layout.plan(config, name)) for name in names)


def file_name(name: str) -> str:
    """Of the file in the exported folder."""
    return f"model-{name}.gguf"


def write_all(
    folder: Path,
    names: Sequence[str],
    vocabulary: Vocabulary,
    before: Sequence[int],
    title: str,
    check: QuantisedCheck,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the files into an exported folder, prove and judge each.

    Args:
        folder: the export, its weights and small files written.
        names: formats.
        vocabulary: the model's.
        before: ids that stand before a text in the training rows.
        title: the model's name.
        check: what it is judged on.
        say: takes lines of progress.

    Returns:
        {"gguf": entry by format}, for proof.json.

    Raises:
        UserError: a file whose values are farther from their source than its format allows, a vocabulary or a shape
            that GGUF cannot hold.
    """
    config, infos = importing.read_config(folder), tensors.open_tensors(folder)
    about = {"general.name": title, "general.quantized_by": f"T-ELAINE {__version__}"}
    fields = about | gguf_vocabulary(folder, config.vocab_size, before)
    texts = judging.gather(check, vocabulary, before, PROMPTS)
    plain = _measured(importing.hf_source(infos, config), config, vocabulary, texts, check)
    found = {}
    for name in names:
        file = folder / file_name(name)
        gguf_writing.write(folder, file, name, fields)
        compared = gguf_reading.compare(file, folder, name)
        if compared["differing"] or not compared["config_read_back_equal"]:
            raise _unsound(name, compared)
        source = gguf_reading.open_gguf(file).source
        judged = judging.compare(_measured(source, config, vocabulary, texts, check), plain, texts, check)
        entry = {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file), "tensors": compared}
        found[name] = entry | judged
        say(line(name, found[name]))
    return {"gguf": found}


def _measured(
    source: Source, config: LlamaConfig, vocabulary: Vocabulary, texts: Texts, check: QuantisedCheck
) -> Measured:
    def load(mesh: Any) -> Any:
        layouts = jax.tree.map(lambda target: target.sharding, engines.parameter_targets(config, mesh))
        return importing.load_params(source, config, layouts)

    return judging.measure(load, config, vocabulary, texts, check)


def _unsound(name: str, compared: dict[str, Any]) -> UserError:
    told = "its fields give another shape"
    if compared["differing"]:
        told = f"{len(compared['differing'])} tensors are farther from the weights than {name} allows, "
        told += f"first {compared['differing'][0]}"
    mend = (
        "values beyond 65504 in magnitude fit no step of 16 bits: give f32 or bf16; otherwise this is a fault of ours"
    )
    return UserError(f"the {name} file is not the model: {told}; nothing was left behind", "--quantize", mend)


def line(name: str, entry: dict[str, Any]) -> str:
    """A format in one line for a terminal."""
    rows = [row for row in entry["bits_per_byte"] if row["level"] == "language"]
    bits = ", ".join(f"{row['language']} {row['difference']['value']:+.4f}" for row in rows if "difference" in row)
    asked = sum(exam["questions"] for exam in entry["exams"])
    changed = sum(exam["answers_changed"] for exam in entry["exams"])
    tokens, same = (sum(f(one) for one in entry["greedy"]) for f in (_length, _same))
    return (
        f"{name}: {entry['bytes'] / 1e6:.1f} MB; bits per byte against the float export: {bits}; {changed} of {asked} "
        f"exam answers are others; greedy text the same for {same} of {tokens} tokens"
    )


def _length(one: dict[str, Any]) -> int:
    return len(one["ids"])


def _same(one: dict[str, Any]) -> int:
    return int(one["as_float"])
