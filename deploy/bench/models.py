"""`shopwindow bench models`: GPT-2 and the ranker in ONNX Runtime on one thread, compared with the code they replace.

Texts: tokens/s for GPT-2's smallest shape (124 million random weights) and for the shipped copywriter's shape, in a
process set up like the copywriter's, compared with `transformers.generate` on the same weights. Candidates: 64 texts
scored after one prompt. Ranker: a call of the shipped ranker, compared with the same softmax in numpy. Each round runs
everything once.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from agents.headlines.copywriter_process import HUGE_PAGES
from deploy.bench.common import Figures, Plan, one_core, report, rounded_median
from models.copywriter.gpt2 import Gpt2, Sampling
from models.copywriter.gpt2_graph import build_graph
from models.copywriter.model import GRAPH
from models.ranker.columns import FEATURES
from models.ranker.model import Ranker
from stream.settings import Settings
from stream.types import F32, I32, I64

SECONDS = 300.0
PROMPT_TOKENS, NEW_TOKENS, BATCHES = 24, 32, (1, 8, 32)  # batches: texts at a time
CANDIDATES, CANDIDATE_TOKENS = 64, 12
RANKED, SHOPPERS = (200, 256, 1000), (1, 32, 256)  # candidates per shopper, shoppers per call
SEED = 1
GPT2_124M = {
    "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
SHAPES = ("gpt2_124m", "ours")
NO_TORCH = "torch is not installed, so there is no baseline of transformers: make setup-train installs it"
Weights = dict[str, F32]
Key = tuple[str, ...]  # (what is measured, batch, "ours" or "baseline")
Jobs = dict[Key, Callable[[float], float]]  # each measures for a number of seconds and returns units/s
Generate = Callable[[I64], object]


def random_weights(config: Mapping[str, Any], seed: int) -> Weights:
    """Return untrained weights of `transformers.GPT2Model`, tied: normal with standard deviation 0.02."""
    rng = np.random.default_rng(seed)
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]

    def normal(*shape: int) -> F32:
        return np.float32(0.02) * rng.standard_normal(shape, dtype=np.float32)

    weights = {"wte.weight": normal(config["vocab_size"], width), "wpe.weight": normal(config["n_positions"], width)}
    norms = ["ln_f"]
    for layer in range(config["n_layer"]):
        at = f"h.{layer}."
        norms += [at + "ln_1", at + "ln_2"]
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner), ("mlp.c_proj", inner, width),
        ):  # fmt: skip
            weights |= {f"{at}{name}.weight": normal(rows, columns), f"{at}{name}.bias": normal(columns)}
    for name in norms:
        weights |= {name + ".weight": 1 + normal(width), name + ".bias": normal(width)}
    return weights


def measure(settings: Settings, plan: Plan, large: Mapping[str, Any] = GPT2_124M) -> Figures:
    """Return tokens/s, candidates/s and microseconds per ranker call, with ratios to the baselines.

    For each shape and batch `tokens_per_s` and `ratio` to transformers; without torch the ratio is null and `note`
    gives the reason. For each shape `candidates_per_s`. For the ranker `us` per call and `ratio` to numpy.
    """
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        report(NO_TORCH)
    shipped = Gpt2(settings.models_dir / "copywriter" / GRAPH).shape
    ours = {
        "model_type": "gpt2", "n_layer": shipped.layers, "n_embd": shipped.width, "n_head": shipped.heads,
        "n_positions": shipped.positions, "vocab_size": shipped.vocabulary,
    }  # fmt: skip
    with one_core(), _copywriter_process() as writer:
        jobs: Jobs = {}
        for shape, config in zip(SHAPES, (large, ours), strict=True):
            jobs |= _texts(writer, shape, config, torch)
        jobs |= _rankings(Ranker(settings.models_dir / "ranker"))
        rates: dict[Key, list[float]] = {name: [] for name in jobs}
        for turn in range(plan.rounds):
            for name, rate in jobs.items():
                rates[name].append(rate(plan.round_seconds / len(jobs)))
            report(f"round {turn + 1}/{plan.rounds}")
    found: Figures = {}
    for shape in SHAPES:
        found[shape] = {
            str(b): _with_ratio(rates, (shape, str(b)), "tokens_per_s", "transformers_per_s") for b in BATCHES
        }
        found[shape]["candidates_per_s"] = rounded_median(rates[shape, "score", "ours"])
    found["ranker"] = {
        str(n): {str(b): _microseconds(rates, ("ranker", str(n), str(b))) for b in SHOPPERS} for n in RANKED
    }
    return {**found, "features": len(FEATURES), "rounds": plan.rounds, "note": None if torch else NO_TORCH}


def table(figures: Figures) -> str:
    lines = [f"{'texts':12} {'batch':>8} {'tokens/s':>10} {'transformers':>13}"]
    for shape in SHAPES:
        for b in BATCHES:
            row = figures[shape][str(b)]
            ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}x"
            lines.append(f"{shape:12} {b:8d} {row['tokens_per_s']:10,.0f} {ratio:>13}")
        lines.append(f"{shape:12} {CANDIDATES} candidates scored: {figures[shape]['candidates_per_s']:,.0f}/s")
    lines.append(f"{'ranker':12} {'batch':>8} {'us/call':>10} {'numpy':>13}")
    for n in RANKED:
        for b in SHOPPERS:
            row = figures["ranker"][str(n)][str(b)]
            lines.append(f"{f'{n} ranked':12} {b:8d} {row['us']:10,.1f} {row['ratio']:12.1f}x")
    return "\n".join([*lines, *([figures["note"]] if figures["note"] else [])])


def _rate(units: float, call: Callable[[], object], seconds: float) -> float:
    """Return units/s over calls for `seconds`, at least one; the first call is only timed if it takes all of it."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > seconds:
        return units / first
    calls = max(1, int((seconds - first) / first))
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return units * calls / (time.perf_counter() - start)


