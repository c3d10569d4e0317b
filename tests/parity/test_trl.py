"""DPO and RPO beside TRL: a run of ours by the command's root, and DPOTrainer on the same pairs in the same order."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from benchmarks import trl_peer
from t_elaine.checkpoints import adapters
from t_elaine.checkpoints.writing import save_params
from t_elaine.data.loader import Loader, open_mixture
from t_elaine.hf.peft_format import name
from t_elaine.model.config import LlamaConfig
from t_elaine.model.lora import Lora, adapter_shapes, targets
from t_elaine.training.preference import Preference
from tests.parity.hf_peer import convert, randomise
from tests.random_params import meta_of
from tests.tiny_runs import lines, make_store, settings, train_here

STEPS, RATE, ADAM = 20, 1e-3, (0.9, 0.999, 1e-8)
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


PREFERENCES = [Preference(), Preference(beta=0.3, rpo_alpha=1.0)]


def begun(folder: Path) -> tuple[Any, LlamaConfig, Path]:
    """A random model of transformers, its shape, and the run folder that holds it."""
    peer = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)), 1)
    config, params = convert(peer)
    save_params(str(folder / "base"), 0, jax.device_put(params), meta_of(config))
    return peer, config, folder / "base"


def compare(folder: Path, peer: Any, preference: Preference, **given: Any) -> None:
    """Train both from the same weights on the same pairs; no step's loss may differ by more than 1e-5."""
    pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    store = folder / "pairs" if (folder / "pairs").exists() else make_store(folder / "pairs", pairs=True, documents=400)
    loader = Loader(open_mixture(settings(folder, [store], packing="whole")["data"]), 1, 8, range(8))
    batches = [trl_peer.pairs_of(loader.batch(step)) for step in range(STEPS)]
    given |= {
        **{"steps": STEPS, "packing": "whole", "preference": preference, "weight_decay": 0.0, "clip": None},
        **{"peak": RATE, "warmup_steps": 0, "kind": "constant", "evaluate_tokens": 0, "every": 100},
        **dict(zip(("b1", "b2", "eps"), ADAM, strict=True)),
    }
    run = folder / f"run {preference.rpo_alpha}"
    assert train_here(run, [store], **given) == 0
    ours = [line["loss"] for line in lines(run) if line["kind"] == "train"]
    both = {"beta": preference.beta, "rpo_alpha": preference.rpo_alpha}
    theirs = trl_peer.losses(peer, batches, **both, rate=RATE, adam=ADAM)
    largest = np.max(np.abs(np.array(ours) - theirs))
    print(f"{preference}: largest difference of {STEPS} losses {largest:.1e}; {ours[0]:.4f} to {ours[-1]:.4f}")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours[-1] < ours[0]


def test_losses_are_trls(tmp_path: Path) -> None:
    peer, config, base = begun(tmp_path)
    for preference in (Preference(), Preference(beta=0.3, rpo_alpha=1.0)):
        compare(tmp_path, copy.deepcopy(peer), preference, model=config, checkpoint=str(base))


@pytest.mark.full
def test_losses_of_adapters_are_trls(tmp_path: Path) -> None:
    """Adapters that change the model from the start: both sides compare with the base and these."""
    peft = pytest.importorskip("peft")
    peer, config, base = begun(tmp_path)
    lora = Lora(rank=4, alpha=8, targets=("all-linear",), base="float32")
    names = [f"{m.name}_proj" for m in targets(config, lora)]
    torch.manual_seed(0)
    chosen = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    adapted = peft.get_peft_model(peer, chosen)
    held = {key: value.detach().numpy() for key, value in peft.get_peft_model_state_dict(adapted).items()}
    shapes = adapter_shapes(config, lora)
    for m in targets(config, lora):
        own = shapes["layers"][m.group][m.name]
        for part in own:
            own[part] = jnp.asarray(np.stack([held[name(m, i, part)].T for i in range(config.layers)]))
    meta = meta_of(config, adapters.record((str(base), 0), lora))
    save_params(str(tmp_path / "adapters"), 0, shapes, meta)
    given = {"checkpoint": str(base), "adapter": str(tmp_path / "adapters"), "lora": lora, "model": config}
    compare(tmp_path, adapted, Preference(), **given)
