"""GPT-2 that writes headlines, in ONNX Runtime: sampled by temperature, top-k and top-p, and guarded.

Several headlines are drawn for each segment, the likeliest that passes the guard is kept, none where none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from models import manifest
from models.copywriter.gpt2 import Drawn, Gpt2, Sampling
from models.copywriter.prompt import END, LOCALES, TOPIC, Facts, Lexicon, Prompt, brief, fill, guard, spoken_names
from stream.ids import key64
from stream.settings import Settings

GRAPH, TOKENIZER = "gpt2.onnx", "tokenizer.json"


class Copy(NamedTuple):
    text: str
    logprob: float  # of all its tokens and the end, nats


def copywriter_of(settings: Settings) -> Path:
    """The folder of the copywriter that is set. Raises ManifestError where a checkpoint cannot be had or converted."""
    if settings.copywriter is None:
        return settings.models_dir / "copywriter"
    from models.copywriter.checkpoint import copywriter_folder

    return copywriter_folder(settings.copywriter)


class Copywriter:
    """A GPT-2 read from a folder: ours, or one that `models.copywriter.checkpoint` converted.

    Raises ManifestError where a file is missing or changed, ValueError where the graph is of another version.
    """

    def __init__(
        self, folder: Path, *, temperature: float = 0.9, top_k: int = 50, top_p: float = 0.95, max_tokens: int = 50,
        samples: int = 8,
    ) -> None:  # fmt: skip
        self.manifest = manifest.load(folder, "copywriter")
        self._sampling, self._samples = Sampling(temperature, top_k, top_p, max_tokens), samples
        params: dict[str, Any] = self.manifest.params
        # A model that was not trained on a shop's interests has no names for them.
        known = params["names"] or {locale: {} for locale in LOCALES}
        self.lexicon = Lexicon(known, *(params.get(part) for part in ("nouns", "uses", "likes", "turns", "misfits")))
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._reads_placeholders = self._tokenizer.token_to_id(TOPIC) is not None
        self._ends = frozenset(params.get("ends") or [self._tokenizer.token_to_id(END)])
        self._model = Gpt2(folder / GRAPH)

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def write(self, batch: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each; None where no sample passed the guard, or the language is none that it writes.

        All are drawn together, and the same facts and seed give the same headline, whatever else is in the batch.
        """
        copies: list[Copy | None] = [None] * len(batch)
        asked = [at for at, facts in enumerate(batch) if facts.locale in self.lexicon.names]
        told = [self._told(batch[at]) for at in asked]
        drawn = self._model.generate(
            [self._tokenizer.encode(one.prompt).ids for one in told],
            [(seed & 0x7FFFFFFF, key64("|".join((*batch[at][:3], *batch[at].titles))) & 0x7FFFFFFF) for at in asked],
            self._ends, self._sampling, self._samples,
        )  # fmt: skip
        for at, one, texts in zip(asked, told, drawn, strict=True):
            copies[at] = self._best(batch[at], one, texts)
        return copies

    def _told(self, facts: Facts) -> Prompt:
        told = brief(facts, self.lexicon)
        # A model that has no such tokens reads the words themselves; what it writes has to pass the guard all the same.
        return told if self._reads_placeholders else Prompt(fill(told.prompt, told.stands_for), {})

    def _best(self, facts: Facts, told: Prompt, texts: Sequence[Drawn]) -> Copy | None:
        """The likeliest that ended in time and may be shown; where items may be named, of those that name one."""
        good: list[tuple[bool, Copy]] = []
        names = spoken_names(facts)
        for drawn in texts:
            text = fill(self._tokenizer.decode(drawn.ids).strip(), told.stands_for)
            if drawn.ended and guard(text, facts, self.lexicon) is None:
                good.append((any(name in text for name in names), Copy(text, drawn.logprob)))
        # The whole counts, not the mean of its tokens: a slip that is made good by many likely tokens is still a slip.
        best = max(good, key=lambda one: (one[0], one[1].logprob), default=None)
        return None if best is None else best[1]
