"""What every room may lean on: the error for bad input, files written whole or not at all, one worker at a time."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from safetensors import SafetensorError


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence: what was given, what is wanted.

    The command line prints it and exits with code 2. Line breaks in it become spaces; what no terminal should be sent,
    as in the names of other people's files, becomes its escape.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class RunStopped(RuntimeError):
    """A run ended before its last epoch (a signal, or a loss that is no number); the message says how to go on.

    Args:
        message: one sentence for the user.
        exit_code: what the command line exits with.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not in a list: says the list, and the nearest entry."""
    names = sorted(valid)
    near = get_close_matches(given, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"unknown {kind} {given!r}{hint}; valid: {', '.join(names)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or off it."""
    told = str(error)
    return isinstance(error, MemoryError) or "out of memory" in told or "can't allocate memory" in told


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in place in one step.

    Whoever reads `path` sees the old file or the new one, never a part; a failed write leaves the old one.

    Raises:
        InputError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors' files are for their owner alone
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold a lock, if nobody else does; the system frees it when its holder dies. Gives whether it is held.

    Where there are no locks (on Windows, on some shared file systems) everybody holds it.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without them
            pass
        held = False
        with suppress(FileNotFoundError):  # its last holder just left, and took the file along
            held = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    path.parent.rmdir()  # if nothing came of it


def keep_freed_memory() -> None:
    """Have the C library keep what this process frees, for the next step to use; elsewhere than on Linux, nothing.

    By default it gives large blocks back to the system at once and asks for them anew, page by page, in every training
    step; `make bench` says what that costs.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks outside the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
