"""A copywriter's model folder from whatever names a GPT-2: our own folder, a Hugging Face checkpoint, or its name.

A checkpoint is converted once, into the cache: graph, tokenizer, manifest. The entry is named by what it was made of, and
gets that name when it is whole, so that a conversion that was cut off leaves nothing that could be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders

from models import manifest
from models import parity as reference
from models.copywriter import gpt2_graph, gpt2_numpy
from models.copywriter.gpt2_graph import CheckpointError, build_graph
from models.copywriter.model import GRAPH, TOKENIZER
from stream.jit import cache_folder

CONFIG, GENERATION, TOKENIZING = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARY, MERGES, WORDS = "vocab.json", "merges.txt", "vocab.txt"
WANTED = (CONFIG, GENERATION, TOKENIZING, "*.safetensors", INDEX, TOKENIZER, VOCABULARY, MERGES, WORDS)
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Where a headline ends for a model that was not taught to end it: a line or a sentence.
_ENDS = re.compile(r"\s*[.!?。！？…]+[\"'”’)]*\s*|[^\n]*\n.*", re.S)
# A Chinese sentence in words of one character each has no spaces.
_GAP = r"(?<=[\u3000-\u9fff\uff00-\uffef]) | (?=[\u3000-\u9fff\uff00-\uffef])"
NEAR = 0.5  # of the logits' standard deviation: so far the graph in 8 bits may be from the checkpoint in 32
LICENCE = "that of the checkpoint"
log = logging.getLogger(__name__)


def copywriter_folder(named: str) -> Path:
    """A folder that `Copywriter` takes: `named` itself where it has a manifest, or what a checkpoint is converted to.

    named: a folder, or a name on the Hugging Face hub such as `gpt2`, had from its local cache or downloaded. Raises
    CheckpointError where it is neither, is no GPT-2 or lacks a file; says what to do.
    """
    folder = Path(named).expanduser()
    if not folder.is_dir():
        folder = _from_hub(named)
    return folder if (folder / manifest.FILE).is_file() else _converted(folder, Path(named).name)


def build(folder: Path, precision: gpt2_graph.Precision = "int8") -> bytes:
    """The graph of a checkpoint's folder: config.json and safetensors, whole or in shards. Raises CheckpointError."""
    _require(folder)
    with ExitStack() as stack:
        return build_graph(_json(folder / CONFIG), _Weights(folder, stack), precision)


class _Weights(Mapping[str, npt.NDArray[Any]]):
    """The weights of a folder, each read when it is asked for: as a whole they may be larger than the memory."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self._places: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} cannot be read ({error}); copy or download it again") from None
            self._places |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self._places[name].get_tensor(name)
        return found.astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: tokenizer.json, or byte-level BPE of vocab.json and merges.txt, or the WordPiece of
    BERT of vocab.txt, which Chinese GPT-2s have.

    It may put a token before a text, but none after it. Raises CheckpointError where there is none.
    """
    options = _json(folder / TOKENIZING) if (folder / TOKENIZING).is_file() else {}
    if (folder / TOKENIZER).is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises no other
            raise CheckpointError(f"{folder / TOKENIZER} is no tokenizer: {error}; copy it again") from None
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        from tokenizers.implementations import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(str(folder / VOCABULARY), str(folder / MERGES))._tokenizer
    elif (folder / WORDS).is_file():
        from tokenizers.implementations import BertWordPieceTokenizer

        lower = bool(options.get("do_lower_case", True))
        tokenizer = BertWordPieceTokenizer(str(folder / WORDS), lowercase=lower)._tokenizer
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer: expected {TOKENIZER}, or {VOCABULARY} and {MERGES}, or {WORDS}; copy it from where "
            "the checkpoint is from"
        )
    if json.loads(tokenizer.to_str())["model"]["type"] == "WordPiece":
        tokenizer.decoder = decoders.Sequence(
            [decoders.WordPiece(prefix="##"), decoders.Fuse(), decoders.Replace(Regex(_GAP), "")]
        )
        _begin_only(tokenizer)
    return tokenizer


def _begin_only(tokenizer: Tokenizer) -> None:
    """[CLS] before a text, as it was in training, and no [SEP] after: the text goes on."""
    from tokenizers.processors import TemplateProcessing

    first = tokenizer.token_to_id("[CLS]")
    if first is not None:
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", first)])


def _ends(folder: Path, tokenizer: Tokenizer, vocabulary: int) -> list[int]:
    """Tokens after which there is no headline any more."""
    said: list[Any] = []
    for name in (GENERATION, CONFIG):
        if (folder / name).is_file():
            eos = _json(folder / name).get("eos_token_id")
            said += eos if isinstance(eos, list) else [eos]
    said += [tokenizer.token_to_id(name) for name in ("<|endoftext|>", "[SEP]", "</s>")]
    ends = {at for at in said if isinstance(at, int) and at < vocabulary}
    ends |= {at for at in range(min(vocabulary, tokenizer.get_vocab_size())) if _ENDS.fullmatch(tokenizer.decode([at]))}
    return sorted(ends)


