"""The root of merge: joins the models' weights and their tokenizers, as `assembly` does for train."""

from collections.abc import Sequence

from t_elaine.checkpoints import reading
from t_elaine.data import same_ids
from t_elaine.data.vocabulary import load_vocabulary, save_vocabulary
from t_elaine.errors import UserError
from t_elaine.hf import merge_inputs, side_files
from t_elaine.hf.merge_inputs import Input
from t_elaine.hf.merge_methods import Merging
from t_elaine.hf.merging import Merge
from t_elaine.hf.prompts import PROMPTS
from t_elaine.hf.run_import import ImportedVocabulary


def open_models(models: Sequence[str], base: str, carrier: str, how: Merging) -> Merge:
    """Open and check everything that will be merged; nothing is written.

    Args:
        models: paths, in the order of their weights.
        base: path of the base, "" for none.
        carrier: whose small files the result has, spelt as above; "" takes the base, or the first model.
        how: settled.

    Raises:
        UserError: a model that is not there, is damaged, is given twice or is not of the others' shape.
    """
    given = (*([base] if base else []), *models)
    if carrier and carrier not in given:
        raise UserError(f"{carrier} is not among the models", "--carrier", f"give one of {', '.join(given)}")
    opened = {path: merge_inputs.open_input(path) for path in dict.fromkeys(given)}
    merge_inputs.check_alike([opened[path] for path in given])
    return Merge(
        base=opened.get(base),
        models=tuple(opened[path] for path in models),
        carrier=opened[carrier or given[0]],
        how=how,
    )


def learnt_templates(what: Merge) -> list[str]:
    """Names of the chat templates that the models' runs learnt conversations by, which a merge leaves behind."""
    runs = [reading.resolve(one.path)[0] for one in what.inputs if one.facts.get("kind") == "run"]
    records = [record for run in runs for record in side_files.data_record(run).values()]
    return sorted({str(record["template"]["name"]) for record in records if "template" in record})


def one_vocabulary(what: Merge) -> ImportedVocabulary:
    """The carrier's vocabulary; refuses models whose ids stand for other pieces of text."""
    own = load_vocabulary(what.carrier.vocabulary)
    texts = [text for group in PROMPTS.values() for text in group]
    for one in what.inputs:
        other = own if one is what.carrier else load_vocabulary(one.vocabulary)
        if told := same_ids.difference(own, other, texts):
            lines = f"{_told(what.carrier, own.sha256)}, {_told(one, other.sha256)}: {told}"
            mend = "merge models of one tokenizer; a row of the embedding must mean the same in all"
            raise UserError(f"two models have different tokenizers: {lines}", one.vocabulary, mend)
    return ImportedVocabulary(
        sha256=own.sha256,
        size=own.size,
        bos=own.bos,
        encode=own.encode_batch,
        save=lambda target: save_vocabulary(own, target),
    )


def _told(one: Input, sha256: str) -> str:
    return f"{one.path} ({sha256[:16]}…)"
