"""Commands called in this process, and what they print."""

import json

from typer.testing import CliRunner

from cxr_ml.cli import app
from cxr_ml.commands import shared

shared.out.width = 200  # whatever the terminal, and whichever test imported it first


def strict(text):
    """The text as JSON, as strictly as other languages read it."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def call(*args):
    """The command in this process: exit status, standard output, standard error without line breaks."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def answer(*args):
    """What a command that must succeed prints as JSON."""
    status, out, err = call(*args, "--json")
    assert status == 0, err
    return strict(out)
