"""Tasks and mixtures, and the bridge to SeqIO: the only file that imports seqio, TensorFlow or tensorflow_datasets.

They are imported within functions, so a module of tasks loads in milliseconds and preparing plain text never needs
them. `add_task` and `add_mixture` note tasks here; `register_in_seqio` puts them into SeqIO's own registries too.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from t_elaine.data.formats import Record, Rejected
from t_elaine.data.lines import Piece
from t_elaine.data.sources import Source, find_files
from t_elaine.data.texts import Preprocessor, Task, Text, checked, texts
from t_elaine.data.vocabulary import Vocabulary
from t_elaine.errors import UserError
from t_elaine.paths import make_importable

if TYPE_CHECKING:
    import seqio

TASKS: dict[str, "Task"] = {}
MIXTURES: dict[str, dict[str, float]] = {}


def add_task(
    name: str,
    sources: Sequence[Source | str],
    language: str = "",
    category: str = "",
    licence: str = "",
    url: str = "",
    *,
    preprocessors: Sequence[Preprocessor] = (),
    tf_preprocessors: Sequence[Callable[..., Any]] = (),
) -> Task:
    """Define a task; one store is prepared from it.

    Args:
        name: letters, digits, `_` and `-`; also the store's folder.
        sources: `Source`s, or paths of files that share the `language`, `category`, `licence` and `url` given here.
        preprocessors: top-level functions of Python (worker processes import them by name).
        tf_preprocessors: SeqIO preprocessors, tf.data.Dataset → tf.data.Dataset; they see the fields `text` and `id`.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{name!r} is no name for a task", name, "use letters, digits, _ and -")
    if name in TASKS or name in MIXTURES:
        raise UserError(f"there is already a task or mixture {name!r}", name, "give it another name")
    bare = Source(name=name, files=(), language=language, category=category, licence=licence, url=url)
    named = enumerate(sources)
    made = [s if isinstance(s, Source) else replace(bare, name=f"{name}_{i}", files=(s,)) for i, s in named]
    if len({source.name for source in made}) < len(made):
        raise UserError(f"two sources of task {name!r} bear the same name", name, "names are unique within a task")
    task = Task(
        name=name, sources=tuple(made), preprocessors=tuple(preprocessors), tf_preprocessors=tuple(tf_preprocessors)
    )
    TASKS[name] = task
    return task


def add_mixture(name: str, weights: Mapping[str, float]) -> None:
    """Define a mixture: task → default weight. Weights count tokens, on any scale; gin's `Mixture` overrides them."""
    if name in TASKS or name in MIXTURES:
        raise UserError(f"there is already a task or mixture {name!r}", name, "give it another name")
    if not weights or min(weights.values()) < 0:
        raise UserError(f"mixture {name!r} needs tasks with weights of 0 or more", name, "")
    MIXTURES[name] = dict(weights)


def find(name: str) -> tuple[list[Task], dict[str, float] | None]:
    """The tasks behind a name, and the default weights if it names a mixture (ours, or one in SeqIO's registry).

    Raises:
        UserError: no such task or mixture, or a SeqIO task that was not made by `add_task`.
    """
    if name in TASKS:
        return [TASKS[name]], None
    weights = MIXTURES.get(name) or _seqio_mixture(name)
    if weights is None:
        known = ", ".join([*TASKS, *MIXTURES]) or "none; name a module of tasks with --module"
        raise UserError(f"no task or mixture {name!r}", name, f"known: {known}")
    missing = [task for task in weights if task not in TASKS]
    if missing:
        mend = "define it by t_elaine.data.tasks.add_task, which asks for licence and URL"
        raise UserError(f"mixture {name!r} names {missing[0]!r}, which is no task of T-ELAINE", name, mend)
    return [TASKS[task] for task in weights], weights


def load_modules(modules: Sequence[str]) -> None:
    """Import modules of tasks; the shipped `data_tasks` is found in a checkout and in an installed wheel."""
    make_importable("data_tasks")
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            mend = "give a dotted name that Python can import from here"
            raise UserError(f"there is no module {name!r}", "prepare.modules", mend) from error


# --- TensorFlow and SeqIO


