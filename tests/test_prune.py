from pathlib import Path

from checks import lock, prune
from stages import artifacts
from tests.conftest import edit_params


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def belongs_to_fnn(path: str) -> bool:
    folders = ("artifacts/fnn/", "artifacts/model_repository/fnn/", "artifacts/model_repository/fnn_int8/")
    return path.startswith(folders)


def test_nothing_is_removed_while_all_models_are_built(project, capsys):
    before, locked = files(project), lock.FILE.read_bytes()
    prune.main()
    assert (files(project), lock.FILE.read_bytes()) == (before, locked)
    assert capsys.readouterr().out == ""


def test_a_model_that_is_no_longer_built_is_removed_and_nothing_else(project, capsys):
    for mine in ("artifacts/notes/a.txt", "artifacts/b.txt", "artifacts/model_repository/mine/1/model.onnx"):
        Path(mine).parent.mkdir(parents=True, exist_ok=True)
        Path(mine).write_text("the user's own file")
    before, locked = files(project), lock.FILE.read_text()
    edit_params(project / "params.yaml", {"models": ["cnn"]})
    prune.main()
    assert files(project) == {path for path in before if not belongs_to_fnn(path)}
    assert capsys.readouterr().out.splitlines() == [
        "artifacts/fnn: removed, as fnn is not in models",
        "artifacts/model_repository/fnn: removed, as fnn is not in models",
        "artifacts/model_repository/fnn_int8: removed, as fnn is not in models",
    ]
    parts = locked.split("\n  ")  # a stage's entry starts with two spaces and a name
    left = lock.FILE.read_text()
    assert "@fnn" not in left
    assert [line for line in left.splitlines() if line not in locked.splitlines()] == []
    assert {stage for stage, _ in lock.locked_digests()} == {"check", "download"} | {
        part.split(":")[0] for part in parts if "@cnn:" in part
    }


def test_a_model_that_params_yaml_never_had_is_removed_too(project):
    """Its definition is gone after `git restore`."""
    artifacts.weights("mine").parent.mkdir()
    artifacts.weights("mine").write_bytes(b"")
    artifacts.onnx("mine_int8").parent.mkdir(parents=True)
    prune.main()
    assert not artifacts.weights("mine").parent.exists()
    assert not artifacts.model_folder("mine_int8").exists()


def test_a_missing_lock_file_is_no_error(project):
    lock.FILE.unlink()
    edit_params(project / "params.yaml", {"models": ["cnn"]})
    prune.main()
    assert not artifacts.weights("fnn").parent.exists()
