"""A small Flask site: a page, a form, an upload, a streamed download, a redirect."""

import hashlib

from flask import Flask, Response, redirect, request, url_for

app = Flask(__name__)


@app.get("/")
def index():
    return f'<p>Hello from Flask</p><a href="{url_for("new", x=1)}">new</a>'


@app.post("/form")
def form():
    return {"fields": sorted(request.form.items(multi=True))}


@app.post("/upload")
def upload():
    sent = request.files["file"]
    body = sent.read()
    return {
        "filename": sent.filename,
        "note": request.form["note"],
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(body),
    }


@app.get("/download")
def download():
    blocks = int(request.args["blocks"])
    size = int(request.args["size"])
    return Response(
        (bytes([n % 256]) * size for n in range(blocks)), mimetype="application/octet-stream"
    )


@app.get("/old")
def old():
    return redirect(url_for("new", x=1))


@app.get("/new")
def new():
    return f"new page, x={request.args['x']}"
