"""`shopwindow bench models`: GPT-2 and the ranker in ONNX Runtime, each on one thread, against what they stand in for.

Texts: of GPT-2's smallest shape (124 million random weights) and of the shipped copywriter's, tokens/s, in a process like
that which writes headlines, against `transformers.generate` with the same weights. Candidates: 64 texts scored after one
prompt. Ranker: a call of the shipped one, against the same softmax in numpy. Rounds go through everything in turn.
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
import numpy.typing as npt

from agents.headlines.copywriter_process import HUGE_PAGES
from deploy.bench.common import Figures, Plan, middle, one_core, say
from models.copywriter.gpt2 import Gpt2, Sampling
from models.copywriter.gpt2_graph import build_graph
from models.copywriter.model import GRAPH
from models.ranker.columns import FEATURES
from models.ranker.model import Ranker
from stream.settings import Settings

SECONDS = 300.0
PROMPT, NEW, BATCHES = 24, 32, (1, 8, 32)  # tokens, tokens, texts at a time
CANDIDATES, CANDIDATE = 64, 12  # texts, tokens of each
RANKED, SHOPPERS = (200, 256, 1000), (1, 32, 256)  # candidates of a shopper, shoppers of a call
SEED = 1
GPT2_124M = {
    "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
SHAPES = ("gpt2_124m", "ours")
NO_TORCH = "torch is not installed, so transformers cannot generate: make setup-train installs it"
Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]
Jobs = dict[tuple[str, ...], Callable[[float], float]]  # what, of which batch, whose -> units/s in so many seconds
Generate = Callable[[npt.NDArray[np.int64]], object]


def random_weights(config: Mapping[str, Any], seed: int) -> Weights:
    """Weights of `transformers.GPT2Model`, tied, as they are before training: normal, of deviation 0.02."""
    rng = np.random.default_rng(seed)
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]

    def normal(*shape: int) -> Floats:
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
    """Rounds of everything. -> JSON figures: for each shape and batch `tokens_per_s` and `ratio` to transformers (null
    without torch, `note` says why), `candidates_per_s` of each shape, and of the ranker `us` a call and `ratio` to numpy."""
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        say(NO_TORCH)
    shipped = Gpt2(settings.models_dir / "copywriter" / GRAPH).shape
    ours = {
        "model_type": "gpt2", "n_layer": shipped.layers, "n_embd": shipped.width, "n_head": shipped.heads,
        "n_positions": shipped.positions, "vocab_size": shipped.vocabulary,
    }  # fmt: skip
    with one_core(), _writer() as writer:
        jobs: Jobs = {}
        for shape, config in zip(SHAPES, (large, ours), strict=True):
            jobs |= _texts(writer, shape, config, torch)
        jobs |= _rankings(Ranker(settings.models_dir / "ranker"))
        rates: dict[tuple[str, ...], list[float]] = {name: [] for name in jobs}
        for turn in range(plan.rounds):
            for name, rate in jobs.items():
                rates[name].append(rate(plan.round_seconds / len(jobs)))
            say(f"round {turn + 1}/{plan.rounds}")
    found: Figures = {}
    for shape in SHAPES:
        found[shape] = {str(b): _against(rates, (shape, str(b)), "tokens_per_s", "transformers_per_s") for b in BATCHES}
        found[shape]["candidates_per_s"] = middle(rates[shape, "score", "ours"])
    found["ranker"] = {
        str(n): {str(b): _microseconds(rates, ("ranker", str(n), str(b))) for b in SHOPPERS} for n in RANKED
    }
    return {**found, "features": len(FEATURES), "rounds": plan.rounds, "note": None if torch else NO_TORCH}


def table(figures: Figures) -> str:
    lines = [f"{'texts':12} {'at once':>8} {'tokens/s':>10} {'transformers':>13}"]
    for shape in SHAPES:
        for b in BATCHES:
            of = figures[shape][str(b)]
            ratio = "-" if of["ratio"] is None else f"{of['ratio']:.1f}x"
            lines.append(f"{shape:12} {b:8d} {of['tokens_per_s']:10,.0f} {ratio:>13}")
        lines.append(f"{shape:12} {CANDIDATES} candidates scored: {figures[shape]['candidates_per_s']:,.0f}/s")
    lines.append(f"{'ranker':12} {'at once':>8} {'us/call':>10} {'numpy':>13}")
    for n in RANKED:
        for b in SHOPPERS:
            of = figures["ranker"][str(n)][str(b)]
            lines.append(f"{f'{n} ranked':12} {b:8d} {of['us']:10,.1f} {of['ratio']:12.1f}x")
    return "\n".join([*lines, *([figures["note"]] if figures["note"] else [])])


def _rate(units: float, call: Callable[[], object], seconds: float) -> float:
    """Units/s of calls in a row, for so long and one at least; the first is not timed where it is short."""
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
def _writer() -> Iterator[Executor]:
    """A process that finds what the one that writes headlines finds in its environment."""
    ours = {name: value for name, value in HUGE_PAGES.items() if name not in os.environ}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writer:
        os.environ.update(ours)
        try:
            writer.submit(os.getpid).result()  # has started
        finally:
            for name in ours:
                del os.environ[name]
        yield writer


_written: dict[str, Gpt2] = {}  # in that process, by shape


def _load(shape: str, config: Mapping[str, Any]) -> int:
    """-> how many weights it has."""
    weights = random_weights(config, SEED)
    _written[shape] = Gpt2(build_graph(config, weights))
    return sum(w.size for w in weights.values())


def _write_rate(shape: str, rows: int, seconds: float) -> float:
    """Tokens/s of so many texts at a time."""
    return _rate(
        rows * NEW, lambda: _draw(_written[shape], _some(_written[shape].shape.vocabulary, rows, PROMPT)), seconds
    )


def _score_rate(shape: str, seconds: float) -> float:
    """Candidates/s."""
    model = _written[shape]

    def score() -> object:
        prompt = _some(model.shape.vocabulary, 1, PROMPT)[0].tolist()
        return model.score(prompt, _some(model.shape.vocabulary, CANDIDATES, CANDIDATE).tolist())

    return _rate(CANDIDATES, score, seconds)


_rng = np.random.default_rng(SEED)


def _some(vocabulary: int, rows: int, tokens: int) -> npt.NDArray[np.int64]:
    """Anew for every call: a prompt that was just read need not be read again."""
    return _rng.integers(0, vocabulary, (rows, tokens))


def _texts(writer: Executor, shape: str, config: Mapping[str, Any], torch: bool) -> Jobs:
    size = writer.submit(_load, shape, dict(config)).result()
    theirs = _transformers(config, random_weights(config, SEED)) if torch else None

    def ours(rate: Callable[..., float], *of: Any) -> Callable[[float], float]:
        return lambda seconds: writer.submit(rate, *of, seconds).result()

    def drawn(generate: Generate, rows: int) -> Callable[[float], float]:
        return partial(_rate, rows * NEW, lambda: generate(_some(config["vocab_size"], rows, PROMPT)))

    jobs: Jobs = {}
    for b in BATCHES:
        jobs[shape, str(b), "ours"] = ours(_write_rate, shape, b)
        if theirs is not None:
            jobs[shape, str(b), "baseline"] = drawn(theirs, b)
    jobs[shape, "score", "ours"] = ours(_score_rate, shape)
    say(f"{shape}: {size / 1e6:.1f} million weights")
    return jobs


def _draw(model: Gpt2, prompts: npt.NDArray[np.int64]) -> None:
    drawn = model.generate(prompts.tolist(), [(at,) for at in range(len(prompts))], (), Sampling(max_tokens=NEW))
    if any(len(text.ids) != NEW for (text,) in drawn):
        raise RuntimeError(f"a text has {min(len(text.ids) for (text,) in drawn)} tokens, expected {NEW}")


def _transformers(config: Mapping[str, Any], weights: Weights) -> Generate:
    """`generate` of transformers with the same weights and sampling."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    shape = {name: value for name, value in config.items() if name != "model_type"}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    model.transformer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    chosen = Sampling()

    def generate(prompts: npt.NDArray[np.int64]) -> object:
        ids = torch.from_numpy(prompts)
        with torch.no_grad():
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=chosen.temperature,
                top_k=chosen.top_k, top_p=chosen.top_p, min_new_tokens=NEW, max_new_tokens=NEW,
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
                raise RuntimeError(f"the ranker and numpy differ for {b} shoppers of {n} candidates")
            at = ("ranker", str(n), str(b))
            jobs[(*at, "ours")] = partial(_rate, 1.0, partial(ranker.score, phi, count))
            jobs[(*at, "baseline")] = partial(_rate, 1.0, partial(_softmax, phi, count, ranker.theta))
    return jobs


def _softmax(phi: Floats, count: npt.NDArray[np.int32], theta: Floats) -> Floats:
    """What `Ranker.score` is to give, in numpy. (U, C)"""
    offered = np.arange(phi.shape[1]) < count[:, None]
    scores = np.where(offered, (phi @ theta)[:, :, 0], np.float32(-1e30))
    shares: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares *= offered
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _against(rates: dict[tuple[str, ...], list[float]], at: tuple[str, ...], ours: str, theirs: str) -> Figures:
    mine, base = rates[(*at, "ours")], rates.get((*at, "baseline"))
    return {
        ours: middle(mine),
        theirs: None if base is None else middle(base),
        "ratio": None if base is None else middle([a / b for a, b in zip(mine, base, strict=True)]),
    }


def _microseconds(rates: dict[tuple[str, ...], list[float]], at: tuple[str, ...]) -> Figures:
    of = _against(rates, at, "calls_per_s", "numpy_per_s")
    return {
        "us": middle([1e6 / of["calls_per_s"]]), "numpy_us": middle([1e6 / of["numpy_per_s"]]), "ratio": of["ratio"],
    }  # fmt: skip
