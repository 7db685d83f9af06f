"""Run every command and every Python example in README.md and docs/, and check links, headings and lengths.

An HTML comment in the line above a code block tells this test how to run it:

    <!-- not run: REASON -->       one of REASONS
    <!-- runs until Ctrl-C -->     a server: the blocks after it run beside it
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML

from checks import results
from stages import artifacts, params
from tests.conftest import PROJECT, call, commit, edit_params, is_ready

README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
MAX_README_LINES = 150
PURPOSE = "After reading this page, you can "

REASONS = ("needs a Kubernetes cluster", "needs internet", "needs nginx", "needs Podman", "takes minutes")
UNTIL_INTERRUPTED = "runs until Ctrl-C"
RUN_LANGUAGES = ("bash", "python")
OTHER_LANGUAGES = ("mermaid", "text", "yaml")  # yaml: an excerpt of params.yaml
START_SECONDS, STOP_SECONDS = 180, 30  # of a server

# so that the recipes that docs/experiments.md tries train the miniature models well enough; not part of dvc.lock
LENIENT = {"minimum_accuracy.keras_fnn": 0.0, "minimum_accuracy.keras_cnn": 0.0, "recipes.fast.cnn.epochs": 5}


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    source: str
    marker: str  # the text of the HTML comment above it

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(PROJECT).as_posix()}:{self.line}"


@cache
def parse(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def code_blocks(page: Path) -> Iterator[Block]:
    for above, token in pairwise([Token("", "", 0), *parse(page)]):
        if token.type == "fence":
            comment = re.fullmatch(r"<!-- (.*) -->\n?", above.content) if above.type == "html_block" else None
            yield Block(page, token.map[0] + 1, token.info, token.content, comment[1] if comment else "")


BLOCKS = [block for page in PAGES for block in code_blocks(page)]


def server_port(source: str) -> int:
    option = re.search(r"--port (\d+)", source)
    return int(option[1]) if option else 8000


def is_in_use(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Terminal:
    """A shell session: the working directory and the exported variables persist from block to block."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        """Open a terminal in a folder."""
        self.folder = folder
        self.environment = environment
        self.state = folder.with_suffix(".state")
        self.state.write_text(f"cd '{folder}'\n")
        self.log = folder.with_suffix(".log")
        self.server: subprocess.Popen[bytes] | None = None
        self.server_log = folder.with_suffix(".server.log")

    def bash(self, source: str) -> list[str]:
        """Return the command that runs a block until a command fails, and then saves the session's state."""
        save = f'{{ export -p; echo "cd \'$PWD\'"; }} > "{self.state}"'
        return ["bash", "-eo", "pipefail", "-c", f'source "{self.state}"\n{source}\n{save}']

    def run(self, source: str) -> str:
        """Run a block and return its output. Fails the test if a command fails."""
        with self.log.open("wb") as log:  # not a pipe, which a background process would keep open
            status = subprocess.run(self.bash(source), env=self.environment, stdout=log, stderr=log).returncode
        output = self.log.read_text()
        if status:
            pytest.fail(f"{source}\nended with status {status}:\n{output}", pytrace=False)
        return output

    def start(self, source: str) -> None:
        """Start a server, in place of an earlier one, and wait until it is ready.

        Skips the test if another process uses the port, such as another run of the tests.
        """
        self.interrupt()
        port = server_port(source)
        if is_in_use(port):
            pytest.skip(f"needs port {port}, which another process uses")
        with self.server_log.open("wb") as log:
            self.server = subprocess.Popen(
                self.bash(source), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while not is_ready(f"http://127.0.0.1:{port}"):
            if self.server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{source}\ndid not start:\n{self.server_log.read_text()}", pytrace=False)
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Press Ctrl-C, if a server is running."""
        if self.server is None:
            return
        os.killpg(self.server.pid, signal.SIGINT)
        try:
            self.server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            pytest.fail(f"the server did not stop after Ctrl-C:\n{self.server_log.read_text()}", pytrace=False)
        self.server = None


def link_environment(folder: Path) -> None:
    """Make the environment of this test the clone's `.venv`, with everything installed from `make`'s point of view."""
    if not (Path(sys.prefix) / "bin" / "uv").exists():
        pytest.skip("needs uv in the environment: `make test` installs it")
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("for-"):
            (folder / ".venv" / path.name).symlink_to(path)
    for requirements in (folder / "requirements").glob("*.txt"):
        os.utime(requirements, (0, 0))
        (folder / ".venv" / f"for-{requirements.stem}").touch()


def new_environment(folder: Path, s3_url: str, activated: bool) -> dict[str, str]:
    """Return the variables of a new terminal: without those of `make` and of this test's environment, and offline."""
    git_config = folder.with_suffix(".gitconfig")
    git_config.write_text("[user]\nname = t\nemail = t@t\n[push]\ndefault = current\n")
    binaries = Path(sys.prefix) / "bin"
    path = [each for each in os.environ["PATH"].split(os.pathsep) if Path(each).resolve() != binaries.resolve()]
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OPTIONS", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "PATH": os.pathsep.join([str(binaries), *path] if activated else path),
        "GIT_CONFIG_GLOBAL": str(git_config),
        "AWS_ENDPOINT_URL": s3_url,  # the bucket of the examples is there
        "PIP_NO_INDEX": "1",
        "PYTHON": "false",  # make must not create an environment
        "UV_OFFLINE": "1",
    }


