"""The harness's own command with manta among the models that it knows, whatever its version.

python -m manta.evaluation.lm_eval --model manta --model_args pretrained=FOLDER --tasks TASK

A program that adds a model and then calls the command is how the harness takes one that lies elsewhere. Its versions
after 0.4.13 find manta by themselves, as a plugin, and then this is the same as `lm_eval`.
"""

import sys
from importlib import import_module

from manta.errors import DataError, MantaError


def main() -> int:
    """Run the command with the arguments of this process.

    Returns:
        The exit code; what is wrong with a model, an option or a question is one line.
    """
    try:
        _command()
    except MantaError as error:
        print(f"lm_eval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


def _command() -> None:
    try:
        import_module("lm_eval.models")  # registers its own models, which an entry of ours would keep it from
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise DataError("its tasks need lm-eval; install it with: pip install 'manta[lm-eval]'") from error
    if "manta" not in model_registry:
        model_registry.register("manta", target="manta.evaluation.harness:HarnessModel")
    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
