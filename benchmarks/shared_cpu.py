"""Time trainings on a shared CPU with different waiting policies of OpenMP (`python -m benchmarks.training --shared`).

A thread that waits for other threads spins for GOMP_SPINCOUNT iterations before it sleeps. On an idle machine spinning
saves the time to wake the thread up; on a shared one it takes the CPU away from the thread that is waited for.

Each training is a process of its own: `python -m benchmarks.shared_cpu MODEL` prints its seconds and the SHA-256 of its
weights as JSON; with `--forever` it trains again and again, as the neighbor of the training that is timed.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import torch

from benchmarks import trials
from stages import networks, params, train
from stages.errors import UserError

RECIPE = "default"
EPOCHS = {"fnn": 4, "cnn": 1}
MAX_IMAGES = {"fnn": 60_000, "cnn": 12_800}  # 100 steps of the cnn take about as long as 4 epochs of the fnn

DEFAULT_SPIN_COUNT = 300_000  # libgomp's, if neither GOMP_SPINCOUNT nor OMP_WAIT_POLICY is set
PASSIVE_SPIN_COUNT = 0  # what libgomp makes of OMP_WAIT_POLICY=passive

IDLE, BUSY, TRAINING = "idle", "beside a busy process for each CPU", "beside another training"
QUOTA, QUOTA_ONE_THREAD = "quota of one CPU", "quota of one CPU, 1 thread"
SITUATIONS = (IDLE, BUSY, TRAINING, QUOTA, QUOTA_ONE_THREAD)

CGROUP = f"mnist-pipeline-{os.getpid()}"
CGROUP_QUOTAS = {  # the directory of cgroup v1's CPU controller and that of v2; the file that limits to one CPU
    Path("/sys/fs/cgroup/cpu"): ("cpu.cfs_quota_us", "100000"),
    Path("/sys/fs/cgroup"): ("cpu.max", "100000 100000"),
}
JOIN_CGROUP = ["sh", "-c", 'echo $$ > "$0" && exec "$@"']  # followed by the cgroup's file and the command
SYSTEMD_SCOPE = ["systemd-run", "--user", "--scope", "--quiet", "--property=CPUQuota=100%"]


@dataclass(frozen=True)
class Timing:
    """One timed training."""

    model: str
    situation: str
    spin_count: int
    seconds: float  # of the training loop
    sha256: str  # of the weights

    def __str__(self) -> str:
        return f"{self.model} {self.situation}, GOMP_SPINCOUNT={self.spin_count}: {self.seconds:.2f} s"


def shared_cpu_table(models: list[str], rounds: int, spin_counts: list[int]) -> str:
    """Time each model in each situation with each waiting policy, alternating the policies; return a Markdown table.

    Raises UserError if a training fails, or if the weights differ between waiting policies.
    """
    if sys.platform != "linux":
        raise UserError(f"--shared: expected Linux, whose PyTorch waits as GOMP_SPINCOUNT says, got {sys.platform}")
    with one_cpu_quota() as (method, quota):
        cases = itertools.product(models, SITUATIONS, range(rounds), spin_counts)
        tasks = [(model, situation, spin_count, quota) for model, situation, _, spin_count in cases]
        timings = trials.call_with_progress(time_training, tasks)
    require_equal_weights(timings)
    return timing_table(timings, f"{joblib.cpu_count()} threads unless stated; the quota is set by {method}")


def time_training(model: str, situation: str, spin_count: int, quota: list[str]) -> Timing:
    """Time one training in a process of its own; `quota` is the start of a command that limits it to one CPU."""
    threads = 1 if situation == QUOTA_ONE_THREAD else joblib.cpu_count()
    environment = os.environ | {"GOMP_SPINCOUNT": str(spin_count), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.shared_cpu", model]
    prefix = quota if situation in (QUOTA, QUOTA_ONE_THREAD) else []
    with neighbors(situation, command, environment):
        ended = subprocess.run([*prefix, *command], env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"{' '.join(command)}: expected exit status 0, got {ended.returncode}: {ended.stderr.strip()}")
    return Timing(model, situation, spin_count, **json.loads(ended.stdout))


@contextlib.contextmanager
def neighbors(situation: str, training: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run the processes that compete for the CPU in this situation.

    `training` is the command of a training; another training has the same waiting policy as the timed one.
    """
    with contextlib.ExitStack() as stack:
        if situation == BUSY:
            for _ in range(joblib.cpu_count()):
                stack.enter_context(running([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], environment))
        elif situation == TRAINING:
            stack.enter_context(running([*training, "--forever"], environment))
        yield


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a process, from its first line of output until the end of the block."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        try:
            assert process.stdout is not None  # it is a pipe
            process.stdout.readline()
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def one_cpu_quota() -> Iterator[tuple[str, list[str]]]:
    """Yield the name of a method that limits a process to one CPU, and the start of a command that does so.

    That is a cgroup's quota if this user can set one, otherwise the affinity to one core.
    """
    if directory := create_cgroup():
        try:
            yield "a cgroup", [*JOIN_CGROUP, str(directory / "cgroup.procs")]
        finally:
            directory.rmdir()
    elif has_systemd_scope():
        yield "systemd-run", SYSTEMD_SCOPE
    else:
        core = min(os.sched_getaffinity(0))
        yield "the affinity to one core, for lack of cgroups", ["taskset", "--cpu-list", str(core)]


