from pathlib import Path

import pytest

from stages import import_graph

PROJECT = {
    "package/__init__.py": "",
    "package/script.py": "import json\nimport yaml\nfrom typing import TYPE_CHECKING\nfrom package import direct\n"
    "if TYPE_CHECKING:\n    from package.types import Type\n",
    "package/direct.py": "def function():\n    from package import inside_function\n    import other.indirect\n",
    "package/inside_function.py": "",
    "package/types.py": "from package import script\n",
    "package/unused.py": "raise AssertionError\n",
    "other/__init__.py": "",
    "other/indirect.py": "raise AssertionError  # as nothing is executed\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project whose script imports modules in every way."""
    for name, content in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(import_graph, "ROOT", tmp_path)
    return tmp_path


def test_direct_indirect_local_and_type_checking_imports_of_the_project_are_found(project):
    found = import_graph.imported_modules(project / "package" / "script.py")
    assert [file.as_posix() for file in found] == [
        "other/__init__.py",
        "other/indirect.py",
        "package/__init__.py",
        "package/direct.py",
        "package/inside_function.py",
        "package/script.py",
        "package/types.py",
    ]


def test_other_packages_and_the_standard_library_are_not_followed(project):
    (project / "package" / "script.py").write_text("import json, torch, torch.nn\nfrom pathlib import Path\n")
    assert import_graph.imported_modules(project / "package" / "script.py") == [Path("package/script.py")]
