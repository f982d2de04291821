"""The web application: routes and what surrounds them."""

from aiohttp import web

from spyglass_bridge.body import hold_continue
from spyglass_bridge.cors import answer_preflight
from spyglass_bridge.middleware import admit_caller, answer_errors, finish_headers, name_request
from spyglass_bridge.page_files import page_files
from spyglass_bridge.routes.table import PAGE_ROUTES, ROUTES
from spyglass_bridge.services import SERVICES, Services


def make_app(services: Services) -> web.Application:
    """Builds the application from its routes. The services must stay open while it runs."""
    app = web.Application(middlewares=[name_request, answer_errors, answer_preflight, admit_caller])
    app[SERVICES] = services
    app.on_response_prepare.append(finish_headers)
    page_files()  # read and compress them now, not at the first request
    has_page = services.config.page != "off"
    for route in (*PAGE_ROUTES, *ROUTES) if has_page else ROUTES:
        add = app.router.add_get if route.method == "get" else app.router.add_post
        for path in route.paths:
            expect_handler = hold_continue if route.body is not None else None
            add(
                path.replace("{model}", "{model:.+}").replace("{file}", "{file:.+}"),
                route.handler,
                expect_handler=expect_handler,
            )
    return app
