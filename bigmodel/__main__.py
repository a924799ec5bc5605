"""The `bigmodel` command: parse, call, print. Each verb imports what it needs, so that --help answers at once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="From a file of data to a trained, tested model behind one autoscaled HTTP endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog="A first look: bigmodel demo. With your own data: bigmodel train reviews.yaml optim.lr=2e-3",
)

ModelDir = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model directory: runs/NAME/model, or any of Hugging Face.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/NAME.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16, or auto: the one the model was scored in.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="How the files are read, where not as in training: data.label=stars"
    ),
]


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"bigmodel {version('bigmodel')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="The experiment file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes for this run, such as optim.lr=2e-3")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: delete the run in the output folder.")] = False,
) -> None:
    """Train the model of an experiment file, and test it.

    A run that was interrupted goes on where it was; one that is finished is not trained again.
    """
    from bigmodel import pipeline

    pipeline.train(experiment, overrides or [], fresh)


@app.command()
def tune(
    experiment: Annotated[Path, typer.Argument(help="An experiment file, such as reviews.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, and ranges: model.hidden_size=choice:64,128"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials; the experiment as it is comes first.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at a time; else as many as fit.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: delete the search in its folder.")] = False,
) -> None:
    """Search the best learning rate and betas, and whatever else is given a range.

    A search that was interrupted goes on where it was. The winner is best.yaml in the folder OUTPUT-tune, its model
    beside it.
    """
    from tune_jobs.tune import tune as run

    asked = {"tune.trials": trials, "tune.max_concurrent": max_concurrent}
    run(
        experiment,
        [*(overrides or []), *(f"{key}={value}" for key, value in asked.items() if value is not None)],
        fresh,
    )


@app.command()
def evaluate(
    model: ModelDir,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files with labels, in the format the model was trained from.")
    ],
    output: Annotated[Path | None, typer.Option(help="Write the report here as JSON.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    changes: Changes = None,
) -> None:
    """Test a model on files of labelled rows."""
    from bigmodel import pipeline

    pipeline.evaluate(model, files, output, device, precision, changes or [])


@app.command()
def predict(
    model: ModelDir,
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Files of rows; none with --text.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the answers here, JSON Lines; else they are printed.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Answer this text; may be given again.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show which tokens, columns or pixels decided.")] = False,
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="A field of the endpoint's request, for all rows: temperature=0.8"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    changes: Changes = None,
) -> None:
    """Answer the rows of files, or single texts."""
    from bigmodel import pipeline

    pipeline.predict(model, files or [], output, text or [], explain, device, precision, changes or [], ask or [])


@app.command()
def serve(
    model: ModelDir,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one entry port.")] = 8000,
    host: Annotated[str, typer.Option(help="Where to listen; this machine alone by default.")] = "127.0.0.1",
    name: Annotated[str | None, typer.Option(help="The word in /models/NAME/predict; else the run's folder.")] = None,
    min_replicas: Annotated[int, typer.Option(help="Replicas that always run.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Replicas at most, as requests come.")] = 1,
    num_cpus: Annotated[
        float | None, typer.Option(help="CPUs of each replica; else the machine's, shared among the replicas.")
    ] = None,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each replica.")] = 0,
    max_body_bytes: Annotated[int | None, typer.Option(help="Bytes of one request's body; 1 MiB if not given.")] = None,
    key_file: Annotated[
        str, typer.Option(help="Keys, one a line, of which a request must show one; none, or auto: beyond loopback.")
    ] = "auto",
    precision: Precision = "auto",
) -> None:
    """Serve a model over HTTP until Ctrl-C.

    On a Ray of its own, or on the one that RAY_ADDRESS names.
    """
    from serve_app.start import serve as run

    run(
        model,
        host=host,
        port=port,
        name=name,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_body_bytes=max_body_bytes,
        key_file=key_file,
        precision=precision,
    )


@app.command()
def demo(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="What is shown.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the demonstration's run; else runs/demo, or runs/demo-TASK.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 0,
) -> None:
    """Walk the whole path once: train, test, serve, ask.

    The data comes with bigmodel, such as 5,000 reviews that a small grammar writes. It takes less than a minute.

    \b
    TASK is text-classification (if none is named), image-classification,
    translation, text-generation, tabular-classification or tabular-regression.
    """
    from bigmodel import demonstration

    demonstration.walk(task, output, port)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where they are, up to three folders below.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """List the runs below a folder, the newest first."""
    from bigmodel.history import listing

    listing.show(folder, json)


@app.command()
def show(
    run: RunDir,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on telling what happens until the run ends, or until Ctrl-C.")
    ] = False,
) -> None:
    """Tell what a run was asked, how far it is, what came out.

    Also while it runs; nothing of it is changed.
    """
    from bigmodel.history import account

    account.show(run, follow)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Say in what two runs differ.

    Experiment, data, versions, decisions, machine, result, the losses of the steps, weights.
    """
    from bigmodel.history import difference

    difference.show(a, b)


@app.command()
def reproduce(
    run: RunDir,
    output: Annotated[Path | None, typer.Option(help="Folder of the second run; else RUN-again.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: delete the run in that folder.")] = False,
) -> None:
    """Train a finished run again, and compare every bit.

    Its data must be as it was. Exit code 0 if weights and losses are equal, else 1.
    """
    from bigmodel.history import reproduce as again

    raise typer.Exit(again.reproduce(run, output, fresh))


def main(arguments: list[str] | None = None) -> None:
    """Run the command. A mistake of the user is one message and exit code 2; an interrupted run leaves with 130."""
    from bigmodel.errors import BigmodelError, Interrupted
    from bigmodel.imports import lighten

    lighten()
    atexit.register(gc.freeze)  # at its end Python would walk all objects once more
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a command as Ctrl-C does
    try:
        app(arguments, prog_name="bigmodel")
    except Interrupted as e:
        print(f"bigmodel: {e}", file=sys.stderr)
        sys.exit(130)
    except BigmodelError as e:
        print(f"bigmodel: {e}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code not in (130, signal.SIGTERM):  # typer's Ctrl-C, and Ray's SIGTERM
            raise
        print("bigmodel: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read what we print has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        sys.exit(1)


if __name__ == "__main__":
    main()
