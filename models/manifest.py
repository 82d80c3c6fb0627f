"""What a model's folder says of itself: what it is, what it was trained on, how good it was, and the hash of each file.

A model that was copied half, edited, or made for other features would serve nonsense without any error. So a folder is
believed only where every hash agrees, and the version that pages carry is the content itself.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

FILE = "manifest.json"
KINDS = ("ranker", "history", "copywriter")
SCHEMA = 1
LICENCE = "Apache-2.0"
_CHUNK = 1 << 20


class ManifestError(ValueError):
    """A model folder that must not be served; the message says what is wrong and what to do."""


class Versioned(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest of any schema tells."""

    schema: int = SCHEMA


class Manifest(Versioned, frozen=True, kw_only=True):
    name: str
    kind: str  # one of KINDS
    version: str  # "sha256:" + hex, of the files' names and contents and of params: the same model told of otherwise has the same
    created: str  # RFC 3339
    licence: str = LICENCE
    features_hash: str | None = None  # of the features that a ranker was fitted on
    data: str  # what it was trained on, in a sentence
    data_hash: str | None = None  # "sha256:" + hex of the data, where it came from files
    data_range: tuple[str, str] | None = None  # RFC 3339, of its first and last event
    metrics: dict[str, float]  # of a group: "group/metric"
    limits: str = ""  # what it is not good for, in a sentence
    files: dict[str, str]  # name within the folder -> sha256 hex
    params: dict[str, Any]
    recipe: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET  # what made it: models.train.recipe; not of every model
    seal: str = ""  # sha256 hex of all the rest


class Source(NamedTuple):
    """Where the data of a training came from."""

    hash: str | None = None
    range: tuple[str, str] | None = None


UNKNOWN = Source()


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
    licence: str = LICENCE,
    limits: str = "",
    source: Source = UNKNOWN,
    recipe: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET,
) -> Manifest:
    """Hash every file of `folder` (not of its subfolders) and write manifest.json beside them.

    `metrics`, `params` and `recipe` are JSON values. Raises ManifestError for an unknown kind or a folder without files.
    """
    if kind not in KINDS:
        raise ManifestError(f"a model's kind is one of {', '.join(KINDS)}, not {kind!r}")
    files = {
        path.name: _sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != FILE and not path.name.startswith(".")
    }
    if not files:
        raise ManifestError(f"{folder} holds no files; write the model's files before its manifest")
    manifest = Manifest(
        name=name, kind=kind, version=_version(files, params), created=created, licence=licence, features_hash=features_hash, data=data,
        data_hash=source.hash, data_range=source.range, metrics=metrics, limits=limits, files=files, params=params, recipe=recipe,
    )  # fmt: skip
    # As it will be read: a metric that is a whole number is read as 5.0.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    manifest = msgspec.structs.replace(manifest, seal=_seal(manifest))
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / FILE).write_bytes(text + b"\n")
    return manifest


def load(folder: Path, kind: str) -> Manifest:
    """The manifest of `folder`, once every file that it lists has been found and hashed alike.

    Raises ManifestError where the folder, its manifest or a file is missing, changed, or of another kind.
    """
    manifest = _read(folder)
    if manifest.kind != kind:
        raise ManifestError(f"{folder} holds a {manifest.kind}, not a {kind}; point to a folder with a {kind} in it")
    again = f"train it again or restore the folder from where it was copied ({manifest.name}, {manifest.version[:19]})"
    for name, expected in manifest.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise ManifestError(f"{folder / FILE} lists {name!r}, which is no plain file name; {again}")
        path = folder / name
        if not path.is_file():
            raise ManifestError(f"{path} is missing, its manifest lists it; {again}")
        found = _sha256(path)
        if found != expected:
            raise ManifestError(
                f"{path} has changed since its manifest was written (sha256 {found[:12]}, expected {expected[:12]}); {again}"
            )
    if manifest.version != _version(manifest.files, manifest.params) or manifest.seal != _seal(manifest):
        raise ManifestError(f"{folder / FILE} was edited: its version or seal is not that of what it says; {again}")
    return manifest


def kind_of(folder: Path) -> str:
    """What the folder says that it holds. Raises ManifestError where it holds no model."""
    return _read(folder).kind


def list_models(models_dir: Path) -> list[Manifest]:
    """The verified manifests of the folders right below `models_dir` that have one, sorted by kind and name.

    Raises ManifestError where `models_dir` cannot be read or one of them is broken.
    """
    if not models_dir.is_dir():
        raise ManifestError(f"{models_dir} is no folder; set SHOPWINDOW_MODELS_DIR to one with models in it")
    folders = [path.parent for path in sorted(models_dir.glob(f"*/{FILE}"))]
    return sorted((load(path, kind_of(path)) for path in folders), key=lambda m: (m.kind, m.name, m.version))


def _read(folder: Path) -> Manifest:
    path = folder / FILE
    try:
        content = path.read_bytes()
        if (schema := msgspec.json.decode(content, type=Versioned).schema) > SCHEMA:
            raise ManifestError(
                f"{path} is of schema {schema}, this program reads up to {SCHEMA}: a newer one wrote it; update"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} holds no model: {FILE} is missing; train one or point to another folder"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}; mend its permissions") from None
    except msgspec.DecodeError as error:
        raise ManifestError(f"{path} is not a manifest: {error}; train the model again") from None
    if manifest.kind not in KINDS:
        raise ManifestError(f"{path} says kind {manifest.kind!r}, expected one of {', '.join(KINDS)}")
    return manifest


def _seal(manifest: Manifest) -> str:
    told = msgspec.json.encode(msgspec.structs.replace(manifest, seal=""), order="deterministic")
    return hashlib.sha256(told).hexdigest()


def _version(files: dict[str, str], params: dict[str, Any]) -> str:
    content = msgspec.json.encode({"files": files, "params": params}, order="deterministic")
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
