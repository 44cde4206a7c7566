"""Processes of the local stack: start them, watch them, remember them on disk, end them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import httpx
import psutil

STOP_TIMEOUT_S = 15.0


class StackError(Exception):
    """The stack cannot start; the message says what to do."""


class ProcessGroup:
    """Named processes, each in a session of its own, remembered in `folder/processes.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "processes.json"
        self._running: dict[str, psutil.Process] = {}

    def attach(self) -> bool:
        """Take over what was started here earlier; if not all of it runs, end the rest and return False."""
        if not self._file.exists():
            return False
        remembered = json.loads(self._file.read_text())
        for name, (pid, started) in remembered.items():
            try:
                process = psutil.Process(pid)
                same = abs(process.create_time() - started) < 1  # and not a recycled id
            except psutil.NoSuchProcess:
                continue
            if same and process.status() != psutil.STATUS_ZOMBIE:
                self._running[name] = process
        if len(self._running) < len(remembered):
            self.stop()
            return False
        return True

    def run(self, name: str, command: Sequence[str], environment: dict[str, str], cwd: Path) -> int:
        """Run a process to its end, as `spawn` does, and return its exit status."""
        status = self.spawn(name, command, environment, cwd).wait()
        del self._running[name]
        return status

    def spawn(
        self, name: str, command: Sequence[str], environment: dict[str, str], cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to `folder/logs/<name>.log`."""
        with _uninterrupted(), self.log_file(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,  # what they write is for this user only
            )
            self._running[name] = psutil.Process(process.pid)
            entries = {name: (p.pid, p.create_time()) for name, p in self._running.items()}
            self._file.write_text(json.dumps(entries))
        return process

    def wait_for(self, name: str, ready: Callable[[], bool], deadline: float) -> None:
        """Wait until `ready` returns true.

        :param deadline: on `time.monotonic`'s clock.
        :raises StackError: the process ended, or was not ready in time.
        """
        while not ready():
            process = self._running.get(name)
            if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise StackError(f"{name} ended while starting.\n{self._log_end(name)}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} did not become ready in time.\n{self._log_end(name)}")
            time.sleep(0.2)

    def memory_mb(self) -> float:
        """Memory of all processes and their children in MB, shared pages counted once (PSS) where possible."""
        total = 0
        for process in self._family():
            try:
                used = process.memory_full_info()
            except psutil.Error:
                continue
            total += getattr(used, "pss", used.uss)
        return total / 2**20

    def stop(self) -> None:
        """End all processes and their children: by SIGTERM, and what remains after STOP_TIMEOUT_S by SIGKILL."""
        with _uninterrupted():
            family = self._family()
            for process in self._running.values():
                _quietly(process.terminate)
            _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
            for process in alive:
                _quietly(process.kill)
            psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
            self._running.clear()
            self._file.unlink(missing_ok=True)

    def log_file(self, name: str) -> Path:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _family(self) -> list[psutil.Process]:
        family: list[psutil.Process] = []
        for process in self._running.values():
            try:
                family += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return family

    def _log_end(self, name: str, lines: int = 15) -> str:
        path = self.log_file(name)
        text = path.read_text(errors="replace").rstrip().split("\n")[-lines:]
        return "\n".join(["  " + line for line in text] + [f"The whole log: {path}"])


def interrupt_on_signals() -> None:
    """Let Ctrl-C and a SIGTERM end this process through its `finally` clauses, also in a background job."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def require_free_port(port: int) -> None:
    """:raises StackError: something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackError(
                f"Port {port} on 127.0.0.1 is in use. Stop what uses it, "
                f"or choose another one: make demo PORT={port + 1}"
            ) from None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends: a process must not be started and then forgotten."""
    held_back: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: held_back.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if held_back:
        raise KeyboardInterrupt


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        action()


@cache
def _http() -> httpx.Client:
    return httpx.Client(timeout=2)  # only one, as creating it takes 0.06 s of CPU


def answers(url: str) -> bool:
    """Whether a server answers there with a success, within 2 seconds."""
    try:
        return _http().get(url).is_success
    except httpx.TransportError:
        return False