def _converted(folder: Path, name: str) -> Path:
    _require(folder)
    key = _key(folder)
    base = cache_folder("copywriters")
    if base is None:
        raise CheckpointError(
            "no folder can be written to keep the converted model; set SHOPWINDOW_CACHE to one that can"
        )
    place = base / key
    try:
        manifest.load(place, "copywriter")
        return place
    except manifest.ManifestError:
        pass  # not there, or damaged
    log.warning("converting %s for ONNX Runtime; once, it takes about 10 s for 124 million weights", folder)
    with tempfile.TemporaryDirectory(dir=base, prefix=".making-") as made:
        whole = Path(made) / key
        _convert(folder, name, whole)
        shutil.rmtree(place, ignore_errors=True)
        try:
            whole.rename(place)
        except OSError:  # another worker was faster
            manifest.load(place, "copywriter")
    return place


def _convert(folder: Path, name: str, out: Path) -> None:
    out.mkdir()
    config = _json(folder / CONFIG)
    graph = build(folder)
    tokenizer = read_tokenizer(folder)
    vocabulary = int(config["vocab_size"])
    if tokenizer.get_vocab_size() > vocabulary:
        raise CheckpointError(
            f"the tokenizer of {folder} has {tokenizer.get_vocab_size()} tokens and the model {vocabulary}; they are not of "
            "one checkpoint"
        )
    (out / GRAPH).write_bytes(graph)
    tokenizer.save(str(out / TOKENIZER))
    _write_reference(folder, config, out)
    manifest.write(
        out, name=name, kind="copywriter", created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=f"converted from the checkpoint {name}", metrics={}, licence=LICENCE,
        params={"ends": _ends(folder, tokenizer, vocabulary), "names": {}},
    )  # fmt: skip


def _write_reference(folder: Path, config: Mapping[str, Any], out: Path) -> None:
    """What the checkpoint makes, in 64 bits, of a beginning and of texts that may follow it."""
    with ExitStack() as stack:
        ids = np.random.default_rng(1).integers(0, config["vocab_size"], (4, min(12, config["n_positions"])))
        begin = ids.shape[1] // 2
        ids[:, :begin] = ids[0, :begin]
        logits = gpt2_numpy.logits(config, _Weights(folder, stack), ids)[:, begin - 1 : -1]
    logprob = np.take_along_axis(gpt2_numpy.log_softmax(logits), ids[:, begin:, None], axis=2)[..., 0]
    bound = NEAR * float(logits.std())
    reference.write_logprobs(out, ids[0, :begin], ids[:, begin:], logprob.astype(np.float32), bound)


def _key(folder: Path) -> str:
    """Of the checkpoint's files, and of the programs that convert them (32 hex digits)."""
    digest = hashlib.sha256()
    sources = [Path(gpt2_graph.__file__), Path(gpt2_numpy.__file__), Path(__file__)]
    files = [path for name in WANTED for path in sorted(folder.glob(name)) if path.is_file()]
    for path in [*sources, *files]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _require(folder: Path) -> None:
    """Raises CheckpointError, with the names of the files that are missing."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is no model: it has neither {manifest.FILE} (a copywriter of `shopwindow train copywriter`) nor "
            f"{CONFIG} (a Hugging Face checkpoint); name a folder that has"
        )
    kind = _json(folder / CONFIG).get("model_type")
    if kind != "gpt2":
        raise CheckpointError(f"{folder / CONFIG} says model_type {kind!r}, expected 'gpt2'; name a GPT-2")
    missing = [path.name for path in _weight_files(folder) if not path.is_file()]
    if missing:
        pickled = (folder / "pytorch_model.bin").is_file()
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}"
            + (
                "; pytorch_model.bin is not read, as it could run any program: convert it where torch is installed, "
                "GPT2LMHeadModel.from_pretrained(...).save_pretrained(...)"
                if pickled
                else "; download the checkpoint again, whole"
            )
        )


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    shards = set(_json(folder / INDEX).get("weight_map", {}).values())
    return [folder / name for name in sorted(shards) if Path(name).name == name]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no object; copy it again")
    return found


def _from_hub(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{name} is no folder; name one with a copywriter or a Hugging Face GPT-2 in it")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = list(WANTED)
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        _require(folder)
        return folder
    except (LocalEntryNotFoundError, CheckpointError):
        pass  # not at hand, or not whole
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of the hub, of its client, of the network: a dozen kinds with no common one
        raise CheckpointError(
            f"'{name}' is no folder here, and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:120]}); check the name and "
            f"the network, or download it elsewhere (hf download {name} --local-dir model) and name that folder"
        ) from None
