"""The web application: routes and what surrounds them."""

from aiohttp import web

from spyglass_bridge.body import hold_continue
from spyglass_bridge.middleware import admit_caller, answer_errors, finish_headers, name_request
from spyglass_bridge.routes.table import ROUTES
from spyglass_bridge.services import SERVICES, Services


def make_app(services: Services) -> web.Application:
    """Puts the routes together. The services must stay open as long as the application runs."""
    app = web.Application(middlewares=[name_request, answer_errors, admit_caller])
    app[SERVICES] = services
    app.on_response_prepare.append(finish_headers)
    for route in ROUTES:
        add = app.router.add_get if route.method == "get" else app.router.add_post
        for path in route.paths:
            expect_handler = hold_continue if route.body is not None else None
            add(path.replace("{model}", "{model:.+}"), route.handler, expect_handler=expect_handler)
    return app
