import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import joblib
import numpy as np
import psutil
import pytest
import torch

from benchmarks import ablation, inference, serving, shared_cpu, training, trials
from benchmarks.ablation import AblationResult
from benchmarks.serving import Case, Measurement, Server
from benchmarks.shared_cpu import Timing
from benchmarks.training import NOTEBOOK, TrainingResult
from stages import artifacts, networks, params
from stages.errors import UserError
from tests.conftest import PROJECT, free_ports, wait_until


@pytest.fixture
def network_parameters(monkeypatch):
    """The networks of the project's own params.yaml."""
    monkeypatch.chdir(PROJECT)
    return params.load_params().networks


@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_the_network_computes_the_same_function_as_the_notebooks(network_parameters, model):
    theirs = training.NOTEBOOK_NETWORKS[model]()
    theirs(torch.rand(64, 1, 28, 28))  # updates the running statistics of batch norm
    ours = networks.build_network(network_parameters[model], class_count=10, dropout=0.2)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(("model", "multiplications"), [("fnn", 109_184), ("cnn", 4_241_152)])
def test_flop_per_image_counts_two_operations_per_multiplication_in_three_passes(
    network_parameters, model, multiplications
):
    # one forward and two backward passes, except for the first layer, whose input needs no gradient
    first_layer = {"fnn": 784 * 128, "cnn": 28 * 28 * 32 * 9}[model]
    network = networks.build_network(network_parameters[model], class_count=10)
    assert training.flop_per_image(network) == 2 * (3 * multiplications - first_layer)


def test_the_training_table_shows_means_over_seeds_and_the_speed_up_over_the_notebook():
    notebook = partial(TrainingResult, "fnn", NOTEBOOK, epochs=10, images=600, flop=2e9, peak=1e9)
    default = partial(TrainingResult, "fnn", "default", epochs=3, images=180, flop=1e9, peak=1e9)
    lines = training.training_table(
        [
            notebook(seed=0, accuracy=0.98, seconds=20.0, seconds_to_target=None),
            notebook(seed=1, accuracy=0.97, seconds=40.0, seconds_to_target=40.0),
            default(seed=0, accuracy=0.99, seconds=4.0, seconds_to_target=2.0),
            default(seed=1, accuracy=0.99, seconds=6.0, seconds_to_target=4.0),
        ]
    ).splitlines()
    assert lines == [
        "Peak of this machine: 1 GFLOP/s in float32 matrix products",
        "",
        "| model | setup | seeds | epochs | test accuracy | min | seconds | to 99 % | images/s | % of peak FLOP/s "
        "| speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| fnn | notebook's loop | 2 | 10 | 97.50% ± 0.71% | 97.00% | 30.0 |  | 20 | 7% | 1.0 |",
        "| fnn | default | 2 | 3 | 99.00% ± 0.00% | 99.00% | 5.0 | 3.0 | 36 | 20% | 6.0 |",
    ]


def test_the_training_benchmark_alternates_between_the_setups(workspace, monkeypatch, capsys):
    tasks = []
    result = partial(TrainingResult, epochs=1, accuracy=1, seconds=1, seconds_to_target=1, images=1, flop=1, peak=1)

    def run_trials(trial, given):
        tasks.extend(given)
        return [result(*task) for task in given]

    monkeypatch.setattr(trials, "run_trials", run_trials)
    monkeypatch.setattr(sys, "argv", ["training", "--models", "fnn", "--recipes", "default", "--seeds", "3", "4"])
    training.main()
    assert tasks == [("fnn", NOTEBOOK, 3), ("fnn", "default", 3), ("fnn", NOTEBOOK, 4), ("fnn", "default", 4)]
    assert "| fnn | default | 2 | 1 |" in capsys.readouterr().out


