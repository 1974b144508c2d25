"""The dashboard as a Flask application. Each request reads what it shows from OUT, so that new nights appear.

=============================  =====================================================================================
``/``, ``/calls.csv``          some calls in numbers and charts, those that need a person first, all as a table
``/call``                      one call: waves, mel spectrogram and windows; its figure as JSON, its sound as WAV
``/moments``                   the windows worth hearing, to be listened to and labelled
``/upload``                    a recording of one's own, scored at once
``/labels``, ``/labels.csv``   what listeners have said, to train with
=============================  =====================================================================================

It answers only for host names that it was told, and takes nothing from pages of other sites: a page elsewhere must not
reach it through a visitor's browser. Whoever may reach it sees everything: sign-on is a proxy's in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import flask
from werkzeug.exceptions import HTTPException

from batchser.dashboard import overview, recordings, reviews
from batchser.dashboard.labels import Labels
from batchser.dashboard.options import Options, open_now, show
from batchser.dashboard.uploads import BusyError, Uploads
from batchser.errors import BatchserError, ConfigError
from batchser.pages.render import asset, plotly_js

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ASSETS: Final[dict[str, tuple[Callable[[], str], str]]] = {
    "style.css": (lambda: asset("style.css"), "text/css"),
    "charts.js": (lambda: asset("charts.js"), "text/javascript"),
    "recording.js": (lambda: asset("recording.js"), "text/javascript"),
    "plotly.js": (plotly_js, "text/javascript"),
}


def make_app(options: Options, uploads: Uploads, labels: Labels) -> flask.Flask:
    """Return the application.

    Raises
    ------
    ConfigError : there are no results at ``options.out``
    """
    open_now(options)
    app = flask.Flask(__name__, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = options.most_upload_bytes
    app.register_blueprint(overview.pages(options))
    app.register_blueprint(recordings.pages(options, uploads, labels))
    app.register_blueprint(reviews.pages(options, labels))
    _guard(app, options.hosts)

    @app.get("/assets/<name>")
    def assets(name: str) -> flask.Response:
        if name not in _ASSETS:
            flask.abort(404)
        read, kind = _ASSETS[name]
        response = flask.Response(read(), content_type=f"{kind}; charset=utf-8")
        response.headers["Cache-Control"] = "max-age=3600"
        return response

    return app


def _guard(app: flask.Flask, hosts: Sequence[str]) -> None:
    known = {name.strip("[]").lower() for name in hosts}

    @app.before_request
    def refuse_other_names() -> None:
        host = re.sub(r":\d*$", "", flask.request.host.lower())
        if host.strip("[]") not in known:
            flask.abort(400, "The dashboard is not known by this name: start it with --host-name.")

    @app.before_request
    def refuse_other_sites() -> None:
        if flask.request.method in ("GET", "HEAD"):
            return
        site = flask.request.headers.get("Sec-Fetch-Site")
        origin = flask.request.headers.get("Origin")
        ours = site in ("same-origin", "none") if site else origin in (None, flask.request.host_url.rstrip("/"))
        if not ours:
            flask.abort(403, "The request comes from a page of another site.")

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(BatchserError)
    def tell(error: BatchserError) -> tuple[str, int]:
        faults = error.faults if isinstance(error, ConfigError) else [str(error)]
        return show("problem.html", title="That cannot be shown", faults=faults), 400

    @app.errorhandler(BusyError)
    def tell_busy(error: BusyError) -> tuple[str, int]:
        return show("problem.html", title="Busy", faults=[str(error)]), 503

    @app.errorhandler(HTTPException)
    def tell_http(error: HTTPException) -> tuple[str, int]:
        told = error.description or ""
        if error.code == 413:
            told = f"A recording may have {app.config['MAX_CONTENT_LENGTH'] // 2**20} MB at most (--max-upload)."
        return show("problem.html", title=error.name, faults=[told]), error.code or 500
