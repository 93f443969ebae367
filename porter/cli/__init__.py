"""The command line: one module a command, and nothing heavy imported before a command needs it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

import typer

from porter.cli.bench import bench
from porter.cli.check import check
from porter.cli.common import Failure, complain
from porter.cli.convert import convert
from porter.cli.diff import diff
from porter.cli.explain import explain
from porter.cli.export import export
from porter.cli.listing import list_
from porter.cli.parity import parity
from porter.cli.run import run
from porter.cli.serve import serve
from porter.cli.settings import defaults
from porter.cli.upgrade import upgrade

app = typer.Typer(
    name="porter",
    help="Turns diffusers pipelines into native vLLM-Omni models and proves that the two compute the same.",
    epilog="To begin with: porter convert diffusers.QwenImageEditPipeline -o out. Exit codes: 0 good, 1 the answer is "
    "no, 2 the question was bad. Settings: [tool.porter] in pyproject.toml.",
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list", short_help="what there is, and how it stands")(list_)
app.command("convert", short_help="write ports of pipelines")(convert)
app.command("check", short_help="are written ports what they should be?")(check)
app.command("diff", short_help="diffusers against its port, with the rules")(diff)
app.command("explain", short_help="a rule, a pipeline, or a line of a port")(explain)
app.command("parity", short_help="do diffusers and port compute the same?")(parity)
app.command("run", short_help="generate with a port")(run)
app.command(
    "serve",
    short_help="serve a port, or diffusers itself",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve)
app.command("bench", short_help="time a port against diffusers")(bench)
app.command("export", short_help="deliver ports into vLLM-Omni's source tree")(export)
app.command("upgrade", short_help="what another diffusers changes")(upgrade)

# typer carries its own click, or imports one, as its version will; the base of this class is the same in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _version(wanted: bool) -> None:
    if wanted:
        import porter

        print(f"porter {porter.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="print the version"),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 good, 1 the answer is no, 2 the question was bad."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    collects = gc.isenabled()
    try:
        settings = {} if given[0].startswith("-") else defaults()
        return command.main(given, prog_name="porter", standalone_mode=False, default_map=settings) or 0
    except Failure as failure:
        if failure.details:
            print(failure.details, file=sys.stderr)
        complain(str(failure))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; say nothing more
        return 1
    except _UsageError as error:  # its text names the option
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        complain(f"{error.format_message()}{hint}")  # type: ignore[attr-defined]
        return 2
    finally:
        if collects and arguments is not None:  # a caller goes on; a program is about to end
            gc.enable()
