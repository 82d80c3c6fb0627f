"""That the benchmark of the models runs, compares like with like, and says why where it cannot."""

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


def test_every_batch_has_its_figures_and_its_baseline_or_a_reason() -> None:
    figures = models.measure(Settings(), Plan(0.5, rounds=2), large=SMALL)
    torch = importlib.util.find_spec("torch") is not None
    for shape in ("gpt2_124m", "ours"):
        assert figures[shape].keys() == {"1", "8", "32", "candidates_per_s"}
        assert figures[shape]["candidates_per_s"] > 0
        for batch in ("1", "8", "32"):
            of = figures[shape][batch]
            assert of["tokens_per_s"] > 0 and (of["ratio"] is not None) == torch
    assert (figures["note"] is None) == torch
    assert torch or "make setup-train" in figures["note"]
    for candidates in ("200", "256", "1000"):
        for batch in ("1", "32", "256"):
            of = figures["ranker"][candidates][batch]
            assert of["us"] > 0 and of["numpy_us"] > 0 and of["ratio"] > 0
    assert json.loads(json.dumps(figures)) == figures
    told = models.table(figures)
    assert "64 candidates scored" in told and "1000 ranked" in told
    assert torch or told.endswith(figures["note"])


def test_the_shape_that_is_timed_is_that_of_gpt2() -> None:
    """Its first layer, and twelve of them beside the embeddings: 124 million."""
    weights = models.random_weights(models.GPT2_124M | {"n_layer": 1}, 1)
    layer = sum(value.size for name, value in weights.items() if name.startswith("h."))
    rest = sum(value.size for value in weights.values()) - layer
    assert 12 * layer + rest == 124_439_808


def test_a_text_that_ends_too_soon_is_no_measurement() -> None:
    short = Gpt2(build_graph(SMALL | {"n_positions": 40}, models.random_weights(SMALL | {"n_positions": 40}, 1)))
    with pytest.raises(RuntimeError, match="a text has 16 tokens, expected 32"):
        models._draw(short, np.zeros((1, models.PROMPT), np.int64))
