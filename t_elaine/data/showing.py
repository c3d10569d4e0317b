"""Documents of a store as a person reads them: tokens written out, what is trained between ⟦ and ⟧."""

from collections import Counter

from rich.console import Console
from rich.text import Text

from t_elaine.data.doc_batch import DocBatch
from t_elaine.data.store import open_store
from t_elaine.data.vocabulary import Vocabulary, load_vocabulary
from t_elaine.paths import join

_LONGEST = 1200  # tokens that are written out of one document


def show(folder: str, count: int, console: Console) -> None:
    """Print the first documents of each language and category of a store; of private sources their lengths alone.

    Args:
        folder: of the store.
        count: documents for each.
        console: to print on.
    """
    store = open_store(folder)
    vocabulary = load_vocabulary(join(folder, "vocabulary"))
    private = {name for name, terms in store.manifest["licences"].items() if terms["private"]}
    shown: Counter[int] = Counter()
    for batch in store.batches("train"):
        ids, sources = batch.ids(), batch.sources()
        for i in range(batch.docs):
            group = int(batch.group[i])
            shown[group] += 1
            if shown[group] > count:
                continue
            language, category = store.groups[group]
            tokens = int(batch.offsets[i + 1] - batch.offsets[i])
            trained = sum(stop - start for start, stop in batch.spans(i) or [(0, tokens)])
            hidden = sources[i] in private
            name = f"{batch.text_hash[i]:016x}" if hidden else ids[i]
            head = f"{store.name} {language} {category} {name}: {tokens} tokens, {trained} of them trained"
            console.print(Text(head, style="bold"), soft_wrap=True)
            console.print(Text("(private)") if hidden else written(batch, i, vocabulary), soft_wrap=True)
            console.print()
        if len(shown) == len(store.groups) and min(shown.values()) >= count:
            return


def written(batch: DocBatch, i: int, vocabulary: Vocabulary) -> Text:
    """Document i, special tokens as their text, at most _LONGEST tokens."""
    tokens = batch.tokens[batch.offsets[i] : batch.offsets[i + 1]]
    spans = batch.spans(i)
    text, at = Text(), 0
    for start, stop in [(0, len(tokens))] if spans is None else spans:
        if start >= _LONGEST:
            break
        text.append(vocabulary.decode(tokens[at:start]), style="dim")
        text.append("⟦" + vocabulary.decode(tokens[start : min(stop, _LONGEST)]) + "⟧", style="green")
        at = stop
    text.append(vocabulary.decode(tokens[at:_LONGEST]), style="dim")
    if len(tokens) > _LONGEST:
        text.append(f" … and {len(tokens) - _LONGEST} tokens more", style="dim italic")
    return text