@contextmanager
def _copywriter_process() -> Iterator[Executor]:
    """A process with the environment of the copywriter's process."""
    added = {name: value for name, value in HUGE_PAGES.items() if name not in os.environ}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writer:
        os.environ.update(added)
        try:
            writer.submit(os.getpid).result()  # the process has started
        finally:
            for name in added:
                del os.environ[name]
        yield writer


_models: dict[str, Gpt2] = {}  # by shape, in the copywriter's process


def _load(shape: str, config: Mapping[str, Any]) -> int:
    """Build a model with random weights in this process and return how many weights it has."""
    weights = random_weights(config, SEED)
    _models[shape] = Gpt2(build_graph(config, weights))
    return sum(w.size for w in weights.values())


def _write_rate(shape: str, rows: int, seconds: float) -> float:
    """Return tokens/s for `rows` texts at a time."""
    return _rate(
        rows * NEW_TOKENS,
        lambda: _generate(_models[shape], _random_tokens(_models[shape].shape.vocabulary, rows, PROMPT_TOKENS)),
        seconds,
    )


def _score_rate(shape: str, seconds: float) -> float:
    """Return scored candidates/s."""
    model = _models[shape]

    def score() -> object:
        prompt = _random_tokens(model.shape.vocabulary, 1, PROMPT_TOKENS)[0].tolist()
        return model.score(prompt, _random_tokens(model.shape.vocabulary, CANDIDATES, CANDIDATE_TOKENS).tolist())

    return _rate(CANDIDATES, score, seconds)


_rng = np.random.default_rng(SEED)


def _random_tokens(vocabulary: int, rows: int, tokens: int) -> I64:
    """Return new tokens for every call, because a model may reuse the prompt that it has just read."""
    return _rng.integers(0, vocabulary, (rows, tokens))


