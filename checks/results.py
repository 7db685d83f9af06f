"""Print a table of the models' metrics and the next commands, as `make repro` does when it ends."""

from checks import lock, prune
from checks.process import capture
from stages import artifacts, command, params

COLUMNS = ("model", "test accuracy", "loss", "calibration error", "robustness", "int8 accuracy")
PIPELINE = (str(artifacts.ROOT), str(lock.FILE), "dvc.yaml", str(params.FILE))  # what one commit has to hold together
COMMIT = f'git add {" ".join(PIPELINE)} && git commit --message "Reproduce the pipeline"'
NEXT_COMMANDS = (
    ("make serve", "serve the models, with a page to draw digits on"),
    ("source .venv/bin/activate", "use dvc and python in this shell"),
    ("dvc exp run -S recipes.default.fnn.learning_rate=0.5 evaluate@fnn", "then compare: dvc metrics diff"),
)


def main() -> None:
    """Print the metrics of params.yaml's models, and the next commands."""
    models = params.load_params().models
    print("", results_table(models), "", sep="\n")
    if stale := prune.stale_models(models):
        print(f"not in models, but still in the workspace: {', '.join(stale)}; `python -m checks.prune` removes them\n")
    if changed := changed_files():
        print(f"files that differ from the last commit: {changed}. Commit them as your baseline:")
        print(f"  {COMMIT}\n")
    print("next:")
    width = max(len(line) for line, _ in NEXT_COMMANDS)
    print(*(f"  {line:<{width}}  # {comment}" for line, comment in NEXT_COMMANDS), sep="\n")


def results_table(models: list[str]) -> str:
    """Return a Markdown table of the metrics on the test set; robustness is the mean over the perturbations."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for model in models:
        float32 = artifacts.read_json(artifacts.metrics(model))[model]
        int8 = artifacts.read_json(artifacts.metrics_int8(model))[artifacts.int8_name(model)]
        cells = [f"{float32['accuracy']:.2%}", f"{float32['loss']:.4f}", f"{float32['calibration_error']:.4f}"]
        cells += [f"{float32['robustness']:.2%}" if "robustness" in float32 else "", f"{int8['accuracy']:.2%}"]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def changed_files() -> int:
    """Return how many files of the pipeline differ from the last commit, or are not in it."""
    return len(capture("git", "status", "--porcelain", "--untracked-files=all", "--", *PIPELINE).splitlines())


if __name__ == "__main__":
    command.run(main)