def has_systemd_scope() -> bool:
    """Return whether this user can run commands in a scope of systemd with a CPU quota."""
    if not shutil.which(SYSTEMD_SCOPE[0]):
        return False
    return subprocess.run([*SYSTEMD_SCOPE, "true"], capture_output=True).returncode == 0


def create_cgroup() -> Path | None:
    """Create a cgroup with a quota of one CPU and return its directory, or None where this is not possible."""
    for parent, (file, quota) in CGROUP_QUOTAS.items():
        directory = parent / CGROUP
        if (parent / "cgroup.procs").is_file():
            try:
                directory.mkdir()
                (directory / file).write_text(quota)
                return directory
            except OSError:
                with contextlib.suppress(OSError):
                    directory.rmdir()
    return None


def require_equal_weights(timings: list[Timing]) -> None:
    """Raise UserError if trainings of one model with the same number of threads have different weights."""
    digests: dict[tuple[str, bool], dict[str, Timing]] = {}
    for timing in timings:
        key = timing.model, timing.situation == QUOTA_ONE_THREAD
        digests.setdefault(key, {})[timing.sha256] = timing
    for found in digests.values():
        if len(found) > 1:
            raise UserError(f"weights: expected the same bytes with every waiting policy, got {list(found.values())}")


def timing_table(timings: list[Timing], conditions: str) -> str:
    """Return a Markdown table with the min and the median of the seconds, one column for each waiting policy."""
    spin_counts = list(dict.fromkeys(timing.spin_count for timing in timings))
    groups: dict[tuple[str, str], dict[int, list[float]]] = {}
    for timing in timings:
        row = groups.setdefault((timing.model, timing.situation), {})
        row.setdefault(timing.spin_count, []).append(timing.seconds)
    columns = ["model", "situation", *map(policy_name, spin_counts)]
    lines = [
        f"Seconds of the training loop by GOMP_SPINCOUNT, min / median; {conditions}",
        "",
        f"| {' | '.join(columns)} |",
        "|" + len(columns) * "---|",
    ]
    for (model, situation), row in groups.items():
        cells = [f"{min(row[count]):.1f} / {statistics.median(row[count]):.1f}" for count in spin_counts]
        lines.append(f"| {model} | {situation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def policy_name(spin_count: int) -> str:
    names = {DEFAULT_SPIN_COUNT: " (libgomp's default)", PASSIVE_SPIN_COUNT: " (passive)"}
    names |= {pipeline_spin_count(): " (the pipeline's)"}
    return f"{spin_count}{names.get(spin_count, '')}"


def default_spin_counts() -> list[int]:
    return list(dict.fromkeys([DEFAULT_SPIN_COUNT, PASSIVE_SPIN_COUNT, pipeline_spin_count()]))


def pipeline_spin_count() -> int:
    """Return the value that stages/__init__.py sets, unless the user has set another one."""
    return int(os.environ.get("GOMP_SPINCOUNT", DEFAULT_SPIN_COUNT))


def train_model(model: str) -> None:
    """Train one model, and print the seconds of the training loop and the SHA-256 of the weights as JSON."""
    parameters = params.load_params(model)
    recipe = parameters.recipes[RECIPE][model]
    train.configure_torch(threads=0)
    network, data = train.prepare_training(model, parameters, recipe, parameters.seed)
    training = data.training[torch.arange(min(MAX_IMAGES[model], len(data.training)))]
    data = dataclasses.replace(data, training=training)
    with contextlib.redirect_stdout(sys.stderr):  # the metrics of each epoch
        start = time.perf_counter()
        epochs = trials.fit_from_scratch(network, data, recipe, parameters.seed)
        for _ in itertools.islice(epochs, EPOCHS[model]):
            pass
        seconds = time.perf_counter() - start
    digest = hashlib.sha256(networks.serialize_tensors(network.state_dict())).hexdigest()
    print(json.dumps({"seconds": seconds, "sha256": digest}))


def main() -> None:
    model, forever = sys.argv[1], "--forever" in sys.argv
    try:
        if forever:
            print("started", flush=True)
        else:
            train_model(model)
        while forever:
            train_model(model)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
