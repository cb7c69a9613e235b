"""The pages of flask_site.py, made with Django, in one file."""

import hashlib

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
)


def index(request):
    return HttpResponse(f'<p>Hello from Django</p><a href="{reverse("new")}?x=1">new</a>')


def form(request):
    fields = [[name, value] for name, values in request.POST.lists() for value in values]
    return JsonResponse({"fields": sorted(fields)})


def upload(request):
    sent = request.FILES["file"]
    digest = hashlib.sha256()
    for block in sent.chunks():
        digest.update(block)
    return JsonResponse(
        {
            "filename": sent.name,
            "note": request.POST["note"],
            "sha256": digest.hexdigest(),
            "size": sent.size,
        }
    )


def download(request):
    blocks = int(request.GET["blocks"])
    size = int(request.GET["size"])
    return StreamingHttpResponse(
        (bytes([n % 256]) * size for n in range(blocks)), content_type="application/octet-stream"
    )


def old(request):
    return HttpResponseRedirect(reverse("new") + "?x=1")


def new(request):
    return HttpResponse(f"new page, x={request.GET['x']}")


urlpatterns = [
    path("", index),
    path("form", form),
    path("upload", upload),
    path("download", download),
    path("old", old),
    path("new", new, name="new"),
]

application = get_wsgi_application()
