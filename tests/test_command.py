import subprocess
import sys

import pytest


def run(stage: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"stages.{stage}", *arguments], capture_output=True, text=True)


def test_a_users_mistake_ends_with_one_line_and_exit_code_1(workspace, change):
    change({"recipes.default.fnn.dropout": 1.5})
    ended = run("check")
    assert ended.returncode == 1
    assert ended.stderr == "check: params.yaml: recipes.default.fnn.dropout is 1.5: input should be less than 1\n"


@pytest.mark.parametrize("stage", ["train", "evaluate", "export", "verify", "quantize", "verify_int8", "card"])
def test_an_unknown_model_ends_with_one_line_and_exit_code_1(workspace, stage):
    ended = run(stage, "resnet")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{stage}: params.yaml: 'resnet' is no model; allowed")
    assert len(ended.stderr.splitlines()) == 1


def test_a_missing_argument_shows_the_usage(workspace):
    ended = run("train")
    assert ended.returncode == 2
    assert "usage: python -m stages.train [-h] model" in ended.stderr
