"""The pages as a web application: every address answers GET and HEAD, as HTML and as JSON.

`/models` is a page and `/models.json` what it says; the first page is `/` and `/index.json`.
Nothing is loaded from elsewhere and no script runs: the Content-Security-Policy says so to the
browser. The report of a build was written by whoever made the folder; it is shown in a sandbox.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import jinja2
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

import modelmill
from modelmill.line import figures
from modelmill.line.templating import environment
from modelmill.web import drawing
from modelmill.web.content import AskedError, NotHereError, Site
from modelmill.web.reader import UnreadableError

Json = dict[str, Any]
TEMPLATES = FilePath(__file__).parent / "templates"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "img-src data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
# A report brings its own style, and nothing else is let in.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
Words = Annotated[str, Query(max_length=200)]
Place = Annotated[str, Query(max_length=1000)]
Number = Annotated[int, Path(ge=1, lt=2**63)]
ByName = Literal["name", "-name"]
ByTime = Literal["newest", "fastest", "slowest"]
Show = Callable[[str, Request, Json], Response]
Endpoint = Callable[..., Response]


def create(site: Site, source: str, hosts: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        site: what the pages are made from.
        source: the database in words, for the foot of every page.
        hosts: names by which the server may be called, see `start.names_of`; () for any.
    """
    app = FastAPI(title="modelmill", docs_url=None, redoc_url=None, openapi_url=None)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    show = _shown(_environment(source))
    _add_measured(app, site, show)
    _add_built(app, site, show)
    _add_files(app)
    _add_failures(app, show)

    _protect(app, show)
    return app


def _protect(app: FastAPI, show: Show) -> None:
    """The headers of every answer, and no zero byte in any address: PostgreSQL takes none."""

    @app.middleware("http")
    async def protect(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
            said = {"status": 400, "what": "Bad Request", "why": "a zero byte is in no name"}
            response = show("error.html", request, said)
            response.status_code = HTTPStatus.BAD_REQUEST
        else:
            response = await call_next(request)
        for name, value in {**HEADERS, "Content-Security-Policy": POLICY}.items():
            response.headers.setdefault(name, value)
        return response


def _page(app: FastAPI, path: str) -> Callable[[Endpoint], Endpoint]:
    """Serve a function at `path`, and at `path`.json, which is matched first."""

    def add(endpoint: Endpoint) -> Endpoint:
        for address in (f"{path}.json" if path != "/" else "/index.json", path):
            app.add_api_route(address, endpoint, methods=["GET", "HEAD"], response_model=None)
        return endpoint

    return add


def _add_measured(app: FastAPI, site: Site, show: Show) -> None:
    """Models, platforms, measurements and predictions."""

    @_page(app, "/")
    def home(request: Request) -> Response:
        return show("home.html", request, site.home())

    @_page(app, "/models")
    def models(
        request: Request,
        family: Words = "",
        q: Words = "",
        sort: ByName = "name",
        after: Place = "",
    ) -> Response:
        return show("models.html", request, site.models(family, q, sort, after))

    @_page(app, "/models/{structure}")
    def model(request: Request, structure: str) -> Response:
        return show("model.html", request, site.model(structure))

    @_page(app, "/platforms")
    def platforms(request: Request) -> Response:
        return show("platforms.html", request, site.platforms())

    @_page(app, "/platforms/{key}")
    def platform(
        request: Request, key: str, sort: ByTime = "newest", after: Place = ""
    ) -> Response:
        return show("platform.html", request, site.platform(key, sort, after))

    @_page(app, "/measurements")
    def measurements(
        request: Request,
        platform: Words = "",
        family: Words = "",
        sort: ByTime = "newest",
        after: Place = "",
    ) -> Response:
        found = site.measurements(platform, family, sort, after)
        return show("measurements.html", request, found)

    @_page(app, "/measurements/{id}")
    def measurement(request: Request, id: Number) -> Response:
        return show("measurement.html", request, site.measurement(id))

    @_page(app, "/predictions")
    def predictions(request: Request) -> Response:
        return show("predictions.html", request, site.predictions())

    @_page(app, "/search")
    def search(request: Request, q: Words = "") -> Response:
        return show("search.html", request, site.search(q))


def _add_built(app: FastAPI, site: Site, show: Show) -> None:
    """Builds, their reports, and what came out of them all."""

    @_page(app, "/accuracy")
    def accuracy(request: Request, model: Words = "") -> Response:
        return show("accuracy.html", request, site.accuracy(model))

    @_page(app, "/builds")
    def builds(request: Request) -> Response:
        return show("builds.html", request, site.list_builds())

    @app.api_route("/builds/{id}/report.html", methods=["GET", "HEAD"], response_model=None)
    def report(id: str) -> Response:
        build = site.builds.find(id)
        path = build.page() if build is not None else None
        if path is None:
            raise NotHereError(f"no report of a build {id[:80]!r}; /builds lists what is there")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)

    @_page(app, "/builds/{id}")
    def build(request: Request, id: str) -> Response:
        return show("build.html", request, site.build(id))


