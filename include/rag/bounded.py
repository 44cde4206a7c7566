"""Read and cut untrusted files in a separate process, so that none of them can crash or block the task.

One process serves all files of a task. It starts with the first file, and again after a file that crashed it.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

MOST_CPU_SECONDS = 120  # CPU time, so that a busy machine reads the same files as an idle one
MOST_MEMORY = 2_000_000_000
MOST_OUTPUT = 50_000_000  # bytes that come back to the task

_SERVE = "import sys; sys.path.insert(0, sys.argv[1]); from include.rag.bounded import serve; serve(int(sys.argv[2]))"


class UnreadableDocument(ValueError):
    """A file that cannot be used. The message names it and says why; a parser leaves out the name."""


class _Process(NamedTuple):
    process: subprocess.Popen[bytes]
    pipe: Connection


_running: dict[int, _Process] = {}  # by the process that started it: a fork of that starts its own
_one_at_a_time = threading.Lock()


def call(name: str, function: str, *arguments: Any) -> Any:
    """Call `function`, such as `include.rag.pdf.read_pdf`, with the bytes or the text of the file `name`.

    :raises UnreadableDocument: the function failed, needed more than MOST_CPU_SECONDS or MOST_MEMORY, or returned more
        than MOST_OUTPUT.
    """
    with _one_at_a_time:
        process, pipe = _started()
        try:
            pipe.send((function, arguments, MOST_CPU_SECONDS, MOST_MEMORY, MOST_OUTPUT))
            found, reason = pipe.recv()
        except (EOFError, OSError):
            del _running[os.getpid()]
            pipe.close()
            code = process.wait()
            reason = f"crashes its parser, or needs too much memory for it (exit code {code})"
            if code == -signal.SIGPROF:
                reason = f"takes more than {MOST_CPU_SECONDS} s to read"
    if reason:
        raise UnreadableDocument(f"{name} {reason}")
    return found


def _started() -> _Process:
    found = _running.get(os.getpid())
    if found is None or found.process.poll() is not None:
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(Path(__file__).parents[2]), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # inherited, it would hold the task's log open
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        found = _running[os.getpid()] = _Process(process, ours)
    return found


def serve(pipe_number: int) -> None:
    """Answer calls until the other end is closed. This is the process's main function."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(pipe_number)
    with suppress(EOFError, OSError):
        while True:
            name, arguments, most_cpu_seconds, most_memory, most_output = pipe.recv()
            with suppress(ValueError, OSError):  # macOS has no such limit
                resource.setrlimit(resource.RLIMIT_AS, (most_memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
            signal.setitimer(signal.ITIMER_PROF, most_cpu_seconds)  # its signal ends the process, in C code too
            answer = pickle.dumps(_answer(name, arguments))
            if len(answer) > most_output:
                answer = pickle.dumps((None, f"makes more than {most_output:,} bytes of text"))
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(answer)


def _answer(name: str, arguments: tuple[Any, ...]) -> tuple[Any, str]:
    """Return what the function returns, or the reason why it fails."""
    module, _, function = name.rpartition(".")
    try:
        return getattr(import_module(module), function)(*arguments), ""
    except UnreadableDocument as error:
        return None, str(error)
    except ImportError as error:
        return None, f"needs a package that is not installed ({error.name})"
    except MemoryError:
        return None, "needs too much memory to read"
    except Exception as error:  # parsers raise all kinds of errors on a broken file
        return None, f"is broken: {type(error).__name__}: {error}"
