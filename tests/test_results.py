import subprocess

import pytest

from checks import results
from stages import artifacts
from stages.errors import UserError
from tests.conftest import edit_params


def test_the_metrics_of_each_model_and_the_next_commands_are_printed(project, capsys):
    results.main()
    out = capsys.readouterr().out
    metrics = artifacts.read_json(artifacts.metrics("cnn"))["cnn"]
    int8 = artifacts.read_json(artifacts.metrics_int8("cnn"))["cnn_int8"]
    row = [f"{metrics['accuracy']:.2%}", f"{metrics['loss']:.4f}", f"{metrics['calibration_error']:.4f}"]
    row += [f"{metrics['robustness']:.2%}", f"{int8['accuracy']:.2%}"]
    assert "| model | test accuracy | loss | calibration error | robustness | int8 accuracy |" in out
    assert f"| cnn | {' | '.join(row)} |" in out
    assert "| fnn | " in out
    commands = out.split("next:\n")[1].splitlines()
    assert [line.split("  # ")[0].strip() for line in commands] == [command for command, _ in results.NEXT_COMMANDS]
    assert "last commit" not in out
    assert "not in models" not in out


def test_results_that_differ_from_the_last_commit_are_counted(project, capsys):
    artifacts.evaluation("fnn").write_text("{}")
    (artifacts.ROOT / "keras_fnn").mkdir()
    (artifacts.ROOT / "keras_fnn" / "evaluation.json").write_text("{}")
    edit_params(project / "params.yaml", {"license": "CC0-1.0"})
    results.main()
    out = capsys.readouterr().out
    assert "files that differ from the last commit: 3. Commit them as your baseline:" in out
    assert f"  {results.COMMIT}\n" in out
    subprocess.run(
        results.COMMIT.replace("git commit", "git -c user.name=t -c user.email=t@t commit"), shell=True, check=True
    )
    results.main()
    assert "last commit" not in capsys.readouterr().out


def test_models_that_are_no_longer_built_are_named(project, capsys):
    edit_params(project / "params.yaml", {"models": ["cnn"]})
    results.main()
    out = capsys.readouterr().out
    assert "not in models, but still in the workspace: fnn; `python -m checks.prune` removes them" in out
    assert "| fnn |" not in out


def test_missing_results_are_a_user_error(project):
    artifacts.metrics("fnn").unlink()
    with pytest.raises(UserError, match="^artifacts/fnn/metrics.json: expected a file, got none; `dvc repro`"):
        results.main()
