"""numba's `njit` with a compile cache that is keyed by the source of all kernels.

numba keys its own cache by the file that contains a kernel. It therefore keeps a kernel after its callee or constant,
in another file, has changed. We key the whole cache folder by a hash of every file with kernels and of the modules
that they import. If no folder is writable, each process compiles its kernels again: slower to start, never stale.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

ROOT = Path(__file__).resolve().parent.parent
KERNEL_FOLDERS = ("stream", "models")
Kernel = Callable[..., Any]

_IMPORT = re.compile(rb"^\s*from ((?:stream|models)[\w.]*) import (\([^)]*\)|.*)", re.M)


def _imported(source: bytes) -> Iterator[str]:
    """Names of the modules that `source` may import from KERNEL_FOLDERS; names of functions are among them."""
    for module, names in _IMPORT.findall(source):
        yield module.decode()
        yield from (f"{module.decode()}.{name}" for name in re.findall(r"\w+", names.decode()))


def sources_hash() -> str:
    """Hash (16 hex digits) of numba's version, every file with kernels, and the modules that those import.

    Imported modules count because numba compiles the values of their constants into the kernels.
    """
    sources: dict[str, bytes] = {}
    for folder in KERNEL_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            sources[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path.read_bytes()
    hashed: set[str] = set()
    pending = [module for module, source in sources.items() if b"@njit" in source]
    while pending:
        module = pending.pop()
        if module in sources and module not in hashed:
            hashed.add(module)
            pending.extend(_imported(sources[module]))
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for module in sorted(hashed):
        digest.update(module.encode() + b"\0" + sources[module])
    return digest.hexdigest()


def cache_folder(name: str) -> Path | None:
    """First writable folder for cached files called `name`, or None.

    Candidates in order: SHOPWINDOW_CACHE, or .cache of the checkout if it is not set; the user's cache; the temporary
    folder.
    """
    configured = os.environ.get("SHOPWINDOW_CACHE")
    bases = [Path(configured) if configured else ROOT / ".cache", Path(os.path.expanduser("~/.cache/shopwindow"))]
    with suppress(OSError):  # gettempdir raises if no temporary folder is writable
        bases.append(Path(tempfile.gettempdir()) / "shopwindow")
    for base in bases:
        path = base / name
        with suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
    return None


def cache_dir() -> Path | None:
    """Folder of the compiled kernels, or None if no folder is writable."""
    return cache_folder(f"kernels/{sources_hash()}")


_CACHE = cache_dir()
if _CACHE is not None:
    numba.config.CACHE_DIR = str(_CACHE)


def njit(kernel: Kernel) -> Kernel:
    """Compile `kernel` without the GIL. No fastmath: it would change sums."""
    compiled: Kernel = numba.njit(nogil=True, cache=_CACHE is not None)(kernel)
    return compiled
