"""Validate params.yaml before any other stage, and write its JSON Schema for editors.

DVC deletes a stage's outputs before it runs the stage, so a mistake that is found later costs earlier results.
"""

from stages import artifacts, command, idx, params
from stages.params import Data


def main() -> None:
    """Validate params.yaml and write its JSON Schema."""
    parameters = params.load_params()
    check_classes(parameters.data)
    if parameters.device != "auto":
        from stages import devices  # imports PyTorch, which takes seconds

        devices.select_device(parameters.device)
    artifacts.write_json(artifacts.PARAMS_SCHEMA, params.Params.model_json_schema())


def check_classes(data: Data) -> None:
    """Raise UserError if a label file that is already downloaded has labels beyond `data.classes`."""
    for name in (artifacts.TRAIN_LABELS, artifacts.TEST_LABELS):
        path = artifacts.DATA / name
        if path.is_file() and artifacts.sha256_digest(path) == data.sha256[name]:
            data.check_labels(name, idx.read_idx(path))


if __name__ == "__main__":
    command.run(main)
