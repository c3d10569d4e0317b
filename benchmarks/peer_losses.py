"""Each step's loss of our `train` beside transformers' Trainer and PEFT: same model, conversations, order, rates.

    python -m benchmarks.peer_losses --model=HF_FOLDER --stores=STORE,… --out=FOLDER [--kinds=full,lora,dora]

Ours are the commands `import_hf` and `train`: packed rows of several examples, an adapter taken over from PEFT's file.
Theirs is `Trainer` on the same examples, each in a row of its own with padding and its attention mask, labels on the
same tokens alone; AdamW, clipping, decay and the rate of each step are Trainer's own, set to the same numbers. All in
float32. A difference of 1e-3 or more in any step is a failure. Needs torch, transformers, accelerate and peft. A kind
whose result is there is not done again.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.real_road import Road, do, machine, train_lines
from t_elaine.data.loader import Loader, open_mixture
from t_elaine.data.mixture import Mixture, rows_per_batch
from t_elaine.model.config import LlamaConfig
from t_elaine.training.optimizer import AdamW, Schedule, learning_rate

LIMIT = 1e-3
KINDS = ("full", "lora", "dora")
# Trainer decays whatever is not called norm or bias, DoRA's lengths too; we do not. Adapters are not decayed here.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
DECAY = {"full": 0.1, "lora": 0.0, "dora": 0.0}
Example = tuple[list[int], list[int]]  # ids, and of each whether it is trained: its id, or -100


def examples(mixture: Mixture, steps: int) -> list[list[Example]]:
    """Each step's examples out of the packed rows that we train on, in their order."""
    rows = rows_per_batch(mixture)
    loader = Loader(open_mixture(mixture), 1, rows, range(rows))
    return [[one for row in range(rows) for one in _in_row(loader.batch(step), row)] for step in range(steps)]


def _in_row(batch: dict[str, np.ndarray], row: int) -> list[Example]:
    parts = {name: batch[name][0, row] for name in ("tokens", "targets", "weights", "segments")}
    found = []
    for segment in range(1, int(parts["segments"].max()) + 1):
        here = parts["segments"] == segment
        targets, weights = parts["targets"][here], parts["weights"][here]
        ids = [*parts["tokens"][here].tolist(), int(targets[-1])]  # the last id is only ever a label
        found.append((ids, [-100, *np.where(weights > 0, targets, -100).tolist()]))
    return found


def padded(step: list[Example]) -> dict[str, Any]:
    """A step's examples as a batch of Trainer's."""
    import torch

    width = max(len(ids) for ids, _ in step)
    fill = lambda rows, value: torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])  # noqa: E731
    mask = fill([[1] * len(ids) for ids, _ in step], 0)
    return {
        "input_ids": fill([ids for ids, _ in step], 0),
        "attention_mask": mask,
        "labels": fill([labels for _, labels in step], -100),
    }


def with_adapter(model: Any, kind: str, rank: int, to: Path) -> Any:
    """PEFT's model with new adapters, which are also written to a folder."""
    import peft
    import torch

    torch.manual_seed(0)
    names = [f"{name}_proj" for name in TARGETS]
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=names, use_dora=kind == "dora", task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(str(to))
    return adapted


