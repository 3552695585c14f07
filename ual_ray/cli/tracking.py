"""MLflow and model hubs: serve MLflow's UI, send what could not be logged, promote a model, push it to a hub."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer
from rich.console import Console

from ual_ray.cli.arguments import Uri, local
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.run.terminal import absolute, is_uri, make_console

STORES = ("sqlite", "postgresql", "mysql", "mssql", "file")


def ui(
    output: Annotated[
        str, typer.Argument(metavar="RUN", help="Output folder whose MLflow store to show; of a URI, a copy is shown.")
    ] = "runs/demo",
    uri: Annotated[str | None, typer.Option(metavar="URI", help="MLflow tracking URI to show instead.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but localhost exposes the UI to the network.")
    ] = "127.0.0.1",
) -> None:
    """Serve the MLflow UI until Ctrl-C."""
    from ual_ray.preflight import check_port

    check_port(host, port)
    folder = local(output, with_store=True) if is_uri(output) else Path(output)
    raise typer.Exit(serve(uri, folder, host, port, make_console()))


def sync(
    output: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of a command that could not reach MLflow.")],
    uri: Uri = None,
) -> None:
    """Send to MLflow what could not be logged while its server was unreachable. Exit status 1: operations are still pending."""
    from ual_ray.tracking.tracker import catch_up

    done = catch_up(absolute(output), uri)
    typer.echo(f"{plural(done.sent, 'operation')} sent, {done.refused} refused, {done.waiting} waiting")
    raise typer.Exit(1 if done.waiting else 0)


def promote(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Output folders of `ual run` with different seeds, or a scenario's folder of an experiment."
        ),
    ],
    arm: Annotated[str | None, typer.Option(metavar="ARM", help="Arm to promote; the only eligible one by default.")] = None,
    uri: Uri = None,
) -> None:
    """Give an arm's registered model the alias `champion`, if it is better over at least three seeds and nowhere worse.

    Of the arm's models, one per training seed, the one with the lowest validation loss, smoothed as in training, becomes the
    champion.
    """
    from ual_ray.report.promote import promote as promote_arm

    promote_arm([absolute(run) for run in runs], make_console(), arm, uri)


def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Output folder of `ual run`, or a scenario's of `ual experiment`.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository of the model; the data set goes to OWNER/NAME-scored.")
    ],
    arm: Annotated[str, typer.Option(metavar="ARM", help="Arm whose model to push.")] = "ual",
    data: Annotated[bool, typer.Option(help="Push the scored data set too.")] = True,
    public: Annotated[bool, typer.Option("--public", help="Make new repositories public instead of private.")] = False,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", envvar="HF_ENDPOINT", help="Address of the hub; huggingface.co by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files with their sizes, and send nothing.")] = False,
) -> None:
    """Upload an arm's model, with its card and verdicts, and the scored data set to a model hub, with the token in HF_TOKEN."""
    from ual_ray.report import push as hub

    uploads, console = hub.gather(absolute(run), repository, arm, data=data), make_console()
    hub.show(uploads, console, public=public)
    if not dry_run:
        hub.push(uploads, endpoint, console, public=public)


def serve(uri: str | None, output: Path, host: str, port: int, console: Console) -> int:
    """Run MLflow's own server until it is stopped; return its exit code. Raises UserError where it has no store to serve."""
    from ual_ray.config.files import STORE_FILE
    from ual_ray.config.redact import redact_uri
    from ual_ray.tracking.tracker import default_uri

    if uri is None and not (output / STORE_FILE).is_file():
        above = next((folder for folder in output.absolute().parents if (folder / STORE_FILE).is_file()), None)
        raise UserError(
            "there is no MLflow store in the folder",
            got=output,
            fix=f"ual ui {shlex.quote(str(above))}" if above else "give the output folder of a finished command, or --uri",
        )
    if uri is not None and "://" in uri and not uri.startswith(STORES):
        raise UserError(
            "--uri: MLflow serves no store at such an address",
            got=redact_uri(uri),
            expected=", ".join(f"{scheme}://..." for scheme in STORES),
            fix="open the address of a running server in a browser",
        )
    if uri is not None and (kept := _local_store(uri)) and not kept.exists():
        # MLflow would make an empty one.
        raise UserError("--uri: there is no MLflow store at the address", got=redact_uri(uri), fix="correct the path")
    console.print(f"MLflow: http://{host}:{port} (Ctrl-C stops it)", highlight=False, markup=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", uri or default_uri(output)]
    try:
        return subprocess.call(command)  # noqa: S603
    except KeyboardInterrupt:
        return 0


def _local_store(uri: str) -> Path | None:
    """Return the file or folder of a store on this machine; None = it is a server's."""
    from sqlalchemy.engine import make_url

    if uri.startswith("sqlite:"):
        return Path(make_url(uri).database or "")
    return None if "://" in uri and not uri.startswith("file:") else Path(url2pathname(urlsplit(uri).path))
