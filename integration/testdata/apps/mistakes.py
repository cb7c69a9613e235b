"""One mistake each, for the sentence that it gets."""

settings = {"DEBUG": False}


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def create_app():
    return hello


def make_nothing():
    return None


def one_argument(request):
    return request


async def asgi(scope, receive, send):
    return None


def returns_none(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])


def yields_str(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["hello"]


def returns_str(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return "hello"


def no_start(environ, start_response):
    return [b"hello"]