def test_an_unknown_recipe_is_rejected(workspace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training", "--models", "cnn", "--recipes", "quick"])
    expected = r"expected recipes of cnn in params.yaml \(default, fast, notebook\), got quick"
    with pytest.raises(SystemExit, match=expected):
        training.main()


def test_openmp_starts_with_the_environment_of_the_package_stages_in_every_process():
    script = (
        "import benchmarks, multiprocessing, torch\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    print(pool.apply(torch.get_num_threads))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.strip() == str(joblib.cpu_count()), ended.stderr
    if sys.platform == "linux":  # whose PyTorch has libgomp
        spin_counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ended.stderr)
        assert len(spin_counts) >= 2
        assert set(spin_counts) == {os.environ["GOMP_SPINCOUNT"]}


def test_the_shared_cpu_table_shows_min_and_median_of_each_waiting_policy(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    timings = [
        Timing("fnn", situation, spin_count, seconds * factor, sha256="")
        for situation, factor in ((shared_cpu.IDLE, 1), (shared_cpu.QUOTA, 10))
        for spin_count, seconds in ((300_000, 2.0), (0, 1.0), (300_000, 6.0), (1000, 3.0), (300_000, 5.0))
    ]
    assert shared_cpu.timing_table(timings, "2 threads").splitlines() == [
        "Seconds of the training loop by GOMP_SPINCOUNT, min / median; 2 threads",
        "",
        "| model | situation | 300000 (libgomp's default) | 0 (passive) | 1000 (the pipeline's) |",
        "|---|---|---|---|---|",
        "| fnn | idle | 2.0 / 5.0 | 1.0 / 1.0 | 3.0 / 3.0 |",
        "| fnn | quota of one CPU | 20.0 / 50.0 | 10.0 / 10.0 | 30.0 / 30.0 |",
    ]


def test_different_weights_with_different_waiting_policies_are_an_error():
    timings = [
        Timing("fnn", shared_cpu.IDLE, 0, 1.0, sha256="a"),
        Timing("fnn", shared_cpu.QUOTA_ONE_THREAD, 0, 1.0, sha256="b"),  # another number of threads
        Timing("cnn", shared_cpu.IDLE, 0, 1.0, sha256="c"),
    ]
    shared_cpu.require_equal_weights(timings)
    with pytest.raises(UserError, match="weights: expected the same bytes with every waiting policy"):
        shared_cpu.require_equal_weights([*timings, replace(timings[0], spin_count=1000, sha256="d")])


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="waiting policies are measured on Linux only")


@linux_only
def test_the_shared_cpu_benchmark_times_a_training_in_a_process_of_its_own(workspace, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    timing = shared_cpu.time_training("fnn", shared_cpu.IDLE, spin_count=0, quota=[])
    assert timing.seconds > 0
    assert re.fullmatch("[0-9a-f]{64}", timing.sha256)


@linux_only
def test_a_quota_of_one_cpu_is_a_cgroup_that_is_removed_afterwards():
    if not (directory := shared_cpu.create_cgroup()):
        pytest.skip("needs the permission to create a cgroup with a CPU quota")
    directory.rmdir()
    with shared_cpu.one_cpu_quota() as (method, command):
        groups = subprocess.run([*command, "cat", "/proc/self/cgroup"], capture_output=True, text=True).stdout
        assert f"/{shared_cpu.CGROUP}\n" in groups
        assert method == "a cgroup"
    assert not directory.exists()


@linux_only
def test_without_cgroups_the_affinity_to_one_core_replaces_the_quota(monkeypatch):
    monkeypatch.setattr(shared_cpu, "CGROUP_QUOTAS", {})
    monkeypatch.setattr(shared_cpu, "SYSTEMD_SCOPE", ["no-such-command"])
    count = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    with shared_cpu.one_cpu_quota() as (method, command):
        assert subprocess.run([*command, *count], capture_output=True, text=True).stdout == "1\n"
        assert method == "the affinity to one core, for lack of cgroups"


@linux_only
def test_the_neighbors_of_a_training_end_with_it(tmp_path):
    file = tmp_path / "pid"
    script = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); print(flush=True); time.sleep(60)"
    with shared_cpu.running([sys.executable, "-c", script], dict(os.environ)):
        process = int(file.read_text())
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_ablation_removes_one_part_of_the_recipe_at_a_time(workspace):
    recipe = params.load_params().recipes["default"]["fnn"]
    recipes = ablation.ablated_recipes(recipe)
    assert recipes.pop(ablation.NOTHING) == recipe
    assert {"warmup_fraction", "momentum", "weight_decay", "augmentation", "augmentation.strokes"} <= set(recipes)
    assert recipes["augmentation"].augmentation is None
    assert recipes["augmentation.strokes"].augmentation.strokes == 0
    for part, ablated in recipes.items():
        field = part.split(".")[0]
        assert getattr(ablated, field) != getattr(recipe, field)
        assert ablated.model_dump(exclude={field}) == recipe.model_dump(exclude={field})


def test_the_ablation_table_shows_the_mean_difference_between_trainings_with_the_same_seed():
    rows = ablation.ablation_table(
        [
            AblationResult("fnn", ablation.NOTHING, 0, validation_accuracy=0.99, test_accuracy=0.98),
            AblationResult("fnn", ablation.NOTHING, 1, validation_accuracy=0.97, test_accuracy=0.98),
            AblationResult("fnn", "momentum", 0, validation_accuracy=0.98, test_accuracy=0.96),
            AblationResult("fnn", "momentum", 1, validation_accuracy=0.96, test_accuracy=0.98),
        ]
    ).splitlines()
    assert rows[-2] == "| fnn | nothing | 2 | 98.00% | 98.00% |  |"
    assert rows[-1] == "| fnn | momentum | 2 | 97.00% | 97.00% | +1.00% ± 0.00% |"


def test_the_ablation_trains_without_the_removed_part(workspace):
    full, ablated = (ablation.train_without("fnn", part, 0) for part in (ablation.NOTHING, "momentum"))
    assert full.validation_accuracy > 0.8
    assert full.test_accuracy > 0.8
    assert ablated != replace(full, removed="momentum")


def test_trials_return_their_results_in_order_and_log_the_time_left(capsys):
    assert trials.run_trials(divmod, [(7, 2), (9, 3)], parallel=2) == [(3, 1), (3, 0)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("(3, 1)  (1 of 2 done, about ")
    assert lines[1] == "(3, 0)  (2 of 2 done, about 00:00 left)"


def test_an_exception_in_a_trial_is_raised_unchanged():
    with pytest.raises(ZeroDivisionError):
        trials.run_trials(divmod, [(1, 0)])


class FakeSession:
    """An ONNX Runtime session that only records its calls."""

    def __init__(self, name, calls):
        self.name = name
        self.calls = calls

    def run(self, outputs, inputs):
        self.calls.append(self.name)


def test_the_inference_benchmark_alternates_the_sessions_in_groups_of_batches(monkeypatch):
    monkeypatch.setattr(inference, "ROUNDS", 2)
    monkeypatch.setattr(inference, "BATCHES_PER_ROUND", 3)
    calls = []
    inference.median_seconds([FakeSession("float32", calls), FakeSession("int8", calls)], np.empty((0, 1, 28, 28)))
    assert calls == 2 * (3 * ["float32"] + 3 * ["int8"])


def test_the_inference_table_shows_size_accuracy_drop_and_throughput_of_int8(models, monkeypatch):
    for model in models:
        results = {"size_ratio": 0.27, "accuracy_drop": 0.0012, "changed_labels": 21}
        artifacts.write_json(artifacts.verification_int8(model), results)
    monkeypatch.setattr(inference, "median_seconds", lambda sessions, images: [len(images) / 1000, len(images) / 2500])
    assert inference.inference_table().splitlines() == [
        "| model | int8 size, % of float32 | accuracy drop | changed labels "
        "| float32 images/s, 1 thread | int8 images/s, 1 thread "
        "| float32 images/s, 2 threads | int8 images/s, 2 threads |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {model} | 27% | 0.12% | 21 | 1,000 | 2,500 | 1,000 | 2,500 |" for model in models),
    ]


@pytest.fixture
def measured_server(server, monkeypatch):
    """The server as the benchmark knows it, whose port for gRPC is the next one."""
    monkeypatch.chdir(PROJECT)
    return lambda format: Server(
        serving.OURS,
        batching="",
        command=[],
        port=int(server.grpc_address.split(":")[1]) - 1 if format == "grpc" else int(server.address.split(":")[1]),
    )


@pytest.mark.parametrize("format", serving.FORMATS)
@pytest.mark.parametrize("images", [2, 200])  # the latter exceed HTTP/2's initial windows
def test_the_load_generator_measures_throughput_and_latency(measured_server, format, images):
    case = Case(format, images, connections=3)
    request = serving.inference_request("cnn", format, np.zeros((images, 1, 28, 28), np.uint8))
    measured = serving.measure_server(measured_server(format), case, request, seconds=0.2)
    assert measured.requests_per_second > 0
    assert measured.images_per_second == images * measured.requests_per_second
    assert 0 < measured.p50_ms <= measured.p99_ms


@pytest.mark.parametrize(("format", "status"), [("json", "400"), ("binary", "400"), ("grpc", "of a gRPC error")])
def test_the_load_generator_fails_if_the_server_rejects_the_request(measured_server, format, status):
    request = serving.inference_request("cnn", format, np.zeros((2, 1, 27, 28), np.uint8))
    with pytest.raises(UserError, match=f"expected responses with status 200, got .*last status {status}"):
        serving.measure_server(measured_server(format), Case(format, 2, 1), request, 0.2)


def test_servers_are_stopped_except_while_they_are_measured():
    (port,) = free_ports(1)
    script = "import http.server as h, sys; h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.BaseHTTPRequestHandler)"
    command = [sys.executable, "-c", f"{script}.serve_forever()", str(port)]
    with serving.stopped_server(Server("", "", command, port)) as process:
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        with serving.resumed(process):
            wait_until(lambda: psutil.Process(process.pid).status() != psutil.STATUS_STOPPED)
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    assert process.returncode == -signal.SIGTERM


def test_a_server_that_exits_at_its_start_is_an_error():
    server = Server("", "", [sys.executable, "-c", "raise SystemExit(3)"], port=1)
    expected = "expected a server on port 1, got exit status 3"
    with pytest.raises(UserError, match=expected), serving.stopped_server(server):
        pass


def test_every_setting_of_dynamic_batching_is_a_server_of_its_own(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    servers = serving.find_servers("cnn", ["python"])
    settings = [server.batching for server in servers if server.name == "litserve"]
    assert settings == [*serving.BATCHING["litserve"]]
    assert all(
        server.command[-3:] == [str(server.port), *server.batching.split()] for server in servers if server.batching
    )
    assert len({server.port for server in servers}) == len(servers)


def test_the_serving_table_compares_with_the_baseline_and_the_peers_at_their_best_setting():
    case, other = Case("json", 32, 8), Case("grpc", 1, 1)
    lines = serving.serving_table(
        [
            *(Measurement("onnxruntime", "", case, 100, 3200, 1, 2, 0) for _ in range(2)),
            Measurement("this server", "", case, 80, 2000, 1, 3, 0.2),
            Measurement("this server", "", case, 80, 2800, 2, 5, 0.3),
            Measurement("triton", "", case, 80, 2000, 2, 5, 0.25),
            Measurement("kserve", "", case, 10, 300, 1, 2, 0.1),
            *(Measurement("mlserver", "", case, 10, images, 1, 2, 0.1) for images in (500, 600, 1300)),
            *(Measurement("mlserver", "8 0.001", case, 10, images, 1, 2, 0.1) for images in (700, 800, 900)),
            Measurement("onnxruntime", "", other, 100, 100, 1, 2, 0),
            Measurement("this server", "", other, 80, 50, 1, 3, 0.4),
        ]
    ).splitlines()
    assert lines == [
        "Images per second, median",
        "",
        "| format | batch size | connections | onnxruntime | this server | triton | kserve | mlserver "
        "| this server's p50 / p99, ms | % of onnxruntime | speed-up over the best Python server | over triton |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| json | 32 | 8 | 3,200 | 2,400 | 2,000 | 300 | 800 | 1.50 / 4.00 | 75% | 3.0 | 1.2 |",
        "| grpc | 1 | 1 | 100 | 50 |  |  |  | 1.00 / 3.00 | 50% |  |  |",
        "",
        "The load generator used at most these shares of a core: 30% (json), 40% (grpc).",
    ]
