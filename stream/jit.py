"""numba's `njit`, with a cache that notices when any kernel's source changes.

numba keys its cache by the file that a kernel stands in, and so keeps serving a kernel whose *callee*, in another
file, has changed. We key the whole directory by a hash of every source that holds kernels. Where no directory is
writable, kernels are compiled anew in each process: slower to start, never wrong.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

ROOT = Path(__file__).resolve().parent.parent
KERNEL_FOLDERS = ("stream", "models")
Kernel = Callable[..., Any]


def sources_hash() -> str:
    """Hash of every source file that defines kernels, and of numba's version (16 hex digits)."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for folder in KERNEL_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_bytes()
            if b"@njit" in source:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + source)
    return digest.hexdigest()


def cache_folder(name: str) -> Path | None:
    """The first writable place for what is made once and kept, or None: SHOPWINDOW_CACHE or the checkout, the user's, /tmp."""
    wanted = os.environ.get("SHOPWINDOW_CACHE")
    bases = [Path(wanted) if wanted else ROOT / ".cache", Path(os.path.expanduser("~/.cache/shopwindow"))]
    with suppress(OSError):  # raised where no temporary folder can be written either
        bases.append(Path(tempfile.gettempdir()) / "shopwindow")
    for base in bases:
        path = base / name
        with suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
    return None


def cache_dir() -> Path | None:
    """Where compiled kernels are kept, or None."""
    return cache_folder(f"kernels/{sources_hash()}")


_CACHE = cache_dir()
if _CACHE is not None:
    numba.config.CACHE_DIR = str(_CACHE)


def njit(kernel: Kernel) -> Kernel:
    """Compile `kernel` without the GIL; no fastmath, which would change sums."""
    compiled: Kernel = numba.njit(nogil=True, cache=_CACHE is not None)(kernel)
    return compiled
