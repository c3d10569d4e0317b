"""Makes vocabulary/tokenizer.model: a small SentencePiece model with byte fallback, trained on the sample documents.

    python data_tasks/samples/make_vocabulary.py

Nothing is normalised, no space is added or removed, so that decoding gives every text back (but for U+2581, the mark
that SentencePiece itself uses for a space).
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).resolve().parent


def texts() -> Iterator[str]:
    for path in sorted(FOLDER.glob("*/documents.jsonl")):
        for row in path.read_text(encoding="utf-8").split("\n"):
            if row:
                yield from (line for line in json.loads(row)["text"].split("\n") if line)
    for path in sorted(FOLDER.glob("*/instructions.jsonl")):
        for row in path.read_text(encoding="utf-8").split("\n"):
            if row:
                yield from (message["content"] for message in json.loads(row)["messages"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=FOLDER / "vocabulary" / "tokenizer.model")
    settings = parser.parse_args()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts(),
        model_writer=model,
        model_type="bpe",
        vocab_size=settings.size,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100_000,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    settings.out.parent.mkdir(exist_ok=True)
    settings.out.write_bytes(model.getvalue())
    print(f"{settings.out}: {len(model.getvalue())} bytes")


if __name__ == "__main__":
    main()
