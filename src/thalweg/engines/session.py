"""The connection to Ray: begun on this machine alone, joined by address, or the user's own, which is left as it was."""

from __future__ import annotations

import atexit
import builtins
import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from thalweg.engines.worker import environment
from thalweg.errors import DistributedError, InvalidInput, MissingExtra, explain

LOOPBACK = "127.0.0.1"
OBJECTS = 256 * 2**20
"""Bytes of shared memory for what travels, where Ray is started here; it asks for a third of the memory otherwise."""
PATIENCE = 5.0
"""Seconds in which a cluster must answer at its address."""
LONGEST = 40
"""Characters of a folder in which Ray's sockets still have names that the system allows (107 bytes in all)."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would upload the working directory
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or else it takes an address that other machines reach
}


class Session:
    """A connection that several engines may use; the last one to leave ends it, if it was begun here.

    Args:
        ray: The module.
        own: Whether it was begun here.
        folder: Of its files, to be removed in the end.
        handler: What was done at SIGTERM before Ray took it over.
        printing: The built-in ``print`` before, which Ray replaces for good when a worker's progress bar is shown.
    """

    current: Session | None = None
    lock = threading.RLock()

    def __init__(
        self, ray: Any, own: bool, folder: str | None = None, handler: Any = None, printing: Any = print
    ) -> None:
        self.ray, self.own, self.folder, self.handler, self.printing = ray, own, folder, handler, printing
        self.users = 0
        self.ended = False

    def leave(self) -> None:
        """One engine less."""
        with Session.lock:
            self.users -= 1
            if self.users <= 0:
                self.end()

    def end(self) -> None:
        """Disconnect, if this was begun here."""
        with Session.lock:
            if self.ended or not self.own:
                return
            self.ended = True
            Session.current = None
            atexit.unregister(self.end)
            self.ray.shutdown()
            if str(getattr(builtins.print, "__module__", "")).startswith("ray."):
                builtins.print = self.printing
            if self.handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self.handler)
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)


def enter(address: str | None, workers: int | None, resources: Mapping[str, float]) -> Session:
    """Return the connection for a new engine.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidInput: There is a connection, and to another cluster than the one at ``address``.
        DistributedError: Nothing answers at ``address``, or Ray does not start, or not on this machine alone.
    """
    with Session.lock, _quiet(sees_modules=address is None):
        ray = _module()
        if Session.current is not None and not ray.is_initialized():
            Session.current = None  # somebody else shut it down
        session = Session.current
        if ray.is_initialized():
            _same(ray, address)
            session = session or Session(ray, own=False)
        else:
            session = Session.current = _begin(ray, address, workers, resources)
        session.users += 1
        return session


def _module() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra(
            explain("The engine ray needs the package ray", "it is not installed", "Run `pip install thalweg[ray]`")
        ) from error


def _same(ray: Any, address: str | None) -> None:
    if address is None or address == "auto":
        return
    here = ray.get_runtime_context().gcs_address
    if here != address:
        raise InvalidInput(
            explain(
                f"This process is connected to the Ray at {here}, not to {address}",
                "a process has one connection at a time",
                "Call ray.shutdown() first, or leave the address out",
            )
        )


def _begin(ray: Any, address: str | None, workers: int | None, resources: Mapping[str, float]) -> Session:
    before, printing = signal.getsignal(signal.SIGTERM), builtins.print
    _answers(address)
    silent: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    folder = None
    try:
        if address is None:
            folder = _folder()
            ray.init(
                address="local",
                num_cpus=workers,
                resources={name: amount * (workers or 1) for name, amount in resources.items()} or None,
                include_dashboard=False,
                object_store_memory=OBJECTS,
                _node_ip_address=LOOPBACK,
                _temp_dir=folder,
                **silent,
            )
        else:
            ray.init(address=address, **silent)
    except Exception as error:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        what = "Ray does not start on this machine" if address is None else f"Ray cannot be joined at {address}"
        raise DistributedError(
            explain(
                f"{what}: {str(error).strip().splitlines()[0] if str(error).strip() else repr(error)}",
                "tasks need a cluster that answers",
                "See that it runs and that its versions of Python and Ray are those of this process (`ray status`)",
            )
        ) from error
    session = Session(ray, own=True, folder=folder, handler=_own_handler(before), printing=printing)
    atexit.register(session.end)
    if address is None and not ray.get_runtime_context().gcs_address.startswith(LOOPBACK):
        session.end()
        raise DistributedError(
            explain(
                "The Ray that was started can be reached from other machines",
                "this version of it does not stay on the loopback address",
                "Start it with ray.init() yourself, which this engine then uses, if that is what you want",
            )
        )
    return session


def _answers(address: str | None) -> None:
    """See at once whether anything listens at ``HOST:PORT``: Ray would try for two minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise DistributedError(
            explain(
                f"Ray cannot be joined at {address}: {error.strerror or error}",
                "nothing answers there",
                'Pass the HOST:PORT that `ray start --head` showed, or "auto" for the Ray of this machine',
            )
        ) from error


def _own_handler(before: Any) -> Any:
    """Keep the user's handler of SIGTERM; Ray's, which ends its processes, stays where there was none."""
    if threading.current_thread() is threading.main_thread() and callable(before):
        signal.signal(signal.SIGTERM, before)
    return before


def _folder() -> str:
    """Make a folder with a short name: the names of Ray's sockets in it are long, and the system's limit is not."""
    place = tempfile.gettempdir()
    if len(place) > LONGEST - len("/tw-12345678") and os.access("/tmp", os.W_OK):
        place = "/tmp"
    return tempfile.mkdtemp(prefix="tw-", dir=place)


@contextmanager
def _quiet(*, sees_modules: bool) -> Iterator[None]:
    """Set what Ray reads when it is imported and begun, for that long; in the user's process nothing stays changed.

    With ``sees_modules``, workers that are started here find the modules that this process finds.
    """
    breakpoint_hook = os.environ.get("PYTHONBREAKPOINT")
    constants = sys.modules.get("ray._private.ray_constants")
    clusters = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    path = {"PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in sys.path)} if sees_modules else {}
    with environment(QUIET | path):
        if clusters is not None:  # it was imported before, and has read its environment
            constants.ENABLE_RAY_CLUSTER = False  # type: ignore[union-attr]
        try:
            yield
        finally:
            if clusters is not None:
                constants.ENABLE_RAY_CLUSTER = clusters  # type: ignore[union-attr]
            if breakpoint_hook is None:
                os.environ.pop("PYTHONBREAKPOINT", None)
            else:
                os.environ["PYTHONBREAKPOINT"] = breakpoint_hook