@pytest.fixture
def terminal(page: Path, built: Path, s3_endpoint: str, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal for a page, in a reproduced miniature clone with a remote `origin`.

    README.md has to activate the environment itself; the pages in docs/ say that it is.
    """
    folder = shutil.copytree(built, tmp_path / "mnist-pipeline")
    edit_params(folder / "params.yaml", LENIENT)
    link_environment(folder)
    if page != README:  # whose `make repro` records the edited parameters
        call(folder, "dvc", "commit", "--force", "check")
    commit(folder)
    opened = Terminal(folder, new_environment(folder, s3_endpoint, activated=page != README))
    opened.run("git init --quiet --bare ../origin.git && git remote add origin ../origin.git && git push")
    yield opened
    opened.interrupt()


@pytest.fixture
def server_lock(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let pages with servers, which use the same port, wait for each other while pytest-xdist runs several pages."""
    if any(block.marker == UNTIL_INTERRUPTED for block in code_blocks(page)):
        with FileLock(tmp_path_factory.getbasetemp().parent / "server.lock"):
            yield
    else:
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds: the pages with experiments take more than one minute on two idle cores
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_blocks_of_a_page_run_one_after_another(
    page: Path, server_lock: None, terminal: Terminal, request: pytest.FixtureRequest
) -> None:
    for block in code_blocks(page):
        if block.language not in RUN_LANGUAGES or block.marker.startswith("not run: "):
            continue
        if block.marker == UNTIL_INTERRUPTED:
            terminal.start(block.source)
        elif block.language == "python":
            run_python(block, terminal, request)
        else:
            terminal.run(block.source)


def run_python(block: Block, terminal: Terminal, request: pytest.FixtureRequest) -> None:
    """Run an example, with the project's own models if it reads files, and compare its output with `print(…)  # …`."""
    printed = re.findall(r"^print\(.*\)  # (.+)$", block.source, flags=re.MULTILINE)
    with_shipped_models = "artifacts/" in block.source
    if with_shipped_models:
        request.getfixturevalue("shipped")
    ended = subprocess.run(
        [sys.executable, "-c", block.source],
        cwd=PROJECT if with_shipped_models else terminal.folder,
        env=terminal.environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if printed:
        assert ended.stdout.splitlines() == printed


@pytest.mark.slow
def test_make_restore_brings_back_the_last_commit_without_running_a_stage(clone: Path) -> None:
    link_environment(clone)
    commit(clone)
    terminal = Terminal(clone, new_environment(clone, s3_url="", activated=True))
    edit_params(clone / "params.yaml", {"seed": 1})
    for path in (artifacts.weights("fnn"), artifacts.evaluation("cnn"), artifacts.onnx("cnn")):
        (clone / path).write_bytes(b"changed")
    assert "Running stage" not in terminal.run("make restore")
    assert terminal.run("git status --porcelain && dvc status") == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS])
def test_code_block_has_a_known_language_and_marker(block: Block) -> None:
    assert block.language in (*RUN_LANGUAGES, *OTHER_LANGUAGES)
    assert block.marker in ("", UNTIL_INTERRUPTED, *(f"not run: {reason}" for reason in REASONS))


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS if block.language == "yaml"])
def test_params_excerpt_is_valid(block: Block, workspace: Path) -> None:
    yaml = YAML(typ="safe")
    merged = merge(yaml.load(PROJECT / "params.yaml"), yaml.load(block.source))
    yaml.dump(merged, workspace / "params.yaml")
    params.load_params()


def merge(values: Any, changes: Any) -> Any:
    """Return nested mappings with changes; other values are replaced."""
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    return values | {key: merge(values.get(key), change) for key, change in changes.items()}


def text_of(token: Token) -> str:
    """Return the text of an inline token without its markup."""
    return "".join(child.content for child in token.children or [])


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    titles = [text_of(inline) for opened, inline in pairwise(parse(page)) if opened.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[str]:
    for token in parse(page):
        for child in token.children or []:
            if target := child.attrGet("href") or child.attrGet("src"):
                yield str(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_and_headings_resolve(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(PROJECT), link
        assert not anchor or anchor in headings(target), link


def test_readme_is_short_and_links_to_every_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES
    assert {f"docs/{page.name}" for page in PAGES if page != README} <= {link.split("#")[0] for link in links(README)}


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_page_begins_with_its_purpose(page: Path) -> None:
    heading, _, _, paragraph, text, *_ = parse(page)
    assert (heading.tag, paragraph.type) == ("h1", "paragraph_open")
    assert text.content.replace("\n", " ").startswith(PURPOSE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mentioned_make_targets_and_modules_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", content, flags=re.MULTILINE)) <= set(targets)
    for module in re.findall(r"python -m ((?:benchmarks|checks|serving|stages)[a-z_0-9.]*)", content):
        path = PROJECT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_results_are_laid_out_as_make_repro_prints_them() -> None:
    assert results.results_table([]) in README.read_text(encoding="utf-8")
