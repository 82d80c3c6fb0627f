"""The manifest of a model's folder: its kind, its training data, its metrics, and the hash of each file.

A model that was half copied, edited, or fitted on other features would serve nonsense without an error. So a folder is
loaded only if every hash matches, and the version that pages carry is a hash of the content.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

FILE = "manifest.json"
KINDS = ("ranker", "history", "copywriter")
SCHEMA = 2  # 2 added `fitted_with`
LICENCE = "Apache-2.0"
_CHUNK_BYTES = 1 << 20
log = logging.getLogger(__name__)


class ManifestError(ValueError):
    """A model folder that must not be served. The message states what is wrong and what to do."""


class ManifestHead(msgspec.Struct, frozen=True, kw_only=True):
    """The field that manifests of every schema have."""

    schema: int = SCHEMA


class FittedWith(msgspec.Struct, frozen=True, kw_only=True):
    """Where the features that a ranker was fitted on came from."""

    history: str | None  # version of the history model that serves beside it; None: fitted without one
    signals: str  # `models.ranker.columns.signals_hash` of the item signals


class Manifest(ManifestHead, frozen=True, kw_only=True):
    """Content of manifest.json."""

    name: str
    kind: str  # one of KINDS
    # "sha256:" + hex of the files' names and contents and of params. Equal for models that differ only in other fields.
    version: str
    created: str  # RFC 3339
    licence: str = LICENCE
    features_hash: str | None = None  # of the features that a ranker was fitted on
    fitted_with: FittedWith | msgspec.UnsetType = msgspec.UNSET  # of a ranker; not in manifests of schema 1
    data: str  # the training data, in a sentence
    data_hash: str | None = None  # "sha256:" + hex of the data, None if it did not come from files
    data_range: tuple[str, str] | None = None  # RFC 3339, of its first and last event
    metrics: dict[str, float]  # metrics of a group are named "group/metric"
    limits: str = ""  # known limits of the model, in a sentence
    files: dict[str, str]  # name within the folder -> sha256 hex
    params: dict[str, Any]
    # How to train the model again, see models.train.recipe. Not every model has one.
    recipe: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    seal: str = ""  # sha256 hex of all other fields


class Source(NamedTuple):
    """Origin of training data: hash of its files, and the times of its first and last event (RFC 3339)."""

    hash: str | None = None
    range: tuple[str, str] | None = None


UNKNOWN_SOURCE = Source()
UNKNOWN_FEATURES = msgspec.UNSET  # of a ranker: it is not known where its features came from


def write(
    folder: Path,
    *,
    name: str,
    kind: str,
    created: str,
    data: str,
    metrics: dict[str, float],
    params: dict[str, Any],
    features_hash: str | None = None,
    fitted_with: FittedWith | msgspec.UnsetType = UNKNOWN_FEATURES,
    licence: str = LICENCE,
    limits: str = "",
    source: Source = UNKNOWN_SOURCE,
    recipe: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET,
) -> Manifest:
    """Hash every file of `folder`, without subfolders, and write manifest.json beside them.

    `metrics`, `params` and `recipe` are JSON values. Raises ManifestError if the kind is unknown or the folder empty.
    """
    if kind not in KINDS:
        raise ManifestError(f"the kind of a model is one of {', '.join(KINDS)}, not {kind!r}")
    files = {
        path.name: _sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != FILE and not path.name.startswith(".")
    }
    if not files:
        raise ManifestError(f"{folder} contains no files; write the model's files before its manifest")
    manifest = Manifest(
        name=name,
        kind=kind,
        version=_version(files, params),
        created=created,
        licence=licence,
        features_hash=features_hash,
        fitted_with=fitted_with,
        data=data,
        data_hash=source.hash,
        data_range=source.range,
        metrics=metrics,
        limits=limits,
        files=files,
        params=params,
        recipe=recipe,
    )
    # Seal the manifest as it will be read: the metric 5 is read as 5.0.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    manifest = msgspec.structs.replace(manifest, seal=_seal(manifest))
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / FILE).write_bytes(text + b"\n")
    return manifest


def load(folder: Path, kind: str) -> Manifest:
    """Return the manifest of `folder` after checking the hash of every file that it lists.

    Raises ManifestError if the folder, its manifest or a file is missing, changed, or of another kind.
    """
    manifest = _read(folder)
    if manifest.kind != kind:
        raise ManifestError(f"{folder} contains a {manifest.kind}, not a {kind}; name a folder with a {kind}")
    remedy = f"train it again or restore the folder from its origin ({manifest.name}, {manifest.version[:19]})"
    for name, expected in manifest.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise ManifestError(f"{folder / FILE} lists {name!r}, which is not a plain file name; {remedy}")
        path = folder / name
        if not path.is_file():
            raise ManifestError(f"{path} is missing, although the manifest lists it; {remedy}")
        found = _sha256(path)
        if found != expected:
            raise ManifestError(
                f"{path} has changed since its manifest was written (sha256 {found[:12]}, expected {expected[:12]}); "
                f"{remedy}"
            )
    if manifest.version != _version(manifest.files, manifest.params) or manifest.seal != _seal(manifest):
        raise ManifestError(f"{folder / FILE} was edited: its version or seal does not match its content; {remedy}")
    return manifest


def check_history(ranker: Manifest, history: Manifest | None) -> None:
    """Raise ManifestError if a ranker was fitted with another history model than the one that serves, or without one.

    The scores of the history model are features of the ranker, and mean something else in every model. No model
    (None) is allowed: those features are then zero, as they are under load. This is logged, and so is a ranker whose
    manifest does not name its history model.
    """
    fitted = ranker.fitted_with if ranker.fitted_with is msgspec.UNSET else ranker.fitted_with.history
    if history is None:
        if isinstance(fitted, str):
            log.warning(
                "the ranker %s was fitted with the history model %s, which does not serve: features from it are zero",
                ranker.version[:19], fitted[:19],
            )  # fmt: skip
    elif fitted is msgspec.UNSET:
        log.warning(
            "the manifest of the ranker %s does not name the history model that it was fitted with; if that was not "
            "%s, set SHOPWINDOW_HISTORY=false or train both again (shopwindow train all)",
            ranker.version[:19], history.version[:19],
        )  # fmt: skip
    elif fitted != history.version:
        raise ManifestError(
            f"the ranker {ranker.version[:19]} was fitted "
            f"{f'with the history model {fitted[:19]}' if fitted else 'without a history model'}, but the history "
            f"model beside it is {history.version[:19]}, whose scores would be features that the ranker does not know; "
            "train both (shopwindow train all), restore the ranker's own history model, or set SHOPWINDOW_HISTORY=false"
        )


def kind_of(folder: Path) -> str:
    """Kind of the model in `folder`. Raises ManifestError if there is no model."""
    return _read(folder).kind


def list_models(models_dir: Path) -> list[Manifest]:
    """Verified manifests of the folders directly below `models_dir`, sorted by kind and name.

    Raises ManifestError if `models_dir` is not a folder or one of the models is invalid.
    """
    if not models_dir.is_dir():
        raise ManifestError(f"{models_dir} is not a folder; set SHOPWINDOW_MODELS_DIR to a folder with models")
    folders = [path.parent for path in sorted(models_dir.glob(f"*/{FILE}"))]
    return sorted((load(path, kind_of(path)) for path in folders), key=lambda m: (m.kind, m.name, m.version))


def _read(folder: Path) -> Manifest:
    path = folder / FILE
    try:
        content = path.read_bytes()
        if (schema := msgspec.json.decode(content, type=ManifestHead).schema) > SCHEMA:
            raise ManifestError(
                f"{path} has schema {schema}, this program reads up to {SCHEMA}: a newer version wrote it; update"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} contains no model: {FILE} is missing; train one or name another folder"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}; correct its permissions") from None
    except msgspec.DecodeError as error:
        raise ManifestError(f"{path} is not a manifest: {error}; train the model again") from None
    if manifest.kind not in KINDS:
        raise ManifestError(f"{path} has kind {manifest.kind!r}, expected one of {', '.join(KINDS)}")
    return manifest


def _seal(manifest: Manifest) -> str:
    content = msgspec.json.encode(msgspec.structs.replace(manifest, seal=""), order="deterministic")
    return hashlib.sha256(content).hexdigest()


def _version(files: dict[str, str], params: dict[str, Any]) -> str:
    content = msgspec.json.encode({"files": files, "params": params}, order="deterministic")
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
