"""The command `prepare`: tasks of text → token stores. Its work stands in data/workers.py."""

import sys
from collections.abc import Sequence

from t_elaine.data.exam_filter import make_filter
from t_elaine.data.identity import Making
from t_elaine.data.overlap import Overlap
from t_elaine.data.tasks import load_modules
from t_elaine.data.vocabulary import load_vocabulary
from t_elaine.data.workers import STAGING, mapper_of, prepare_named
from t_elaine.paths import shipped

FLAGS = (
    *("tasks", "vocabulary", "stores", "template", "show", "data_root", "exams", "exam_overlap", "drop_duplicates"),
    *("shards", "workers", "runner", "beam_options", "overwrite"),
)


def prepare(
    *,
    tasks: tuple[str, ...],
    vocabulary: str,
    stores: str,
    modules: tuple[str, ...] = ("data_tasks.samples",),
    before: tuple[str, ...] = ("bos",),
    after: tuple[str, ...] = ("eos",),
    validation_share: float = 0.01,
    shards: int = 0,
    workers: int = 0,
    runner: str = "local",
    beam_options: tuple[str, ...] = (),
    max_rejected_share: float = 0.01,
    allowed_licences: tuple[str, ...] = (),
    drop_duplicates: bool = False,
    exams: tuple[str, ...] = (),
    exam_overlap: str = "drop",
    overlap: Overlap | None = None,
    template: str = "",
    show: int = 0,
    data_root: str = "",
    overwrite: bool = False,
    staging: str = STAGING,
) -> int:
    """Prepare token stores.

    Args:
        tasks: names of tasks and mixtures; of a mixture every task is prepared.
        vocabulary: a model's folder, or its tokenizer.json or tokenizer.model; `{samples}` is the shipped sample one.
        stores: folder in which each task's store is made, or gs://….
        modules: Python modules that define the tasks.
        before: ids put before every document: "bos", "eos", "pad" or a special token's text.
        after: ids put after every document.
        validation_share: share of the texts, by hash, kept for validation.
        shards: how many shards a store has; 0: by size.
        workers: processes of the local runner; 0: one for each core.
        runner: "local", processes of this machine; "beam", an Apache Beam pipeline (the extra `beam`).
        beam_options: Beam's own flags, such as "--runner=FlinkRunner"; without it all is done in one process.
        max_rejected_share: share of malformed records past which the run stops.
        allowed_licences: refuse sources with another licence; empty: any.
        drop_duplicates: of equal texts within a task keep the first.
        exams: folders or .jsonl files of exams in ELAINE's layout that no document may hold.
        exam_overlap: "drop" sets documents that hold exam questions aside, "count" keeps and counts them.
        overlap: when an exam question counts as held.
        template: chat template of conversations: a name ("elaine", "chatml" …: docs/chat.md), a .jinja file, or
            "chat" (the tokenizer's own); "": its own, or "plain".
        show: documents of each store that are printed, what is trained marked.
        data_root: folder that `{data_root}` in the sources' files stands for.
        overwrite: make stores anew even where one is there.
        staging: local folder for stores that go to an object store; needs room for all of them.
    """
    mapper = mapper_of(runner, beam_options)
    load_modules(modules)
    making = Making(
        before=before,
        after=after,
        validation_share=validation_share,
        shards=shards,
        drop_duplicates=drop_duplicates,
        exams=make_filter(exams, exam_overlap, overlap),
        max_rejected_share=max_rejected_share,
        allowed_licences=allowed_licences,
        template=template,
        data_root=data_root,
    )
    samples = shipped("data_tasks") / "samples" / "vocabulary"
    loaded = load_vocabulary(vocabulary.replace("{samples}", str(samples)))
    prepare_named(
        tasks, loaded, stores, making, workers=workers, mapper=mapper, overwrite=overwrite, staging=staging, show=show
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin files → settings → `prepare` → exit code."""
    from t_elaine import cli

    return cli.run("prepare", argv, FLAGS)


if __name__ == "__main__":
    sys.exit(main())
