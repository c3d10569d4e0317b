"""Each step's loss of a run is Trainer's, in full training and with PEFT's adapters; packed rows here, padded there."""

from pathlib import Path

import pytest
import tiny_runs

from benchmarks import peer_losses
from t_elaine.hf import peft_format
from t_elaine.model.lora import Lora
from t_elaine.training.optimizer import AdamW
from tests.hf.models import VOCABULARY_SHA256, imported, write_model

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
STEPS = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in Hugging Face's format, imported, and a store."""
    here = tmp_path_factory.mktemp("losses")
    imported(write_model(here / "model", "llama32_tied"), here / "import")
    tiny_runs.make_store(here / "store", vocabulary=VOCABULARY_SHA256)
    return here


@pytest.mark.parametrize("kind", ["full", "dora", pytest.param("lora", marks=pytest.mark.full)])  # in DoRA is LoRA
def test_twenty_losses_are_trainers(base: Path, kind: str) -> None:
    mixture = peer_losses.Mixture(stores=(str(base / "store"),), sequence_length=64, batch_tokens=512, packing="whole")
    what = peer_losses.Comparison(model=base / "model", out=base, mixture=mixture, steps=STEPS, peak=1e-2, rank=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(what.model, dtype=torch.float32)
    own = {"checkpoint": str(base / "import")}
    lora = None
    if kind != "full":
        pytest.importorskip("peft", reason="PEFT is not installed")
        model = peer_losses.with_adapter(model, kind, what.rank, base / f"adapter-{kind}")
        peft_format.import_adapter(base / f"adapter-{kind}", own["checkpoint"], str(base / f"start-{kind}"))
        own["adapter"] = str(base / f"start-{kind}")
        lora = Lora(rank=3, alpha=6, base="float32", dora=kind == "dora")
    adamw = AdamW(weight_decay=peer_losses.DECAY[kind])
    steps = peer_losses.examples(mixture, STEPS)
    theirs = peer_losses.theirs(model, steps, what.schedule, adamw, base / "trainer")
    run, fields = base / f"run-{kind}", ("peak", "warmup_steps", "floor_fraction")
    tiny_runs.train_here(
        run,
        [base / "store"],
        model=peer_losses.config_of(what.model),
        **{name: getattr(what.schedule, name) for name in fields},
        **{name: getattr(mixture, name) for name in ("sequence_length", "batch_tokens", "packing")},
        **{"weight_decay": adamw.weight_decay, "steps": STEPS, "evaluate_every": 10**6, "every": 10**6},
        lora=lora,
        **own,
    )
    ours = [line["loss"] for line in tiny_runs.lines(run) if line["kind"] == "train"]
    assert len(ours) == len(theirs) == STEPS and min(map(len, steps)) > 8
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert ours[-1] < ours[0] - 0.3
