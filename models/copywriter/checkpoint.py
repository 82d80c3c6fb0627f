"""Convert a Hugging Face GPT-2 checkpoint into a copywriter's model folder.

A checkpoint is converted once, into the cache: graph, tokenizer, manifest. The entry's name is a hash of the
checkpoint and of this code. It is renamed into place when it is complete, so an interrupted conversion leaves nothing
readable.
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

from models import manifest, parity
from models.copywriter import gpt2_graph, gpt2_numpy
from models.copywriter.gpt2_graph import CheckpointError, build_graph
from models.copywriter.model import GRAPH, TOKENIZER
from stream.jit import cache_folder

CONFIG, GENERATION, TOKENIZING = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARY, MERGES, WORD_PIECES = "vocab.json", "merges.txt", "vocab.txt"
WANTED = (CONFIG, GENERATION, TOKENIZING, "*.safetensors", INDEX, TOKENIZER, VOCABULARY, MERGES, WORD_PIECES)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# A model that has not learnt to end a headline ends it with a line or a sentence.
_END_TEXT = re.compile(r"\s*[.!?。！？…]+[\"'”’)]*\s*|[^\n]*\n.*", re.S)
# Spaces to remove between Chinese characters: WordPiece decodes each character as a word.
_CHINESE_GAP = r"(?<=[\u3000-\u9fff\uff00-\uffef]) | (?=[\u3000-\u9fff\uff00-\uffef])"
# Maximum difference between the int8 graph and the float32 checkpoint, in standard deviations of the logits.
MAX_DIFFERENCE_STD = 0.5
LICENCE = "that of the checkpoint"
log = logging.getLogger(__name__)


def checkpoint_folder(named: str) -> Path:
    """Return a folder that `Copywriter` can read: `named` itself if it has a manifest, else the converted checkpoint.

    named: a folder, or a name on the Hugging Face hub such as `gpt2`, from its local cache or downloaded. Raises
    CheckpointError if it is neither, is not a GPT-2 or lacks a file; the message says what to do.
    """
    folder = Path(named).expanduser()
    if not folder.is_dir():
        folder = _from_hub(named)
    return folder if (folder / manifest.FILE).is_file() else _converted(folder, Path(named).name)


def build(folder: Path, precision: gpt2_graph.Precision = "int8") -> bytes:
    """Return the graph of a checkpoint's folder: config.json and safetensors, in one file or shards.

    Raises CheckpointError.
    """
    _require(folder)
    with ExitStack() as stack:
        return build_graph(_json(folder / CONFIG), _Weights(folder, stack), precision)


class _Weights(Mapping[str, npt.NDArray[Any]]):
    """The weights of a folder, each read on access: together they may exceed the memory."""

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
    """Return the tokenizer of a checkpoint.

    It is read from tokenizer.json, or from vocab.json and merges.txt (byte-level BPE), or from vocab.txt (WordPiece, as
    Chinese GPT-2s use). It may put a token before a text, but none after it. Raises CheckpointError if there is none.
    """
    options = _json(folder / TOKENIZING) if (folder / TOKENIZING).is_file() else {}
    if (folder / TOKENIZER).is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{folder / TOKENIZER} is not a tokenizer: {error}; copy it again") from None
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        from tokenizers.implementations import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(str(folder / VOCABULARY), str(folder / MERGES))._tokenizer
    elif (folder / WORD_PIECES).is_file():
        from tokenizers.implementations import BertWordPieceTokenizer

        lower = bool(options.get("do_lower_case", True))
        tokenizer = BertWordPieceTokenizer(str(folder / WORD_PIECES), lowercase=lower)._tokenizer
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer: expected {TOKENIZER}, or {VOCABULARY} and {MERGES}, or {WORD_PIECES}; copy it "
            "from the source of the checkpoint"
        )
    if json.loads(tokenizer.to_str())["model"]["type"] == "WordPiece":
        tokenizer.decoder = decoders.Sequence(
            [decoders.WordPiece(prefix="##"), decoders.Fuse(), decoders.Replace(Regex(_CHINESE_GAP), "")]
        )
        _omit_end_token(tokenizer)
    return tokenizer


def _omit_end_token(tokenizer: Tokenizer) -> None:
    """Put [CLS] before a text, as in training, but no [SEP] after it: the text continues."""
    from tokenizers.processors import TemplateProcessing

    first = tokenizer.token_to_id("[CLS]")
    if first is not None:
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", first)])


def _end_tokens(folder: Path, tokenizer: Tokenizer, vocabulary: int) -> list[int]:
    """Return the tokens that end a headline."""
    candidates: list[Any] = []
    for name in (GENERATION, CONFIG):
        if (folder / name).is_file():
            eos = _json(folder / name).get("eos_token_id")
            candidates += eos if isinstance(eos, list) else [eos]
    candidates += [tokenizer.token_to_id(name) for name in ("<|endoftext|>", "[SEP]", "</s>")]
    ends = {at for at in candidates if isinstance(at, int) and at < vocabulary}
    ends |= {
        at for at in range(min(vocabulary, tokenizer.get_vocab_size())) if _END_TEXT.fullmatch(tokenizer.decode([at]))
    }
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
        pass  # missing or damaged
    log.warning("converting %s for ONNX Runtime; this happens once, about 10 s for 124 million weights", folder)
    with tempfile.TemporaryDirectory(dir=base, prefix=".making-") as temporary:
        complete = Path(temporary) / key
        _convert(folder, name, complete)
        shutil.rmtree(place, ignore_errors=True)
        try:
            complete.rename(place)
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
            f"the tokenizer of {folder} has {tokenizer.get_vocab_size()} tokens and the model {vocabulary}; they "
            f"are not "
            "from the same checkpoint"
        )
    (out / GRAPH).write_bytes(graph)
    tokenizer.save(str(out / TOKENIZER))
    _write_parity_case(folder, config, out)
    manifest.write(
        out, name=name, kind="copywriter", created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=f"converted from the checkpoint {name}", metrics={}, licence=LICENCE,
        params={"ends": _end_tokens(folder, tokenizer, vocabulary), "names": {}},
    )  # fmt: skip


def _write_parity_case(folder: Path, config: Mapping[str, Any], out: Path) -> None:
    """Write the reference of the parity test: float64 log-probabilities of texts after a common prefix."""
    with ExitStack() as stack:
        ids = np.random.default_rng(1).integers(0, config["vocab_size"], (4, min(12, config["n_positions"])))
        prefix = ids.shape[1] // 2
        ids[:, :prefix] = ids[0, :prefix]
        logits = gpt2_numpy.logits(config, _Weights(folder, stack), ids)[:, prefix - 1 : -1]
    logprob = np.take_along_axis(gpt2_numpy.log_softmax(logits), ids[:, prefix:, None], axis=2)[..., 0]
    bound = MAX_DIFFERENCE_STD * float(logits.std())
    parity.write_logprobs(out, ids[0, :prefix], ids[:, prefix:], logprob.astype(np.float32), bound)


def _key(folder: Path) -> str:
    """Return a hash of the checkpoint's files and of the code that converts them (32 hex digits)."""
    digest = hashlib.sha256()
    sources = [Path(gpt2_graph.__file__), Path(gpt2_numpy.__file__), Path(__file__)]
    files = [path for name in WANTED for path in sorted(folder.glob(name)) if path.is_file()]
    for path in [*sources, *files]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _require(folder: Path) -> None:
    """Raise CheckpointError if the folder is not a complete GPT-2 checkpoint; the message names the missing files."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is not a model: it has neither {manifest.FILE} (a copywriter of `shopwindow train "
            f"copywriter`) nor "
            f"{CONFIG} (a Hugging Face checkpoint); name a folder that has one of them"
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
                "; pytorch_model.bin is not read, because it can run any program: convert it where torch is installed, "
                "GPT2LMHeadModel.from_pretrained(...).save_pretrained(...)"
                if pickled
                else "; download the complete checkpoint again"
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
        raise CheckpointError(f"{path} does not hold a JSON object; copy it again")
    return found


def _from_hub(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{name} is not a folder; name one with a copywriter or a Hugging Face GPT-2 in it")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = list(WANTED)
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        _require(folder)
        return folder
    except (LocalEntryNotFoundError, CheckpointError):
        pass  # not in the local cache, or incomplete
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub, its client and the network raise a dozen kinds without a common base
        raise CheckpointError(
            f"'{name}' is not a folder, and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:120]}); "
            f"check the name and "
            f"the network, or download it elsewhere (hf download {name} --local-dir model) and name that folder"
        ) from None
