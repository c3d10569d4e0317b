"""The bridge to SeqIO: our tasks run in SeqIO's pipelines; tf.data preprocessors and TFDS data sets run in prepare."""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tasks as small
from rich.console import Console
from small_vocabularies import SAMPLE_VOCABULARY, sample_texts, train_byte_level

from t_elaine.data import tasks
from t_elaine.data.identity import Making
from t_elaine.data.lines import Piece
from t_elaine.data.store import Store, open_store
from t_elaine.data.texts import Rejected, Task, Text, texts
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import prepare_stores
from t_elaine.errors import UserError

seqio = pytest.importorskip("seqio", reason="SeqIO is not installed: pip install t-elaine[data]")


@pytest.fixture(autouse=True)
def empty_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", {})
    monkeypatch.setattr(tasks, "MIXTURES", {})
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def prepare(folder: Path, task: Task, vocabulary: Path = SAMPLE_VOCABULARY, **settings: Any) -> Store:
    making = Making(**({"validation_share": 0.0, "max_rejected_share": 1.0} | settings))
    console = Console(file=io.StringIO())
    prepare_stores([task], load_vocabulary(vocabulary), folder, making, workers=1, console=console)
    return open_store(folder / task.name)


def tokens(store: Store) -> list[list[int]]:
    batches = store.batches("train")
    return [piece.tolist() for b in batches for piece in np.split(b.tokens, b.offsets[1:-1])]


def define(folder: Path) -> None:
    english = small.write_rows(folder / "en.jsonl", small.rows(30), {3: "{"})
    japanese = small.write_rows(folder / "ja.jsonl", small.rows(20, "ja"))
    about = {"licence": "CC0-1.0", "url": "https://example.org", "category": "textbook"}
    tasks.add_task("english", [str(english)], language="en", preprocessors=[small.shout], **about)
    tasks.add_task("japanese", [str(japanese)], language="ja", **about)
    tasks.add_mixture("both", {"english": 3.0, "japanese": 1.0})


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_seqio_yields_the_tokens_of_the_store(tmp_path: Path, kind: str) -> None:
    define(tmp_path)
    path = SAMPLE_VOCABULARY if kind == "sentencepiece" else train_byte_level(tmp_path / "v", "digits")
    tasks.register_in_seqio(load_vocabulary(path))
    dataset = seqio.get_mixture_or_task("english").get_dataset({"targets": 4096}, "train", shuffle=False)
    found = [example["targets"].tolist() for example in dataset.as_numpy_iterator()]
    assert len(found) == 29
    assert found == tokens(prepare(tmp_path / "stores", tasks.TASKS["english"], path, before=(), after=()))


def test_mixtures_stand_in_seqios_registry_with_their_weights(tmp_path: Path) -> None:
    define(tmp_path)
    tasks.register_in_seqio(load_vocabulary(SAMPLE_VOCABULARY))
    mixture = seqio.get_mixture_or_task("both")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"english": 3.0, "japanese": 1.0}
    dataset = mixture.get_dataset({"targets": 4096}, "train", shuffle=False, num_epochs=1)
    assert len(list(dataset.as_numpy_iterator())) >= 30


def test_a_mixture_of_seqios_own_registry_is_prepared(tmp_path: Path) -> None:
    define(tmp_path)
    tasks.register_in_seqio(load_vocabulary(SAMPLE_VOCABULARY))
    seqio.MixtureRegistry.add("theirs", [("english", 2.0), ("japanese", 5.0)])
    found, weights = tasks.find("theirs")
    assert [task.name for task in found] == ["english", "japanese"] and weights == {"english": 2.0, "japanese": 5.0}


def test_seqio_tasks_without_licence_are_refused() -> None:
    import tensorflow as tf

    seqio.TaskRegistry.add(
        "bare",
        source=seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(3), splits=["train"]),
        preprocessors=[],
        output_features={},
    )
    seqio.MixtureRegistry.add("theirs", [("bare", 1.0)])
    with pytest.raises(UserError, match="no task of T-ELAINE"):
        tasks.find("theirs")


