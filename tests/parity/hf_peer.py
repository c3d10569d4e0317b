"""transformers' model beside ours: the same weights, logits of both. A helper of the parity tests, no tests itself."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from t_elaine.hf import mapping
from t_elaine.model import llama
from t_elaine.model.config import ComputeConfig, LlamaConfig, from_hf


def convert(peer: torch.nn.Module) -> tuple[LlamaConfig, dict[str, Any]]:
    """Our config and parameters of a transformers model."""
    config = from_hf(peer.config.to_dict())
    weights = {name: tensor.detach().float().numpy() for name, tensor in peer.state_dict().items()}
    layers: dict[str, list[np.ndarray]] = {}
    for tensor in mapping.hf_tensors(config):
        value = mapping.from_hf(tensor.weight, config, lambda box, t=tensor: weights[t.name][tuple(box)])
        layers.setdefault(tensor.weight.path, []).append(value)
    params: dict[str, Any] = {}
    for path, values in layers.items():
        *folders, leaf = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(np.stack(values) if folders[:1] == ["layers"] else values[0])
    return config, params


def randomise(peer: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every tensor, norms and biases too, distinct random values large enough that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in peer.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.3 * noise if "norm" in name else 0.3 * noise if "bias" in name else 0.08 * noise)
    return peer.eval()


def both_logits(
    peer: torch.nn.Module, tokens: np.ndarray, positions: np.ndarray | None = None, **compute: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(ours, theirs), float32 [B,T,V], for whole rows of one document each."""
    config, params = convert(peer)
    settings = ComputeConfig(dtype="float32", **compute)
    ours = llama.logits(
        params, config, settings, jnp.asarray(tokens, jnp.int32), None if positions is None else positions
    )
    with torch.no_grad():
        place = None if positions is None else torch.tensor(positions, dtype=torch.long)
        theirs = peer(input_ids=torch.tensor(tokens, dtype=torch.long), position_ids=place).logits
    return np.asarray(ours), theirs.float().numpy()
