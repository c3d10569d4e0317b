"""A small store of held-out documents, each cut to its first tokens, so that a processor can score long ones too.

    cut_store(store, target, documents=10, tokens=1024)

A paper of 20,000 tokens costs as much as forty abstracts and is one document to an interval. What is cut has the bytes
of the tokens that are left; what is shorter stays as it is.
"""

import shutil
from pathlib import Path

import numpy as np

from t_elaine.data.store import Labels, Row, ShardWriter, open_store, write_manifest
from t_elaine.evaluation.bits_per_byte import documents as held_documents
from t_elaine.paths import file_sha256


def cut_store(store: Path, target: Path, documents: int, tokens: int) -> Path:
    """Write a store whose validation split holds the first tokens of some held-out documents.

    Args:
        store: the folder of a store.
        target: the new store; one that is there is left as it is.
        documents: those with the smallest text hashes, at most so many.
        tokens: of each document at most so many.
    """
    if (target / "manifest.json").is_file():
        return target
    source = open_store(store)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copytree(store / "vocabulary", target / "vocabulary")
    lengths = np.load(store / "vocabulary" / "byte_lengths.npy")
    languages, categories = (tuple(sorted({group[i] for group in source.groups})) for i in (0, 1))
    labels = Labels(languages=languages, categories=categories, sources=(source.name,))
    writer = ShardWriter(target / "validation-00000-of-00001.arrow", labels)
    for number, held in enumerate(held_documents(source, "validation", documents)):
        whole = len(held.tokens) <= tokens
        row = Row(
            tokens=held.tokens[:tokens],
            id=str(number),
            language=held.group[0],
            category=held.group[1],
            source=source.name,
            bytes=held.bytes if whole else int(lengths[held.tokens[:tokens]].sum()),
            text_hash=held.text_hash,
        )
        writer.add(row)
    path = writer.close()
    shard = {"file": path.name, "split": "validation", "size": path.stat().st_size, "sha256": file_sha256(path)}
    content = {"name": source.name, "groups": source.groups, "vocabulary": source.vocabulary, "shards": [shard]}
    write_manifest(target, content)
    return target