def test_the_vocabulary_in_seqios_clothes() -> None:
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    wrapped = tasks.seqio_vocabulary(vocabulary)
    text = sample_texts()[0]
    ids = vocabulary.encode(text).tolist()
    assert wrapped.encode(text) == ids and wrapped.decode(ids) == text
    assert wrapped.encode_tf(text).numpy().tolist() == ids
    assert wrapped.decode_tf(np.array(ids, np.int32)).numpy().decode() == text
    assert (wrapped.vocab_size, wrapped.eos_id, wrapped.bos_id, wrapped.pad_id) == (4096, 2, 1, 3)


def lower_twice(dataset: Any) -> Any:
    """A tf.data preprocessor that yields two records for one."""
    import tensorflow as tf

    def both(fields: dict[str, Any]) -> Any:
        first = {**fields, "text": tf.strings.lower(fields["text"])}
        second = {**fields, "id": fields["id"] + "-again", "text": fields["text"] + " Again."}
        return tf.data.Dataset.from_tensors(first).concatenate(tf.data.Dataset.from_tensors(second))

    return dataset.flat_map(both)


def test_tf_preprocessors_run_through_tf_data(tmp_path: Path) -> None:
    path = small.write_rows(tmp_path / "a.jsonl", small.rows(5, "ja"), {2: '{"text": ""}'})
    task = tasks.add_task("t", [small.source(path)], preprocessors=[small.shout], tf_preprocessors=[lower_twice])
    found = list(texts(task, task.sources[0], Piece(file=str(path))))
    kept = {item.id: (item.text, item.line) for item in found if isinstance(item, Text)}
    assert kept["ja1"] == ("患者1号は発熱した。" * 2, 2)
    assert kept["ja4-again"] == ("患者4号は発熱した。" * 5 + " Again.", 5)
    assert len(kept) == 8 and [r.line for r in found if isinstance(r, Rejected)] == [3]
    assert len(tokens(prepare(tmp_path / "stores", task))) == 8
    wrong = tasks.add_task("w", [small.source(path)], preprocessors=[small.give_text], tf_preprocessors=[lower_twice])
    with pytest.raises(UserError, match=r"small_tasks\.give_text failed with TypeError"):
        list(texts(wrong, wrong.sources[0], Piece(file=str(path))))


def test_a_real_tfds_data_set(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    class Notes(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        """Clinical notes made up for this test."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"note": tfds.features.Text(), "key": np.int64})
            )

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(0), "test": self._generate_examples(100)}

        def _generate_examples(self, *bounds: Any) -> Any:
            for i in range(bounds[0], bounds[0] + 12):
                yield i, {"note": "" if i == 5 else f"患者{i}号は発熱した。", "key": i}

    builder = Notes(data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    folder = next((tmp_path / "tfds").rglob("dataset_info.json")).parent
    source = small.source(str(folder), format="tfds", text="note", id="key", split="train", language="ja")
    store = prepare(tmp_path / "stores", small.task("notes", source), shards=1)
    ids = [name for batch in store.batches("train") for name in batch.ids()]
    assert sorted(map(int, ids)) == [i for i in range(12) if i != 5]
    assert store.manifest["quarantine"] == {"empty text": 1}
    vocabulary = load_vocabulary(SAMPLE_VOCABULARY)
    by_id = dict(zip(ids, tokens(store), strict=True))
    assert vocabulary.decode(by_id["7"][1:-1]) == "患者7号は発熱した。"
    for bad in (str(tmp_path / "nothing" / "1.0.0"), "no_such_data_set_at_all"):
        with pytest.raises(UserError, match="TFDS cannot open"):
            list(tasks.read_tfds(bad, "train"))
    with pytest.raises(UserError, match="TFDS cannot open"):
        list(tasks.read_tfds(str(folder), "no_split"))


def test_names_are_unique_and_plain(tmp_path: Path) -> None:
    define(tmp_path)
    with pytest.raises(UserError, match="already"):
        define(tmp_path)
    for bad in ("a/b", "", "../x"):
        with pytest.raises(UserError, match="no name"):
            tasks.add_task(bad, [])
    with pytest.raises(UserError, match="weights"):
        tasks.add_mixture("m", {})
    with pytest.raises(UserError, match="known: english"):
        tasks.find("englsh")
    twice = functools.partial(small.source, tmp_path / "en.jsonl", "same")
    with pytest.raises(UserError, match="same name"):
        tasks.add_task("x", [twice(), twice()])
