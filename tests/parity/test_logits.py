"""Our logits are transformers' within 1e-4 in float32, for every kind of model that we read."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

from tests.parity.hf_peer import both_logits, convert, randomise  # noqa: E402

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "attn_implementation": "eager",
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}


def peer(kind: str) -> "torch.nn.Module":
    """A tiny random model of a family."""
    llama = lambda **more: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **more}))  # noqa: E731
    made = {
        "llama3": lambda: llama(head_dim=8, rope_parameters=PLAIN, tie_word_embeddings=False),
        "llama31": lambda: llama(head_dim=64, rope_parameters=SCALED, tie_word_embeddings=False),
        "llama32": lambda: llama(head_dim=16, rope_parameters={**SCALED, "factor": 32.0}, tie_word_embeddings=True),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                **{**SIZES, "rms_norm_eps": 1e-6},
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=True,
            )
        ),
    }
    return randomise(made[kind](), seed=len(kind))


@pytest.mark.parametrize("attention", ["reference", "blocked"])
@pytest.mark.parametrize("kind", ["llama3", "llama31", "llama32", "qwen2"])
def test_tiny_models(kind: str, attention: str) -> None:
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 37))
    ours, theirs = both_logits(peer(kind), tokens, attention=attention, attention_block=16)
    assert np.ptp(theirs) > 3, "the peer's logits are too flat to compare"
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", [8192 - 20, 8192, 12345, 100000])
def test_positions_beyond_the_old_context(start: int) -> None:
    """Llama 3.1 stretches long wavelengths: wrong scaling shows only far from position 0."""
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (1, 64))
    # Documents begin at 0, then jump: distances inside a row reach as far as the positions do.
    positions = np.concatenate([np.arange(24), start + np.arange(40)])[None].astype(np.int32)
    ours, theirs = both_logits(peer("llama31"), tokens, positions)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_scaling_is_seen_beyond_the_old_context() -> None:
    """The comparison above can fail: without the scaling the logits differ by far more than its tolerance."""
    model = peer("llama31")
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (1, 64))
    positions = np.concatenate([np.arange(24), 12345 + np.arange(40)])[None].astype(np.int32)
    _, with_scaling = both_logits(model, tokens, positions)
    plain = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, "head_dim": 64, "rope_parameters": PLAIN, "tie_word_embeddings": False})
    )
    plain.load_state_dict(model.state_dict())
    ours, _ = both_logits(plain.eval(), tokens, positions)
    assert np.abs(ours - with_scaling).max() > 1e-2


@pytest.mark.slow
def test_a_whole_row_past_8192() -> None:
    """8,400 consecutive positions in one row, through the blocked kernel (scores are never whole)."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{**SIZES, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            rope_parameters=SCALED,
        )
    )
    tokens = np.random.default_rng(2).integers(0, SIZES["vocab_size"], (1, 8400))
    ours, theirs = both_logits(randomise(model, 3), tokens, attention="blocked", attention_block=1024)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_smollm2(smollm2_dir) -> None:
    """The real SmolLM2-135M on real text in three languages: as near the exact logits as transformers' float32 is.

    Its logits span 63 units, and transformers' own float32 lies up to 1e-4 from its float64 (measured 9.7e-05): a bound
    of 1e-4 between two float32 programs would test the order of sums. The exact logits decide instead.
    """
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_dir)
    text = (
        "Aspirin irreversibly inhibits cyclooxygenase and so keeps platelets from clumping. "
        "高血圧の治療では、食塩を減らし、適度な運動を続けることが勧められる。"
        "糖尿病患者应定期检查血糖、血压和肾功能。"
    )
    tokens = np.asarray([tokenizer.encode(text)])
    with torch.no_grad():
        exact = load(smollm2_dir, dtype=torch.float64).eval()(torch.tensor(tokens)).logits.numpy()
    ours, theirs = both_logits(load(smollm2_dir, dtype=torch.float32).eval(), tokens, attention="blocked")
    assert np.ptp(exact) > 20
    root_mean_square = [np.sqrt(np.mean((logits - exact) ** 2)) for logits in (ours, theirs)]
    assert root_mean_square[0] < min(3e-5, 2.5 * root_mean_square[1]), root_mean_square
    assert np.mean(np.abs(ours - theirs) <= 1e-4) > 0.995
    np.testing.assert_allclose(ours, exact, atol=2.5e-4, rtol=0)
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_config_is_read_as_transformers_writes_it() -> None:
    config, params = convert(peer("qwen2"))
    assert config.qkv_bias and config.tied_embeddings and config.rope_theta == 1000000.0
    assert params["layers"]["attention"]["k_bias"].shape == (3, 2, 8)