def _add_files(app: FastAPI) -> None:
    """The style: that of the report of a build, and what the other pages add."""
    report = files("modelmill.line") / "templates" / "report.css"
    style = f"{report.read_text('utf-8')}\n{(TEMPLATES / 'web.css').read_text('utf-8')}"

    @app.api_route("/style.css", methods=["GET", "HEAD"])
    def css() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    @app.api_route("/favicon.ico", methods=["GET", "HEAD"])
    def icon() -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_failures(app: FastAPI, show: Show) -> None:
    """Every failure as a page that says what, why and where to go on."""

    def fail(request: Request, status: int, why: str) -> Response:
        words = {"status": status, "what": HTTPStatus(status).phrase, "why": why}
        response = show("error.html", request, words)
        response.status_code = status
        return response

    @app.exception_handler(HTTPStatus.NOT_FOUND)
    def nowhere(request: Request, error: Exception) -> Response:
        return fail(request, HTTPStatus.NOT_FOUND, f"no page {request.url.path[:200]!r}")

    @app.exception_handler(HTTPStatus.METHOD_NOT_ALLOWED)
    def refused(request: Request, error: Exception) -> Response:
        why = "these pages are for reading: only GET and HEAD"
        response = fail(request, HTTPStatus.METHOD_NOT_ALLOWED, why)
        response.headers["Allow"] = "GET, HEAD"
        return response

    @app.exception_handler(RequestValidationError)
    def unclear(request: Request, error: RequestValidationError) -> Response:
        said = [f"{e['loc'][-1]}: {e['msg'].lower()}" for e in error.errors()]
        return fail(request, HTTPStatus.BAD_REQUEST, "; ".join(said))

    @app.exception_handler(NotHereError)
    def absent(request: Request, error: NotHereError) -> Response:
        return fail(request, HTTPStatus.NOT_FOUND, str(error))

    @app.exception_handler(AskedError)
    def wrong(request: Request, error: AskedError) -> Response:
        return fail(request, HTTPStatus.BAD_REQUEST, str(error))

    @app.exception_handler(UnreadableError)
    def unreadable(request: Request, error: UnreadableError) -> Response:
        return fail(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def _environment(source: str) -> jinja2.Environment:
    made = environment(TEMPLATES)
    made.filters.update(
        ms=figures.ms, si=figures.si, size=figures.size, times=figures.times, metric=figures.metric
    )
    made.filters.update(share=_share, day=_day)
    made.globals.update(draw=drawing, Unit=figures.Unit, source=source)
    made.globals.update(version=modelmill.__version__)
    return made


def _shown(environment: jinja2.Environment) -> Show:
    def show(template: str, request: Request, said: Json) -> Response:
        if request.url.path.endswith(".json"):
            return JSONResponse(said)
        query = f"?{request.url.query}" if request.url.query else ""
        name = request.url.path if request.url.path != "/" else "/index"
        as_json = f"{name}.json{query}" if template != "error.html" else ""
        page = environment.get_template(template)
        return HTMLResponse(page.render(path=request.url.path, as_json=as_json, **said))

    return show


def _share(value: float | None) -> str:
    """0.0123 -> 1.2 %; None -> a dash."""
    return "–" if value is None else f"{100 * value:.1f}{figures.NO_BREAK}%"


def _day(when: str) -> str:
    """ISO 8601 in UTC, to the minute, for people."""
    moment = datetime.fromisoformat(when).astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M}"
