"""`modelmill serve`: the database and the builds as pages to read."""

import errno
import json
import socket
from pathlib import Path

import click

from modelmill.cli import options

EPILOG = options.EXAMPLE + "modelmill serve --db demo-build/records.db --builds ."


@click.command("serve", epilog=EPILOG, short_help="Pages over the database and the builds.")
@click.option("--db", help="Database to show (path or URL). Default: $MODELMILL_DB, or your own.")
@click.option(
    "--builds",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder in or below which builds lie; may be repeated.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to be reached at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="0 takes any that is free.",
)
@options.form
def serve(db: str | None, builds: tuple[Path, ...], host: str, port: int, form: str) -> None:
    """Serve read-only pages: models, platforms, measurements, predictions, builds, accuracy.

    Every page is also there as JSON, under the same address with .json. Ctrl-C ends it.
    """
    from modelmill.cli.progress import loading

    with loading():
        import uvicorn

        from modelmill.web.app import create
        from modelmill.web.start import is_loopback, names_of, open_site

        site = open_site(db, builds)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    url, source = f"http://{shown}:{port}", site.reader.database.location
    if form == "json":
        click.echo(json.dumps({"url": url, "database": source, "builds": [str(b) for b in builds]}))
    else:
        click.echo(f"{source}: {url} (Ctrl-C ends it)")
    if not is_loopback(host):
        click.echo(f"Everyone who can reach {host} can read these pages.", err=True)
    app = create(site, source, names_of(host))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        ValueError: the port is taken, or the address is not of this machine.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], address[1]), family=kind)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"--port {port}: in use on {host}, perhaps by another `modelmill serve`; "
                f"next: modelmill serve --port {port + 1 if port < 65535 else 0}"
            ) from error
        if error.errno == errno.EACCES:
            raise ValueError(
                f"--port {port}: needs the rights of an administrator; take one above 1023"
            ) from error
        raise ValueError(
            f"--host {host}: not an address of this machine ({error.strerror}); use 127.0.0.1 for "
            "this machine alone, 0.0.0.0 for all its addresses"
        ) from error


PLUGIN = serve