def theirs(model: Any, steps: list[list[Example]], schedule: Schedule, adamw: AdamW, folder: Path) -> list[float]:
    """Trainer's loss of each step, at full precision."""
    import torch
    import transformers

    seen: list[float] = []
    rate = learning_rate(schedule, len(steps))

    class Recorded(transformers.Trainer):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            found = super().compute_loss(*arguments, **named)
            value = found[0] if isinstance(found, tuple) else found
            seen.append(float(value.detach()))
            print(f"Trainer, step {len(seen)}: {seen[-1]:.6f}", flush=True)
            return found

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            at = lambda step: float(rate(jnp.int32(min(step, len(steps) - 1)))) / schedule.peak  # noqa: E731
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, at)  # type: ignore[arg-type]
            return self.lr_scheduler

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(steps)

    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # one item is a step's examples
        max_steps=len(steps),
        learning_rate=schedule.peak,
        weight_decay=adamw.weight_decay,
        adam_beta1=adamw.b1,
        adam_beta2=adamw.b2,
        adam_epsilon=adamw.eps,
        max_grad_norm=adamw.clip or 0.0,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = Recorded(model, settings, train_dataset=steps, data_collator=lambda items: padded(items[0]))
    trainer.train()
    return seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared."""

    model: Path
    out: Path
    mixture: Mixture
    steps: int
    peak: float
    rank: int

    @property
    def schedule(self) -> Schedule:
        return Schedule(peak=self.peak, warmup_steps=4, floor_fraction=0.1)

    @property
    def road(self) -> Road:
        return Road(texts=self.out, out=self.out, model=self.model)


def config_of(folder: Path) -> LlamaConfig:
    """The model's shape."""
    from t_elaine.model.config import from_hf

    return from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def ours(what: Comparison, kind: str) -> list[float]:
    """The same through our commands."""
    parent, run, data = what.out / "import", what.out / f"run-{kind}", what.mixture
    if not parent.is_dir():
        do(what.road, "import_hf", f"--hf={what.model}", f"--to={parent}")
    given: dict[str, Any] = {
        **{f"LlamaConfig.{name}": value for name, value in dataclasses.asdict(config_of(what.model)).items()},
        **{f"Schedule.{name}": getattr(what.schedule, name) for name in ("peak", "warmup_steps", "floor_fraction")},
        **{
            f"Mixture.{name}": getattr(data, name)
            for name in ("sequence_length", "batch_tokens", "packing", "conversations")
        },
        **{"STORES": tuple(data.stores), "RUN_DIR": str(run), "Start.checkpoint": str(parent)},
        **{"Loop.steps": what.steps, "Loop.evaluate_every": 10**6, "Loop.evaluate_tokens": 64},
        **{"AdamW.weight_decay": DECAY[kind], "Checkpointing.every": what.steps},
        **{"train.compilation_cache": str(what.out / "xla"), "train.rows_per_device": rows_per_batch(data)},
    }
    files = ["sft.gin", "hardware/cpu.gin"]
    if kind != "full":
        start = what.out / f"start-{kind}"
        if not start.is_dir():
            adapter = what.out / f"adapter-{kind}"
            do(what.road, "import_hf", f"--hf={adapter}", f"--base={parent}", f"--to={start}", log=start.name)
        files.append("lora.gin")
        given |= {"Start.adapter": str(start), "Lora.rank": what.rank, "Lora.alpha": float(2 * what.rank)}
        given |= {"Lora.dropout": 0.0, "Lora.base": "float32", "Lora.targets": TARGETS, "Lora.dora": kind == "dora"}
    given.pop("LlamaConfig.rope_scaling")
    words = [*(f"--gin_file={file}" for file in files), *(f"--gin.{name}={value!r}" for name, value in given.items())]
    do(what.road, "train", *words, log=run.name)
    lines = train_lines(run / "metrics.jsonl")
    return [lines[step]["loss"] for step in sorted(lines)]


def compared(what: Comparison, kind: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Both sides of one kind, and how far their losses part."""
    import torch
    import transformers

    steps, kept = examples(what.mixture, what.steps), what.out / f"trainer-{kind}.json"
    if not kept.is_file():
        model = transformers.AutoModelForCausalLM.from_pretrained(what.model, dtype=torch.float32)
        if kind != "full":
            model = with_adapter(model, kind, what.rank, what.out / f"adapter-{kind}")
        adamw = AdamW(weight_decay=DECAY[kind])
        found = theirs(model, steps, what.schedule, adamw, what.out / f"trainer-{kind}")
        kept.write_text(json.dumps(found), encoding="utf-8")
        del model
    own, other = ours(what, kind), json.loads(kept.read_text(encoding="utf-8"))
    for number, pair in enumerate(zip(own, other, strict=True), 1):
        say(f"{kind}, step {number}: ours {pair[0]:.6f}  theirs {pair[1]:.6f}  apart {abs(pair[0] - pair[1]):.1e}")
    largest = max(abs(a - b) for a, b in zip(own, other, strict=True))
    trained = sum(label != -100 for step in steps for _, labels in step for label in labels)
    told = {"kind": kind, "steps": len(own), "largest": largest, "within": largest < LIMIT, "ours": own}
    return told | {"theirs": other, "examples": sum(map(len, steps)), "trained tokens": trained}


def main() -> int:
    """Compare every kind; 1 where losses part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--stores", required=True, help="stores of conversations in the model's vocabulary")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", default=",".join(KINDS))
    for flag, default in (("steps", 20), ("rows", 2), ("length", 512), ("rank", 16)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--peak", type=float, default=1e-4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stores = tuple(str(Path(store).resolve()) for store in args.stores.split(","))
    tokens = args.rows * args.length
    mixture = Mixture(stores=stores, sequence_length=args.length, batch_tokens=tokens, packing="whole")
    what = Comparison(
        model=args.model.resolve(),
        out=args.out.resolve(),
        mixture=mixture,
        steps=args.steps,
        peak=args.peak,
        rank=args.rank,
    )
    worst = 0
    for kind in args.kinds.split(","):
        file = what.out / f"{kind}.json"
        if not file.is_file():
            packages = {name: version(name) for name in ("jax", "torch", "transformers")}
            result = compared(what, kind) | {"machine": machine(), "packages": packages}
            file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        result = json.loads(file.read_text(encoding="utf-8"))
        print(json.dumps({key: value for key, value in result.items() if key not in ("ours", "theirs")}))
        worst |= not result["within"]
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
