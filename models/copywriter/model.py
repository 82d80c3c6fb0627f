"""The copywriter: GPT-2 in ONNX Runtime that writes headlines.

It samples several headlines for each request (temperature, top-k, top-p) and keeps the likeliest one that the guard
accepts. If the guard accepts none, there is no headline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from models import manifest
from models.copywriter.facts import LOCALES, Facts, allowed_names
from models.copywriter.gpt2 import Gpt2, Sample, Sampling
from models.copywriter.guard import guard
from models.copywriter.lexicon import Lexicon
from models.copywriter.prompt import END, TOPIC, Prompt, build_prompt, fill
from stream.ids import key64
from stream.locales import match_locale

GRAPH, TOKENIZER = "gpt2.onnx", "tokenizer.json"


class Copy(NamedTuple):
    text: str
    logprob: float  # sum over all tokens and the end token, in nats


class Copywriter:
    """A GPT-2 read from a folder: a shipped one, or a checkpoint converted by `models.copywriter.checkpoint`.

    Raises ManifestError if a file is missing or changed, ValueError if the graph has another version.
    """

    def __init__(
        self,
        folder: Path,
        *,
        temperature: float = 0.9,
        top_k: int = 50,
        top_p: float = 0.95,
        max_tokens: int = 50,
        samples: int = 8,
    ) -> None:
        self.manifest = manifest.load(folder, "copywriter")
        self._sampling, self._samples = Sampling(temperature, top_k, top_p, max_tokens), samples
        params: dict[str, Any] = self.manifest.params
        # A converted checkpoint has not learnt names for a shop's interests.
        names = params["names"] or {locale: {} for locale in LOCALES}
        self.lexicon = Lexicon(names, *(params.get(part) for part in ("nouns", "uses", "likes", "turns", "misfits")))
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._has_placeholder_tokens = self._tokenizer.token_to_id(TOPIC) is not None
        self._end_tokens = frozenset(params.get("ends") or [self._tokenizer.token_to_id(END)])
        self._model = Gpt2(folder / GRAPH)

    @property
    def version(self) -> str:
        """Content address of the model, `sha256:...`."""
        return self.manifest.version

    def write(self, batch: Sequence[Facts], seed: int) -> list[Copy | None]:
        """Write one headline for each of the facts; None if the guard accepts no sample or the language is unknown.

        All headlines are sampled together. The same facts and seed give the same headline in any batch.
        """
        copies: list[Copy | None] = [None] * len(batch)
        known = {
            at: facts._replace(locale=locale)
            for at, facts in enumerate(batch)
            if (locale := match_locale(facts.locale, self.lexicon.names)) is not None
        }
        prompts = [self._prompt(facts) for facts in known.values()]
        samples = self._model.generate(
            [self._tokenizer.encode(prompt.text).ids for prompt in prompts],
            [(seed & 0x7FFFFFFF, key64("|".join((*of[:3], *of.titles))) & 0x7FFFFFFF) for of in known.values()],
            self._end_tokens,
            self._sampling,
            self._samples,
        )
        for (at, facts), prompt, drawn in zip(known.items(), prompts, samples, strict=True):
            copies[at] = self._best(facts, prompt, drawn)
        return copies

    def _prompt(self, facts: Facts) -> Prompt:
        """A model without placeholder tokens reads the words themselves.

        The guard checks its headlines all the same.
        """
        prompt = build_prompt(facts, self.lexicon)
        return prompt if self._has_placeholder_tokens else Prompt(fill(prompt.text, prompt.placeholders), {})

    def _best(self, facts: Facts, prompt: Prompt, samples: Sequence[Sample]) -> Copy | None:
        """Return the likeliest complete headline that the guard accepts; one that names an item wins over others."""
        accepted: list[tuple[bool, Copy]] = []
        names = allowed_names(facts)
        for sample in samples:
            text = fill(self._tokenizer.decode(sample.ids).strip(), prompt.placeholders)
            if sample.ended and guard(text, facts, self.lexicon) is None:
                accepted.append((any(name in text for name in names), Copy(text, sample.logprob)))
        # Rank by the sum, not by the mean per token: a slip followed by many likely tokens is still a slip.
        best = max(accepted, key=lambda one: (one[0], one[1].logprob), default=None)
        return None if best is None else best[1]
