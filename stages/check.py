"""Check all of params.yaml before any other stage starts, and write its JSON Schema for editors.

DVC removes a stage's earlier outputs before it runs the stage: a mistake found any later would cost them.
"""

from stages import artifacts, command, params


def main() -> None:
    """Check params.yaml and write its JSON Schema."""
    parameters = params.load()
    if parameters.device != "auto":
        from stages import devices  # takes seconds, for it asks PyTorch

        devices.choose(parameters.device)
    artifacts.write_json(artifacts.PARAMS_SCHEMA, params.Params.model_json_schema())


if __name__ == "__main__":
    command.run(main)