def read_tfds(name: str, split: str) -> Iterator[Record]:
    """Records of a TFDS data set: `name` is the folder of a prepared version, or a name that TFDS knows."""
    import tensorflow_datasets as tfds

    try:
        folder = tfds.builder_from_directory(name) if "/" in name else tfds.builder(name)
        dataset = folder.as_dataset(split=split)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError, FileNotFoundError, OSError) as error:
        mend = "give the folder of a prepared version (it holds dataset_info.json), and an existing split"
        raise UserError(f"TFDS cannot open {name!r}, split {split!r}: {str(error)[:300]}", name, mend) from error
    for line, record in enumerate(tfds.as_numpy(dataset), 1):
        yield line, {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    """bytes → str; half characters stay visible to the check as surrogates."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def through_tf(task: Task, source: Source, found: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
    """Records through the task's tf.data preprocessors. What was rejected before them comes after the last record."""
    import tensorflow as tf

    rejected: list[Rejected] = []
    failed: list[UserError] = []

    def read() -> Iterator[Record | Rejected]:
        try:
            yield from found
        except UserError as error:  # TensorFlow would make an error of its own out of it
            failed.append(error)

    def generate() -> Iterator[dict[str, Any]]:
        for item in read():
            found_text = item if isinstance(item, Rejected) else checked(item, source)
            if isinstance(found_text, Rejected):
                rejected.append(found_text)
            elif found_text.turns:
                mend = "give it Python preprocessors alone"
                what = f"task {task.name!r} has tf_preprocessors, which see text only, and gives conversations"
                failed.append(UserError(what, task.name, mend))
                return
            else:
                yield {source.text: found_text.text, source.id: found_text.id, "line": found_text.line}

    signature = {
        source.text: tf.TensorSpec((), tf.string),
        source.id: tf.TensorSpec((), tf.string),
        "line": tf.TensorSpec((), tf.int64),
    }
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    for step in task.tf_preprocessors:
        dataset = step(dataset)
    for fields in dataset.as_numpy_iterator():
        yield int(fields.pop("line", 0)), {key: _plain(value) for key, value in fields.items()}
    if failed:
        raise failed[0]
    yield from rejected


def register_in_seqio(vocabulary: Vocabulary, data_root: str = "") -> None:
    """Put every task and mixture into SeqIO's registries, so that `seqio.get_mixture_or_task(name)` finds them.

    Their one feature is `targets`: the ids of `vocabulary`, without framing. Registering again replaces the entries.
    """
    import seqio

    wrapped = seqio_vocabulary(vocabulary)
    feature = seqio.Feature(vocabulary=wrapped, add_eos=False)
    for name, task in TASKS.items():
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio_source(task, data_root),
            preprocessors=[
                functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text", "id": "id", "line": "line"}),
                seqio.preprocessors.tokenize,
            ],
            output_features={"targets": feature},
        )
    for name, weights in MIXTURES.items():
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(weights.items()))


def _seqio_mixture(name: str) -> dict[str, float] | None:
    """The rates of a mixture in SeqIO's registry; SeqIO is only asked where a user's module has loaded it."""
    if "seqio" not in sys.modules:
        return None
    import seqio

    if name not in seqio.MixtureRegistry.names():
        return None
    mixture = seqio.MixtureRegistry.get(name)
    return {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}


def seqio_source(task: Task, data_root: str = "") -> "seqio.DataSource":
    """The task's documents as a `seqio.DataSource` with one split, train; a shard is a file."""
    import seqio
    import tensorflow as tf

    pieces = {
        str(path): (source, Piece(file=str(path))) for source in task.sources for path in find_files(source, data_root)
    }

    class TextSource(seqio.DataSource):  # type: ignore[misc]
        """Documents that `texts` yields, as {text, id, line}."""

        def __init__(self) -> None:
            super().__init__(splits=["train"])

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> list[str]:
            return list(pieces)

        def get_dataset(
            self,
            split: str = "train",
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            **_: Any,
        ) -> Any:
            names = list(pieces)[shard_info.index :: shard_info.num_shards] if shard_info else list(pieces)

            def generate() -> Iterator[dict[str, Any]]:
                for item in (item for name in names for item in texts(task, *pieces[name])):
                    if isinstance(item, Text):
                        yield {"text": item.text, "id": item.id, "line": item.line}

            signature = {"text": tf.TensorSpec((), tf.string), "id": tf.TensorSpec((), tf.string)}
            signature["line"] = tf.TensorSpec((), tf.int64)
            dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
            return dataset.shuffle(1000, seed=seed) if shuffle else dataset

    return TextSource()


def seqio_vocabulary(vocabulary: Vocabulary) -> "seqio.Vocabulary":
    """One of our vocabularies as a `seqio.Vocabulary`. Where it has no pad, its eos or 0 stands in."""
    import seqio
    import tensorflow as tf

    class Wrapped(seqio.Vocabulary):  # type: ignore[misc]
        """Encodes through Python: right for reading and debugging; `prepare` itself tokenises outside tf.data."""

        def __init__(self) -> None:
            super().__init__(extra_ids=0)

        @property
        def bos_id(self) -> int | None:
            return vocabulary.bos

        @property
        def eos_id(self) -> int | None:
            return vocabulary.eos

        @property
        def pad_id(self) -> int:
            return vocabulary.pad if vocabulary.pad is not None else vocabulary.eos or 0

        @property
        def unk_id(self) -> int | None:
            return None

        @property
        def _base_vocab_size(self) -> int:
            return vocabulary.size

        def _encode(self, s: str) -> list[int]:
            return vocabulary.encode(s).tolist()

        def _decode(self, ids: Any) -> str:
            return vocabulary.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            encode = functools.partial(_encode_bytes, vocabulary)
            ids = tf.numpy_function(encode, [tf.convert_to_tensor(s, tf.string)], tf.int32)
            return tf.ensure_shape(ids, [None])

        def _decode_tf(self, ids: Any) -> Any:
            return tf.numpy_function(lambda found: vocabulary.decode(found).encode(), [ids], tf.string)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, seqio.Vocabulary) and getattr(other, "sha256", None) == vocabulary.sha256

        __hash__ = seqio.Vocabulary.__hash__
        sha256 = vocabulary.sha256

    return Wrapped()


def _encode_bytes(vocabulary: Vocabulary, text: Any) -> Any:
    """numpy_function hands over bytes in a graph, and an array without dimensions outside one."""
    raw: bytes = np.asarray(text, object).item()
    return vocabulary.encode(raw.decode("utf-8")).astype(np.int32)