def _texts(writer: Executor, shape: str, config: Mapping[str, Any], torch: bool) -> Jobs:
    size = writer.submit(_load, shape, dict(config)).result()
    baseline = _transformers(config, random_weights(config, SEED)) if torch else None

    def in_writer(rate: Callable[..., float], *arguments: Any) -> Callable[[float], float]:
        return lambda seconds: writer.submit(rate, *arguments, seconds).result()

    def in_this_process(generate: Generate, rows: int) -> Callable[[float], float]:
        return partial(
            _rate, rows * NEW_TOKENS, lambda: generate(_random_tokens(config["vocab_size"], rows, PROMPT_TOKENS))
        )

    jobs: Jobs = {}
    for b in BATCHES:
        jobs[shape, str(b), "ours"] = in_writer(_write_rate, shape, b)
        if baseline is not None:
            jobs[shape, str(b), "baseline"] = in_this_process(baseline, b)
    jobs[shape, "score", "ours"] = in_writer(_score_rate, shape)
    report(f"{shape}: {size / 1e6:.1f} million weights")
    return jobs


def _generate(model: Gpt2, prompts: I64) -> None:
    drawn = model.generate(prompts.tolist(), [(at,) for at in range(len(prompts))], (), Sampling(max_tokens=NEW_TOKENS))
    if any(len(text.ids) != NEW_TOKENS for (text,) in drawn):
        raise RuntimeError(f"a text has {min(len(text.ids) for (text,) in drawn)} tokens, expected {NEW_TOKENS}")


def _transformers(config: Mapping[str, Any], weights: Weights) -> Generate:
    """Return `generate` of transformers, with the same weights and sampling."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    shape = {name: value for name, value in config.items() if name != "model_type"}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    model.transformer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    chosen = Sampling()

    def generate(prompts: I64) -> object:
        ids = torch.from_numpy(prompts)
        with torch.no_grad():
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=chosen.temperature,
                top_k=chosen.top_k, top_p=chosen.top_p, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
            )  # fmt: skip

    return generate


def _rankings(ranker: Ranker) -> Jobs:
    rng = np.random.default_rng(SEED)
    jobs: Jobs = {}
    for n in RANKED:
        for b in SHOPPERS:
            phi = rng.standard_normal((b, n, len(FEATURES)), dtype=np.float32)
            count = np.full(b, n, np.int32)
            if not np.allclose(ranker.score(phi, count), _softmax(phi, count, ranker.theta), atol=1e-5):
                raise RuntimeError(f"the ranker and numpy differ for {b} shoppers with {n} candidates")
            at = ("ranker", str(n), str(b))
            jobs[(*at, "ours")] = partial(_rate, 1.0, partial(ranker.score, phi, count))
            jobs[(*at, "baseline")] = partial(_rate, 1.0, partial(_softmax, phi, count, ranker.theta))
    return jobs


def _softmax(phi: F32, count: I32, theta: F32) -> F32:
    """The result of `Ranker.score`, computed in numpy. (U, C)"""
    offered = np.arange(phi.shape[1]) < count[:, None]
    scores = np.where(offered, (phi @ theta)[:, :, 0], np.float32(-1e30))
    shares: F32 = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares *= offered
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _with_ratio(rates: dict[Key, list[float]], at: Key, ours: str, baseline: str) -> Figures:
    own, base = rates[(*at, "ours")], rates.get((*at, "baseline"))
    return {
        ours: rounded_median(own),
        baseline: None if base is None else rounded_median(base),
        "ratio": None if base is None else rounded_median([a / b for a, b in zip(own, base, strict=True)]),
    }


def _microseconds(rates: dict[Key, list[float]], at: Key) -> Figures:
    rate = _with_ratio(rates, at, "calls_per_s", "numpy_per_s")
    return {
        "us": rounded_median([1e6 / rate["calls_per_s"]]),
        "numpy_us": rounded_median([1e6 / rate["numpy_per_s"]]),
        "ratio": rate["ratio"],
    }
