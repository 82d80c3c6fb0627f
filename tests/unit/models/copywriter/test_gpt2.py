"""GPT-2 in ONNX Runtime equals the NumPy oracle, and no text depends on its batch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from deploy.bench.models import GPT2_124M, random_weights
from models.copywriter.gpt2 import DEFAULT_SAMPLING, MIN_READ_TOKENS, Gpt2, Sampling, draw
from models.copywriter.gpt2_graph import CheckpointError, build_graph, quantise
from models.copywriter.gpt2_numpy import log_softmax, logits
from tests.harness.gpt2_checkpoints import CONFIG, weights_of

Array = npt.NDArray[Any]


def expected_logprob(config: dict[str, Any], w: dict[str, Array], prompt: list[int], text: list[int]) -> Array:
    """Log-probability of each token of `text`, by the NumPy oracle."""
    logs = log_softmax(logits(config, w, np.array([prompt + text])))[0]
    found: Array = logs[np.arange(len(prompt) - 1, len(prompt) + len(text) - 1), text]
    return found


def some_prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, CONFIG["vocab_size"], n).tolist() for n in lengths]


def seeds_of(prompts: list[list[int]]) -> list[tuple[int, int]]:
    return [(7, at) for at in range(len(prompts))]


@pytest.fixture(scope="module")
def model() -> Gpt2:
    return Gpt2(build_graph(CONFIG, weights_of(CONFIG)))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"activation_function": "relu", "n_inner": 96}, {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-3},
        {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_supported_option_equals_the_oracle(options: dict[str, Any]) -> None:
    config = CONFIG | options
    w = weights_of(config)
    if not options.get("tie_word_embeddings", True):
        w["lm_head.weight"] = weights_of(config, 2)["wte.weight"]
    prompt, *candidates = some_prompts(19, 1, 7, 12)
    for precision, most in (("float32", 1e-4), ("int8", 0.6)):
        scored = Gpt2(build_graph(config, w, precision)).score(prompt, candidates)  # type: ignore[arg-type]
        for candidate, found in zip(candidates, scored, strict=True):
            expected = expected_logprob(config, w, prompt, candidate)
            assert np.abs(found - expected).max() < most, (precision, found, expected)


@pytest.mark.slow
def test_int8_is_close_to_the_oracle_at_a_quarter_of_the_size() -> None:
    """With the full width of GPT-2 but two of its twelve layers, because all take too long; costs are linear."""
    config = GPT2_124M | {"n_layer": 2}
    w = random_weights(config, 1)
    graph = build_graph(config, w)
    assert len(graph) < 0.29 * 4 * sum(value.size for value in w.values())
    (prompt, candidate) = some_prompts(6, 5)
    (found,) = Gpt2(graph).score(prompt, [candidate])
    spread = logits(config, w, np.array([prompt + candidate])).std()
    expected = expected_logprob(config, w, prompt, candidate)
    assert np.abs(found - expected).max() < 0.25 * spread, (found, expected)


def test_all_matrix_weights_are_int8_and_the_embedding_is_the_head() -> None:
    graph = onnx.load_from_string(build_graph(CONFIG, weights_of(CONFIG))).graph
    products = [node for node in graph.node if node.op_type.startswith("MatMul")]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert len(products) == 4 * CONFIG["n_layer"] + 1
    assert {weights[node.input[1]].dtype for node in products} == {np.dtype(np.int8)}
    assert [name for name, value in weights.items() if value.shape == (64, 311)] == ["head.weight"]
    assert [name for name, value in weights.items() if value.ndim > 1 and value.dtype != np.int8] == ["wpe"]


def test_a_quantised_weight_is_within_half_a_step() -> None:
    weight = np.random.default_rng(1).standard_normal((50, 9)).astype(np.float32)
    weight[:, 4] = 0
    small, scale = quantise(weight)
    assert np.abs(small).max() == 63, "eight bits would overflow on AVX2"
    assert (np.abs(small * scale - weight) <= 0.5001 * scale).all()


@pytest.mark.slow
def test_a_text_is_the_same_to_the_bit_in_any_batch(model: Gpt2) -> None:
    """Prompts of all lengths, some with a common prefix, and more than the cache has rows."""
    beginning, *prompts = some_prompts(9, 24, 17, 1, 2, 40, 3)
    prompts += [beginning, *(beginning + more for more in some_prompts(1, 2, 3, 9)), prompts[0]]
    ends = range(0, CONFIG["vocab_size"], 13)
    together = model.generate(prompts, seeds_of(prompts), ends, samples=5)
    for at, prompt in enumerate(prompts):
        fresh = Gpt2(build_graph(CONFIG, weights_of(CONFIG)))
        assert fresh.generate([prompt], [(7, at)], ends, samples=5) == [together[at]], f"prompt {at}"
    assert model.generate(prompts[::-1], seeds_of(prompts)[::-1], ends, samples=5)[::-1] == together
    assert len({text.ids for of in together for text in of}) > 50, "texts differ"


def test_a_score_is_the_same_to_the_bit_in_any_batch(model: Gpt2) -> None:
    prompt, *candidates = some_prompts(14, *(1 + at % 12 for at in range(40)))
    together = model.score(prompt, candidates)
    for candidate, found in zip(candidates, together, strict=True):
        assert model.score(prompt, [candidate])[0].tolist() == found.tolist()


def test_a_previous_prompt_does_not_change_the_result(model: Gpt2) -> None:
    """A prompt is read after its common prefix with the previous one, of any length."""
    (prompt, other) = some_prompts(20, 20)
    expected = model.score(prompt, [other])[0].tolist()
    for common in (0, 1, MIN_READ_TOKENS, 10, 18, 19, 20):
        model.score(prompt[:common] + other, [other])
        assert model.score(prompt, [other])[0].tolist() == expected, common
        model.score(prompt[: max(1, common)], [other])
        assert model.score(prompt, [other])[0].tolist() == expected, f"of {common} tokens"


def test_sampled_log_probabilities_equal_scores(model: Gpt2) -> None:
    """Without top-k and top-p, sampling and scoring give the same log-probability."""
    (prompt,) = some_prompts(8)
    everything = Sampling(temperature=1.0, top_k=CONFIG["vocab_size"], top_p=1.0, max_tokens=9)
    (texts,) = model.generate([prompt], [(1,)], (), everything, samples=3)
    for text, scores in zip(texts, model.score(prompt, [text.ids for text in texts]), strict=True):
        assert not text.ended and len(text.ids) == 9
        assert text.logprob == pytest.approx(float(scores.sum()), abs=1e-3)


def test_an_end_token_ends_a_text_and_is_not_the_first(model: Gpt2) -> None:
    prompts = some_prompts(5, 6, 7)
    ends = set(range(0, CONFIG["vocab_size"], 2))
    texts = [text for of in model.generate(prompts, seeds_of(prompts), ends, samples=8) for text in of]
    assert all(text.ids and not ends & set(text.ids) for text in texts)
    assert any(text.ended for text in texts)
    short = model.generate(prompts, seeds_of(prompts), ends, Sampling(max_tokens=1), samples=2)
    assert all(len(text.ids) == 1 and not text.ended for of in short for text in of)


def test_a_long_prompt_gets_the_remaining_positions(model: Gpt2) -> None:
    (prompt,) = some_prompts(75)
    ((text,),) = model.generate([prompt], [(1,)], ())
    assert (len(text.ids), text.ended) == (5, False)


def test_errors_name_the_length_of_the_prompt(model: Gpt2) -> None:
    (prompt,) = some_prompts(80)
    with pytest.raises(ValueError, match="a prompt of 80 tokens and 1 more are too many, at most 80"):
        model.generate([prompt], [(1,)], ())
    with pytest.raises(ValueError, match="a prompt of 80 tokens and 2 more are too many"):
        model.score(prompt, [[1, 2, 3]])
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        model.generate([[]], [(1,)], ())
    with pytest.raises(ValueError, match="a candidate has no tokens"):
        model.score([1], [[]])
    assert model.generate([], [], ()) == [] and model.score([1], []) == []


def test_sampling_respects_top_k_top_p_and_shares() -> None:
    chances = (np.arange(10_000) + 0.5) / 10_000
    logits = np.tile(np.log([0.5, 0.25, 0.15, 0.1]).astype(np.float32), (len(chances), 1))
    places, logprobs = draw(logits, chances, Sampling(temperature=1.0, top_p=0.8))
    # 0.5 and 0.25 make up less than 0.8, so the third still counts.
    assert (np.bincount(places) / len(places)).tolist() == pytest.approx([0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9], abs=1e-3)
    assert np.exp(logprobs[[0, -1]]).tolist() == pytest.approx([0.5 / 0.9, 0.15 / 0.9])
    colder, _ = draw(logits, chances, Sampling(temperature=0.5, top_p=1.0))
    assert np.bincount(colder)[0] / len(colder) == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), abs=1e-3)
    barred = logits.copy()
    barred[:, 0] = -np.inf
    assert set(draw(barred, np.array([0.0, *chances[1:-1], 1 - 2**-53]), DEFAULT_SAMPLING)[0].tolist()) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert', expected 'gpt2'"),
        ({"activation_function": "silu"}, "activation_function 'silu', expected one of gelu_new"),
        ({"add_cross_attention": True}, "the decoder of an encoder-decoder model"),
        ({"n_head": 5}, "n_embd 64, expected a multiple of n_head 5"),
        ({"n_layer": 4}, r"the weights lack 'h\.3\.ln_1\.weight'|the weights lack 'h\.3"),
        ({"vocab_size": 300}, r"'wte\.weight' has the shape \(311, 64\), config\.json expects \(300, 64\)"),
    ],
)
def test_errors_of_a_bad_checkpoint_name_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_graph(CONFIG | options, weights_of(CONFIG))


def test_the_graph_of_another_version_is_refused(tmp_path: Path) -> None:
    graph = onnx.load_from_string(build_graph(CONFIG, weights_of(CONFIG)))
    del graph.metadata_props[:]
    (tmp_path / "old.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ValueError, match=r"old\.onnx is not a GPT-2 of this version; train or build it again"):
        Gpt2(tmp_path / "old.onnx")
