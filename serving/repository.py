"""Model repository: loads and unloads models while the server runs, as in Triton's model control modes."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from serving.batching import Batcher
from serving.errors import RequestError, StartError
from serving.metrics import LOAD_FAILURES, READY
from serving.models import ReadFile, find_files, is_version, load_versions, model_names, read_bytes, verified_reader

MODES = ("none", "poll", "explicit")
UNLOADED = "unloaded"  # the reason of a model that a request has unloaded
Verify = Callable[[Path, ReadFile], ReadFile]
Fingerprint = frozenset[tuple[str, int, int, int]]  # path, size in bytes, and times in ns of each file


@dataclass
class Entry:
    """A model of the repository: the versions that are served, and why those that lie there now are not."""

    batchers: dict[str, Batcher] = field(default_factory=dict)  # by version, in ascending order
    reason: str = ""  # of the state UNAVAILABLE
    fingerprint: Fingerprint = frozenset()  # of the files that were loaded last, or could not be


class Repository:
    """The models of a repository, each version with its queue.

    A model is replaced only by one that is loaded and checked; requests that are under way finish on the old one.
    """

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        mode: str = "none",
        lock: Path | None = None,
        verify: Verify | None = None,
        strict_readiness: bool = False,
    ):
        """Prepare an empty repository.

        `lock` is a dvc.lock whose digests the files must have when they are loaded. `verify` raises StartError if a
        model's folder may not be loaded, and else returns the function that reads its files. With `strict_readiness`,
        the server is ready only if everything that was to be loaded is.
        """
        self.folder = folder
        self.executor = executor
        self.mode = mode
        self.lock = lock
        self.verify = verify
        self.strict_readiness = strict_readiness
        self.entries: dict[str, Entry] = {}
        self.closing = False  # the server is shutting down
        self.changing = asyncio.Lock()  # held while models are loaded or unloaded

    def start(self, names: Collection[str]) -> None:
        """Load these models; `*` stands for all. In the mode none, raises StartError if none can be loaded."""
        read_file = self.reader()
        with contextlib.nullcontext() if self.mode == "none" else contextlib.suppress(StartError):
            for name in model_names(self.folder) if "*" in names else names:
                self.apply(name, *self.read(name, read_file))
            if not self.ready():
                raise StartError(f"{self.folder}: expected a model that can be served, got none")

    def ready(self) -> list[str]:
        """Return the names of the models that are served."""
        return [name for name, entry in self.entries.items() if entry.batchers]

    def is_ready(self) -> bool:
        """Say whether the server is ready for requests."""
        failed = [entry for entry in self.entries.values() if entry.reason not in ("", UNLOADED)]
        return not self.closing and not (self.strict_readiness and failed)

    def find(self, name: str, version: str = "") -> Batcher:
        """Return the queue of a model's version, by default the latest. Raises RequestError if it is not served."""
        return self.find_versions(name, version)[-1]

    def find_all(self, name: str = "", version: str = "") -> list[Batcher]:
        """Return the queues of a model's version, of all its versions, or of all models if the name is empty.

        Raises RequestError if the model or version is not served.
        """
        if name:
            return self.find_versions(name, version)
        return [batcher for entry in self.entries.values() for batcher in entry.batchers.values()]

    def find_versions(self, name: str, version: str) -> list[Batcher]:
        """Return the queues of a model's version, or of all its versions.

        Raises RequestError if the model or version is not served.
        """
        entry = self.entries.get(name)
        if not entry or not entry.batchers:
            raise RequestError(f"model: expected one of {', '.join(self.ready()) or 'none'}, got {name!r}", 404)
        if not version:
            return [*entry.batchers.values()]
        if version not in entry.batchers:
            raise RequestError(f"version of {name}: expected {' or '.join(entry.batchers)}, got {version!r}", 404)
        return [entry.batchers[version]]

    def index(self, ready: bool) -> Iterator[dict[str, str]]:
        """Yield name, version, state and reason of every model, as Triton does; if `ready`, only of those served."""
        for name in sorted({*self.entries, *self.names()}):
            entry = self.entries.get(name, Entry())
            yield from ({"name": name, "version": version, "state": "READY"} for version in entry.batchers)
            if entry.reason and not ready:
                versions = {path.split("/")[0] for path, *_ in entry.fingerprint} - entry.batchers.keys()
                newest = max(filter(is_version, versions), key=int, default="")
                version = {"version": newest} if newest else {}
                yield {"name": name, **version, "state": "UNAVAILABLE", "reason": entry.reason}
            elif not entry.batchers and not ready:
                yield {"name": name}

    async def load(self, name: str, parameters: Collection[str]) -> None:
        """Load a model, or load it again. Raises RequestError if this is not allowed or fails, or has parameters."""
        if parameters:
            raise RequestError("parameters: expected none, got some; a model is configured by its files")
        self.require_explicit_mode()
        if name not in (names := self.names()):
            raise RequestError(f"load: expected one of {', '.join(names) or 'none'}, got {name!r}")
        async with self.changing:
            await self.reload(name)
        if reason := self.entries[name].reason:
            raise RequestError(f"load: {reason}")

    async def unload(self, name: str) -> None:
        """Stop serving a model. Raises RequestError if this is not allowed."""
        self.require_explicit_mode()
        async with self.changing:
            if name in self.entries:
                self.apply(name, frozenset(), [])
                self.entries[name].reason = UNLOADED

    def require_explicit_mode(self) -> None:
        """Raise RequestError unless clients may load and unload models."""
        if self.mode != "explicit":
            raise RequestError(f"load and unload: expected --model-control-mode explicit, got {self.mode}", 503)

    async def poll(self, seconds: float) -> None:
        """In the mode poll, load models that have changed and unload those that were removed, once their files rest."""
        seen: dict[str, Fingerprint] = {}
        while self.mode == "poll":
            await asyncio.sleep(seconds)
            if not await asyncio.to_thread(self.folder.is_dir):
                continue  # such as a volume that is mounted again
            found = await asyncio.to_thread(self.fingerprints)
            async with self.changing:
                for name in found.keys() | self.entries.keys():
                    files, entry = found.get(name, frozenset()), self.entries.get(name, Entry())
                    if files == entry.fingerprint or files != seen.get(name, frozenset()):
                        continue  # nothing new, or files that are still being copied
                    if files:
                        await self.reload(name)
                    else:
                        self.apply(name, files, [])
                        del self.entries[name]
            seen = found

    def names(self) -> list[str]:
        """Return the names of the models that lie in the repository."""
        with contextlib.suppress(StartError):
            return model_names(self.folder)
        return []

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of every model's files."""
        return {name: fingerprint(self.folder / name) for name in self.names()}

    async def reload(self, name: str) -> None:
        """Load a model in a thread, and serve it if this succeeds."""
        self.apply(name, *await asyncio.to_thread(self.read, name))

    def reader(self) -> ReadFile:
        """Return the function that reads the models' files. Raises StartError if the lock cannot be read."""
        return verified_reader(self.folder, self.lock) if self.lock else read_bytes

    def read(self, name: str, read_file: ReadFile | None = None) -> tuple[Fingerprint, list[Batcher] | StartError]:
        """Load the versions of a model, by default against the lock that lies there now.

        Return the files' fingerprint, and the versions' queues or the error.
        """
        files = fingerprint(self.folder / name)
        try:
            if not files:
                raise StartError(f"{self.folder / name}: expected a model, got nothing")
            read_file = read_file or self.reader()
            if self.verify:
                read_file = self.verify(self.folder / name, read_file)
            versions = load_versions(self.folder / name, read_file)
            return files, [Batcher(model, self.executor) for model in versions]
        except StartError as error:
            return files, error
        except Exception as error:  # of the libraries that read the configuration or the model, or run its warm-up
            reason = f"expected a model that can be loaded, got {type(error).__name__}: {error}"
            return files, StartError(f"{self.folder / name}: {reason}")

    def apply(self, name: str, files: Fingerprint, result: list[Batcher] | StartError) -> None:
        """Serve the loaded versions of a model instead of earlier ones, or keep those if an error says why."""
        entry = self.entries.setdefault(name, Entry())
        entry.fingerprint = files
        if isinstance(result, StartError):
            entry.reason = str(result)
            LOAD_FAILURES.labels(name).inc()
            print(f"serving: {result}", file=sys.stderr, flush=True)
            return
        for version in entry.batchers:
            READY.remove(name, version)
        entry.reason, entry.batchers = "", {batcher.model.version: batcher for batcher in result}
        for version in entry.batchers:
            READY.labels(name, version).set(1)
        print(f"serving: {name}: versions served: {', '.join(entry.batchers) or 'none'}", file=sys.stderr, flush=True)


def fingerprint(folder: Path) -> Fingerprint:
    """Return the fingerprint of a directory's files, which changes with any of them."""
    files = set()
    for file in find_files(folder, "*") + find_files(folder, "*/*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            status = file.stat()
            files.add((file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return frozenset(files)
