"""JAX's persistent compilation cache: its folder, who may write it, and its size."""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys

MAX_CACHE_BYTES = 4 << 30
"""Bytes of compiled programs to keep; beyond this, the oldest are deleted."""


def enable_compilation_cache(folder: str | bool) -> None:
    """Sets JAX's compilation cache to a folder.

    JAX_COMPILATION_CACHE_DIR, if set, stays, and JAX_ENABLE_COMPILATION_CACHE=0 disables the cache.  A folder that
    belongs to another user, or that others can write, is not used, with a warning: its content would be executed.

    Args:
        folder: True for `default_folder()`, False for no cache.
    """
    import jax

    if not folder or jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        cache = default_folder() if folder is True else pathlib.Path(folder).absolute()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ownership(cache)
        prune(cache, MAX_CACHE_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        print(f"compiled programs are not kept for the next time: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _check_ownership(folder: pathlib.Path) -> None:
    """Raises a PermissionError if others could have put something into a folder."""
    if not hasattr(os, "getuid"):
        return
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & 0o022:
        raise PermissionError(f"others can write to {folder}: check its content, and run chmod go-w on it")


def default_folder() -> pathlib.Path:
    """The folder for this kind of processor in the user's cache: CPU programs use the processor's own instructions."""
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    processor = f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"
    return caches / "ddpm_jax" / "compiled" / processor


def prune(folder: pathlib.Path, max_bytes: int) -> None:
    """Deletes the oldest files of a folder until the others have at most `max_bytes`; other processes may do so, too.

    JAX's own limit, jax_compilation_cache_max_size, needs the package filelock, locks the folder at each access, and in
    JAX 0.10 fails on programs that were kept without it.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                files.append((path.stat(), path))
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda each: each[0].st_mtime):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
