"""The benchmark of the models runs end to end, and explains a missing baseline."""

import importlib.util
import json

import numpy as np
import pytest

from deploy.bench import models
from deploy.bench.common import Plan
from models.copywriter.gpt2 import Gpt2
from models.copywriter.gpt2_graph import build_graph
from stream.settings import Settings

SMALL = models.GPT2_124M | {"n_layer": 1, "n_embd": 64, "n_head": 4, "vocab_size": 500}


def test_every_batch_has_figures_and_a_baseline_or_a_reason() -> None:
    figures = models.measure(Settings(), Plan(0.5, rounds=2), large=SMALL)
    has_torch = importlib.util.find_spec("torch") is not None
    assert figures.keys() == {"gpt2_124m", "ours", "ranker", "features", "rounds", "note"}
    for shape in ("gpt2_124m", "ours"):
        assert figures[shape].keys() == {"1", "8", "32", "candidates_per_s"}
        for batch in ("1", "8", "32"):
            assert figures[shape][batch].keys() == {"tokens_per_s", "transformers_per_s", "ratio"}
            assert (figures[shape][batch]["ratio"] is not None) == has_torch
    assert (figures["note"] is None) == has_torch
    assert has_torch or "make setup-train" in figures["note"]
    assert figures["ranker"].keys() == {"200", "256", "1000"}
    for by_batch in figures["ranker"].values():
        assert by_batch.keys() == {"1", "32", "256"}
        assert all(row.keys() == {"us", "numpy_us", "ratio"} for row in by_batch.values())
    assert json.loads(json.dumps(figures)) == figures
    text = models.table(figures)
    assert "64 candidates scored" in text and "1000 ranked" in text
    assert has_torch or text.endswith(figures["note"])


def test_benchmarked_shape_has_the_parameters_of_gpt2() -> None:
    """One layer is built; twelve of them and the embeddings have 124 million parameters."""
    weights = models.random_weights(models.GPT2_124M | {"n_layer": 1}, 1)
    layer = sum(value.size for name, value in weights.items() if name.startswith("h."))
    others = sum(value.size for value in weights.values()) - layer
    assert 12 * layer + others == 124_439_808


def test_texts_shorter_than_expected_stop_the_benchmark() -> None:
    short = Gpt2(build_graph(SMALL | {"n_positions": 40}, models.random_weights(SMALL | {"n_positions": 40}, 1)))
    with pytest.raises(RuntimeError, match="a text has 16 tokens, expected 32"):
        models._generate(short, np.zeros((1, models.PROMPT_TOKENS), np.int64))
