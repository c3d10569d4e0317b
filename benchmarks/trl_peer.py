"""TRL's DPOTrainer on pairs that are token ids already, batch by batch as given: the peer of preference tuning.

Needs torch, transformers, and trl with accelerate and datasets, which `make test` installs.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

Ids = dict[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


def pairs_of(batch: dict[str, np.ndarray]) -> list[Ids]:
    """The pairs of a batch of ours, arrays [A,B,T], in the order of its rows and segments."""
    found = []
    for row in range(batch["tokens"].shape[0] * batch["tokens"].shape[1]):
        one = {name: array.reshape(-1, array.shape[-1])[row] for name, array in batch.items()}
        for chosen in range(1, int(one["segments"].max()), 2):
            (prompt, good), (same, bad) = (_half(one, side) for side in (chosen, chosen + 1))
            assert prompt == same
            found.append({"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad})
    return found


def _half(row: dict[str, np.ndarray], segment: int) -> tuple[list[int], list[int]]:
    """(what is before the answer, the answer) of one dialogue of a row."""
    here = np.flatnonzero(row["segments"] == segment)
    learnt = here[row["weights"][here] > 0]
    return row["tokens"][here[0] : learnt[0] + 1].tolist(), row["targets"][learnt].tolist()


def losses(
    model: Any,
    batches: Sequence[Sequence[Ids]],
    *,
    beta: float,
    rpo_alpha: float,
    rate: float,
    adam: tuple[float, float, float],
) -> list[float]:
    """TRL's loss of each step: a constant rate, no weight decay, no clipping, float32 on a CPU.

    Args:
        model: of transformers, or of PEFT around one, whose adapters alone are then trained; in place.
        batches: the pairs of each step.
        beta: DPO's.
        rpo_alpha: weight of the loss "sft"; 0: "sigmoid" alone.
        rate: learning rate.
        adam: both betas, and epsilon.
    """
    import datasets
    import tokenizers
    import transformers
    from torch.utils.data import DataLoader
    from trl import DPOConfig, DPOTrainer

    found: list[float] = []
    places = np.split(np.arange(sum(map(len, batches))), np.cumsum([len(batch) for batch in batches])[:-1])

    class Recorded(DPOTrainer):  # type: ignore[misc]
        """Takes ids as they are, in their order, and notes each loss."""

        def _prepare_dataset(self, dataset: Any, *given: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            return DataLoader(
                self.train_dataset, batch_sampler=[one.tolist() for one in places], collate_fn=self.data_collator
            )

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            found.append(float(loss.detach()))
            return loss

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=len(batches),
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta1=adam[0],
            adam_beta2=adam[1],
            adam_epsilon=adam[2],
            max_grad_norm=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=32,
            max_length=None,
            beta=beta,
            loss_type=["sigmoid", "sft"] if rpo_alpha else ["sigmoid"],
            loss_weights=[1.0, rpo_alpha] if rpo_alpha else None,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        pairs = datasets.Dataset.from_list([pair for batch in batches for pair in batch])
        trainer = Recorded(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer)
        trainer.train()
    return found
