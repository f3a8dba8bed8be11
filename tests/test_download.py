"""shared/data/download.py against servers that misbehave, and load_text on every kind of input.

Everything happens on 127.0.0.1: a web server whose routes a test writes as small functions, and
a stand-in for the Hugging Face hub that $HF_ENDPOINT points to.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import os
import random
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from shared import UserError  # noqa: E402
from shared.data import download as d  # noqa: E402

DATA = "".join(f"line {i} of a text worth having\n" for i in range(5000)).encode()
SHA = hashlib.sha256(DATA).hexdigest()


# ------------------------------------------------------------------------------ the local server


class Handler(BaseHTTPRequestHandler):
    """Sends every request to the route of its path; a route is called with the handler."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Range")))
        self.close_connection = True
        route = self.server.routes.get(self.path)
        if route is None:
            self.answer(404)
        else:
            route(self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        usual = {"Content-Length": str(len(body)), "Connection": "close"}
        for name, value in (usual | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`routes`: path -> function; `seen`: the (path, Range) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict = {}
        self.seen: list = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args: object) -> None:
        pass  # a client that hangs up is what some tests are about


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Short waits, no proxy, and none of the caller's settings."""
    monkeypatch.setattr(d, "TIMEOUT", (2.0, 0.4))
    monkeypatch.setattr(d, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("LMFS_DATA_DIR", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sample(monkeypatch):
    """Make a dataset `sample` with one file, from the given sources."""

    def make(*sources: str, sha256: str = SHA, **more) -> None:
        file = d.File("sample/text.txt", len(DATA), sha256, sources, **more)
        monkeypatch.setitem(d.DATASETS, "sample", d.Dataset("free", "here", (file,)))

    return make


def whole(handler: Handler) -> None:
    """A good server: ETag, Range, If-Range."""
    send(handler, DATA)


def send(handler: Handler, data: bytes, etag: str = '"v1"', upto: int | None = None) -> None:
    asked, same = handler.headers.get("Range"), handler.headers.get("If-Range") in (None, etag)
    start = int(asked[len("bytes=") : -1]) if asked and same else 0
    if start >= len(data):
        return handler.answer(416, Content_Range=f"bytes */{len(data)}")
    headers = {"ETag": etag, "Content-Length": str(len(data) - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    handler.answer(206 if start else 200, data[start:upto], **headers)


def once(first, then=whole):
    """The first request gets `first`, later ones `then`."""
    return one_by_one(first, then=then)


def one_by_one(*first, then=whole):
    """Each request gets the next of `first`, later ones `then`."""
    calls = iter(first)

    def route(handler: Handler) -> None:
        next(calls, then)(handler)

    return route


def got(folder: Path, **more) -> bytes:
    return d.ensure("sample", folder, **more)[0].read_bytes()


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in (folder / "sample").iterdir()} - {".lock"}


def fails(folder: Path, *words: str) -> str:
    """ensure() ends in one clear line that says `words`, and no file has the final name."""
    with pytest.raises(UserError) as caught:
        d.ensure("sample", folder)
    text = str(caught.value)
    assert "\n" not in text and ": " in text
    assert all(word in text for word in words), text
    assert not (folder / "sample" / "text.txt").exists()
    return text


# -------------------------------------------------------------------------------------- transfer


def test_right_bytes_arrive_and_nothing_else_stays(server, sample, tmp_path):
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert leftovers(tmp_path) == {"text.txt"}
    assert got(tmp_path) == DATA and len(server.seen) == 1  # there and right: left alone


def test_broken_connection_goes_on_with_range(server, sample, tmp_path):
    server.routes["/a"] = once(lambda h: send(h, DATA, upto=70_000))
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert server.seen == [("/a", None), ("/a", "bytes=70000-")]


def test_part_of_an_earlier_run_goes_on(server, sample, tmp_path):
    server.routes["/a"] = lambda h: send(h, DATA, upto=50_000)
    sample(f"{server.url}/a")
    fails(tmp_path, "could not be downloaded")
    assert leftovers(tmp_path) == {"text.txt.part", "text.txt.part.tag"}
    server.routes["/a"] = whole
    assert got(tmp_path) == DATA
    assert server.seen[-1] == ("/a", "bytes=50000-")
    assert leftovers(tmp_path) == {"text.txt"}


def test_part_that_is_already_whole_is_used(server, sample, tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/text.txt.part").write_bytes(DATA)
    (tmp_path / "sample/text.txt.part.tag").write_text(f'{server.url}/a\n"v1"')
    server.routes["/a"] = whole  # answers 416, bytes */N
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA and len(server.seen) == 1


def test_part_longer_than_the_file_starts_over(server, sample, tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/text.txt.part").write_bytes(DATA + b"too long")
    (tmp_path / "sample/text.txt.part.tag").write_text(f'{server.url}/a\n"v1"')
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert [asked for _, asked in server.seen] == [f"bytes={len(DATA) + 8}-", None]


def test_file_that_changed_meanwhile_starts_over(server, sample, tmp_path):
    old = b"old bytes " * 2000
    server.routes["/a"] = once(lambda h: send(h, old, '"v0"', upto=9000))
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA  # If-Range: "v0" no longer fits, so the server sends it whole


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', ""])
def test_server_without_range_starts_over(server, sample, tmp_path, etag):
    headers = {"ETag": etag} if etag else {}
    full = {"Content_Length": str(len(DATA)), **headers}
    server.routes["/a"] = once(
        lambda h: h.answer(200, DATA[:999], **full), lambda h: h.answer(200, DATA, **headers)
    )
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert server.seen[-1][1] == ("bytes=999-" if etag == '"v1"' else None)  # weak: no guess


def test_206_of_another_place_starts_over(server, sample, tmp_path):
    wrong = {"Content_Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}
    server.routes["/a"] = one_by_one(
        lambda h: send(h, DATA, upto=999), lambda h: h.answer(206, DATA[5:], **wrong)
    )
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA


def test_stalled_server_times_out_and_goes_on(server, sample, tmp_path):
    def stall(handler: Handler) -> None:
        send(handler, DATA, upto=40_000)
        handler.wfile.flush()
        time.sleep(1.5)

    server.routes["/a"] = once(stall)
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert server.seen[-1][1] == "bytes=32768-"  # of the last 16 KB block nothing is kept


def test_server_that_never_answers_is_an_error(server, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(d, "RETRIES", 1)
    server.routes["/a"] = lambda h: time.sleep(1)
    sample(f"{server.url}/a")
    fails(tmp_path, "127.0.0.1 sent nothing for 0 s")


def test_content_length_too_long_still_ends_well(server, sample, tmp_path):
    def liar(handler: Handler) -> None:
        if handler.headers.get("Range"):
            return handler.answer(416, Content_Range=f"bytes */{len(DATA)}")
        handler.answer(200, DATA, Content_Length=str(len(DATA) + 500), ETag='"v1"')

    server.routes["/a"] = liar
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA


def test_content_length_too_short_is_wrong_bytes(server, sample, tmp_path):
    server.routes["/a"] = lambda h: h.answer(200, DATA, Content_Length="1000")
    sample(f"{server.url}/a")
    fails(tmp_path, "wrong bytes from 127.0.0.1")
    assert leftovers(tmp_path) == set()


def test_404_is_final_and_the_next_mirror_is_asked(server, sample, tmp_path):
    server.routes["/b"] = whole
    sample(f"{server.url}/a", f"{server.url}/b")
    assert got(tmp_path) == DATA
    assert [path for path, _ in server.seen] == ["/a", "/b"]  # no second try at a 404


def test_404_everywhere_names_the_reason(server, sample, tmp_path):
    sample(f"{server.url}/a", f"{server.url}/b")
    fails(tmp_path, "127.0.0.1 answers 404 Not Found", "sample/text.txt", "by hand")


def test_500_is_tried_again_with_growing_pauses(server, sample, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(d.time, "sleep", pauses.append)
    answers = iter([500, 503, 502])
    server.routes["/a"] = lambda h: h.answer(s) if (s := next(answers, 0)) else whole(h)
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert [pause for pause in pauses if pause != 0.01] == [0.02, 0.04] and 0.01 in pauses


def test_500_for_ever_is_an_error(server, sample, tmp_path):
    server.routes["/a"] = lambda h: h.answer(500)
    sample(f"{server.url}/a")
    fails(tmp_path, "answers 500")
    assert len(server.seen) == d.RETRIES + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server, sample, tmp_path, monkeypatch, form):
    pauses = []
    monkeypatch.setattr(d.time, "sleep", pauses.append)
    after = "7" if form == "seconds" else email.utils.formatdate(time.time() + 7, usegmt=True)
    server.routes["/a"] = once(lambda h: h.answer(429, Retry_After=after))
    sample(f"{server.url}/a")
    assert got(tmp_path) == DATA
    assert 5 < max(pauses) <= 7


def test_retry_after_an_hour_goes_to_the_next_mirror(server, sample, tmp_path):
    server.routes |= {"/a": lambda h: h.answer(429, Retry_After="3600"), "/b": whole}
    sample(f"{server.url}/a", f"{server.url}/b")
    assert got(tmp_path) == DATA
    assert len(server.seen) == 2


def test_wrong_bytes_are_deleted_and_the_next_mirror_is_asked(server, sample, tmp_path):
    server.routes |= {"/a": lambda h: send(h, b"<html>please log in</html>"), "/b": whole}
    sample(f"{server.url}/a", f"{server.url}/b")
    assert got(tmp_path) == DATA
    assert server.seen == [("/a", None), ("/b", None)]
    assert leftovers(tmp_path) == {"text.txt"}


def test_wrong_bytes_everywhere_is_an_error(server, sample, tmp_path):
    server.routes["/a"] = lambda h: send(h, b"something else")
    sample(f"{server.url}/a")
    fails(tmp_path, "wrong bytes")
    assert leftovers(tmp_path) == set()


def test_redirect_is_followed_and_a_circle_is_an_error(server, sample, tmp_path):
    server.routes |= {"/a": lambda h: h.answer(302, Location="/b"), "/b": whole}
    sample(f"{server.url}/a")
    assert got(tmp_path / "one") == DATA
    server.routes["/b"] = lambda h: h.answer(302, Location="/a")
    fails(tmp_path / "two", "leads nowhere")


def test_refused_connection_fails_at_once(sample, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sample(f"http://127.0.0.1:{port}/a", f"http://127.0.0.1:{port}/b")
    start = time.monotonic()
    text = fails(tmp_path, "no connection to 127.0.0.1")
    assert time.monotonic() - start < d.KNOCK
    assert text.count("no connection") == 1  # the host is not asked for every mirror


def test_name_that_is_never_looked_up_fails_soon(sample, tmp_path, monkeypatch):
    real = time.sleep
    monkeypatch.setattr(d, "KNOCK", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: real(20) or [])
    sample("http://nowhere.invalid/a")
    start = time.monotonic()
    fails(tmp_path, "no connection to nowhere.invalid")
    assert time.monotonic() - start < 10


def test_package_that_is_not_installed_is_named(server, sample, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    fails(tmp_path, "package tqdm is not installed: run `pip install")


def test_too_little_disk_is_said_before_anything_is_fetched(server, sample, tmp_path, monkeypatch):
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    monkeypatch.setattr(d.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    fails(tmp_path, "MB are needed")
    assert server.seen == []


def test_two_at_once_download_once(server, sample, tmp_path):
    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        whole(handler)

    server.routes["/a"] = slow
    sample(f"{server.url}/a")
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(got(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA, DATA] and len(server.seen) == 1


def test_ctrl_c_leaves_a_part_to_go_on_from(server, sample, tmp_path, monkeypatch, capsys):
    def cut(response, size):
        yield DATA[:30_000]
        raise KeyboardInterrupt

    import requests

    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    with monkeypatch.context() as patch:
        patch.setattr(requests.Response, "iter_content", cut)
        assert d.main(["sample", "--data-dir", str(tmp_path)]) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert leftovers(tmp_path) == {"text.txt.part", "text.txt.part.tag"}
    assert got(tmp_path) == DATA
    assert server.seen[-1] == ("/a", "bytes=30000-")


def test_file_with_other_bytes_is_kept(server, sample, tmp_path, capsys):
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    mine = tmp_path / "sample/text.txt"
    mine.parent.mkdir()
    mine.write_text("my own notes")
    with pytest.raises(UserError, match=r"not the published file.*: run `python"):
        d.ensure("sample", tmp_path)
    assert mine.read_text() == "my own notes" and server.seen == []
    assert d.main(["sample", "--data-dir", str(tmp_path)]) == 0  # asked for: fetched
    assert mine.read_bytes() == DATA
    (old,) = mine.parent.glob("text.txt.*.old")
    assert old.read_text() == "my own notes" and old.name in capsys.readouterr().err


def test_zip_member(server, sample, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "x")
        archive.writestr("Inside", DATA)
    server.routes |= {
        "/bad": lambda h: send(h, b"not a zip"),
        "/good": lambda h: send(h, packed.getvalue()),
    }
    sample(f"{server.url}/bad#Inside", f"{server.url}/good#Other", f"{server.url}/good#Inside")
    assert got(tmp_path) == DATA
    assert leftovers(tmp_path) == {"text.txt"}


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_damaged_archive_is_a_source_that_does_not_deliver(kind, tmp_path):
    """Whatever bytes changed on the way, it is that error, so that the next mirror is asked."""
    url, part, dice = f"https://host/a.{kind}", tmp_path / "a.part", random.Random(1)
    if kind == "zip":
        url += "#Inside"
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("Inside", DATA[:3000])
    else:
        part.write_bytes(parquet(DATA[:3000].decode().splitlines(keepends=True)))
    whole, refused = part.read_bytes(), 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= dice.randrange(1, 256)
        part.write_bytes(damaged)
        try:
            d.unpack([url], [part], d.File("a", 3000, "", (url,)), tmp_path / "a.tmp")
        except d.SourceError:
            refused += 1
    assert refused > 100


# ------------------------------------------------------------------------------------------- hub

REVISION = "0123456789abcdef0123456789abcdef01234567"


def parquet(rows: list[str], column: str = "text", group: int = 1000) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pa.table({column: rows}), out, row_group_size=group)
    return out.getvalue()


def hub_file(server: Server, path: str, body: bytes, stated: str | None = None) -> str:
    """What the hub does: a redirect that states the SHA-256, then the storage."""
    stated = stated or hashlib.sha256(body).hexdigest()
    place = f"/storage/{len(server.routes)}"
    server.routes[place] = lambda h: send(h, body, '"blob"')
    server.routes[f"/datasets/{path}"] = lambda h: h.answer(
        302, Location=place, X_Linked_Etag=f'"{stated}"', X_Repo_Commit=REVISION
    )
    return place


def test_hub_rows_become_the_text(server, sample, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    rows = ["", " = Title = \n", "", " Some <unk> words . \n", ""]
    hub_file(server, f"o/n/resolve/{REVISION}/c/v.parquet", parquet(rows))
    text = b" \n = Title = \n \n Some <unk> words . \n \n"
    source = f"hf://o/n@{REVISION}/c/v.parquet"
    sample(source, sha256=hashlib.sha256(text).hexdigest(), row=d.wikitext_line)
    assert got(tmp_path) == text
    assert leftovers(tmp_path) == {"text.txt"}


def test_hub_shards_follow_each_other_and_resume(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    stories = d.DATASETS["tinystories"]
    small = tuple(file._replace(size=1000) for file in stories.files)
    monkeypatch.setitem(d.DATASETS, "tinystories", stories._replace(files=small))
    rows = ([f" Story {i} ended. \n", "", f"Another {i}\n\nof two parts."] for i in range(5))
    bodies, places = [parquet(each) for each in rows], []
    for i, url in enumerate(url for file in small for url in file.sources[0].split()):
        path = d.address(url).removeprefix(f"{server.url}/datasets/")
        places.append(hub_file(server, path, bodies[i]))
    server.routes[places[2]] = once(
        lambda h: send(h, bodies[2], upto=100), lambda h: send(h, bodies[2])
    )
    assert d.main(["tinystories", "--data-dir", str(tmp_path)]) == 0
    one = "Story {0} ended.\n<|endoftext|>\nAnother {0}\n\nof two parts.\n<|endoftext|>\n"
    assert (tmp_path / "tinystories/train.txt").read_text() == "".join(map(one.format, range(4)))
    assert (tmp_path / "tinystories/valid.txt").read_text() == one.format(4)
    assert (places[2], "bytes=100-") in server.seen
    corpus = d.load_text("tinystories", tmp_path)
    assert corpus.valid == one.format(4) and corpus.train.count("<|endoftext|>") == 8


def test_hub_bytes_that_differ_from_the_stated_sum_are_refused(
    server, sample, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    hub_file(server, f"o/n/resolve/{REVISION}/v.parquet", parquet(["x"]), stated="0" * 64)
    sample(f"hf://o/n@{REVISION}/v.parquet", sha256="")
    fails(tmp_path, "wrong bytes")
    assert leftovers(tmp_path) <= {"text.txt.part.tag"}


@pytest.mark.parametrize("body", ["no parquet", "other column"])
def test_hub_file_that_is_no_text_falls_back_to_the_mirror(
    server, sample, tmp_path, monkeypatch, body
):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    data = b"no parquet" if body == "no parquet" else parquet(["x"], column="other")
    hub_file(server, f"o/n/resolve/{REVISION}/v.parquet", data)
    server.routes["/mirror"] = whole
    sample(f"hf://o/n@{REVISION}/v.parquet", f"{server.url}/mirror")
    assert got(tmp_path) == DATA


def test_hf_hub_offline_asks_nobody(server, sample, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    fails(tmp_path, "HF_HUB_OFFLINE is set")
    assert server.seen == []


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "http://", "ftp://x", "http://h:abc", "http://[::"]
)
def test_hf_endpoint_that_is_no_address(sample, tmp_path, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    sample(f"hf://o/n@{REVISION}/v.parquet")
    fails(tmp_path, "not a web address", "HF_ENDPOINT")


def test_rows_are_written_in_bounded_memory(tmp_path):
    pytest.importorskip("resource")
    row = "once upon a time there was a fox " * 30
    file = tmp_path / "big.parquet"
    file.write_bytes(parquet([f"{i} {row}" for i in range(80_000)]))  # 80 MB of text
    code = f"""
import resource, sys
import pyarrow.parquet, tqdm
from pathlib import Path
from shared.data.download import File, story, unpack
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
file, new = Path({str(file)!r}), Path({str(tmp_path / "out")!r})
unpack(["big.parquet"], [file], File("", 0, "", (), story), new)
print((peak() - before) / (2**20 if sys.platform == "darwin" else 2**10))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "out").stat().st_size > 75e6
    assert float(result.stdout) < 50  # MB above the libraries themselves


# -------------------------------------------------------------------------------------- load_text


def test_file_splits_90_10_with_line_ends_and_byte_order_mark_gone(tmp_path):
    file = tmp_path / "novel.txt"
    file.write_bytes("\ufeffé one\r\ntwo\rthree\n".encode() + b"x" * 82)
    corpus = d.load_text(str(file))
    text = "é one\ntwo\nthree\n" + "x" * 82
    assert corpus.train + corpus.valid == text and len(corpus.train) == int(0.9 * len(text))
    assert corpus.name == str(file) and corpus.floor is None
    both = corpus.train.encode() + b"\0" + corpus.valid.encode()
    assert corpus.sha256 == hashlib.sha256(both).hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither a dataset nor a file: choose tales, tales-25mb, python-stdlib, tiny"),
        (b"", "is empty: "),
        (b"\xef\xbb\xbf", "is empty: "),
        (b"x", "only one character: "),
        (b"good \xff bad", "not UTF-8 (byte 0xff at offset 5): "),
        (b"\xef\xbb\xbfab\xe9", "not UTF-8 (byte 0xe9 at offset 5): "),
        ("folder", "is a folder: "),
    ],
)
def test_file_that_cannot_be_used_is_one_clear_line(tmp_path, content, words):
    file = tmp_path / "some.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        d.load_text(str(file))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_file_without_permission(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("text")
    file.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        d.load_text(str(file))


def test_unreadable_file_is_one_line(tmp_path, monkeypatch):
    file = tmp_path / "some.txt"
    file.write_text("text")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\): "):
        d.load_text(str(file))


def test_tiny_shakespeare_is_first_90_percent_and_rest(tmp_path, monkeypatch):
    folder = tmp_path / "tiny-shakespeare"
    folder.mkdir()
    (folder / "input.txt").write_bytes(DATA)
    dataset = d.DATASETS["tiny-shakespeare"]
    file = dataset.files[0]._replace(sha256=SHA)
    monkeypatch.setitem(d.DATASETS, "tiny-shakespeare", dataset._replace(files=(file,)))
    corpus = d.load_text("tiny-shakespeare", tmp_path)
    assert corpus.train == DATA.decode()[: int(0.9 * len(DATA))]
    assert corpus.train + corpus.valid == DATA.decode()
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path))
    assert d.load_text("tiny-shakespeare") == corpus


def test_wikitext_needs_no_test_split_and_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = []
    (tmp_path / "wikitext-2").mkdir()
    for file in d.DATASETS["wikitext-2"].files:
        text = f"{file.path}\n".encode()
        files.append(file._replace(sha256=hashlib.sha256(text).hexdigest()))
        if "test" not in file.path:
            (tmp_path / file.path).write_bytes(text)
    dataset = d.DATASETS["wikitext-2"]._replace(files=tuple(files))
    monkeypatch.setitem(d.DATASETS, "wikitext-2", dataset)
    corpus = d.load_text("wikitext-2", tmp_path)
    assert (corpus.train, corpus.valid) == ("wikitext-2/train.txt\n", "wikitext-2/valid.txt\n")
    (tmp_path / "wikitext-2/train.txt").unlink()
    with pytest.raises(UserError, match=r"wikitext-2/train.txt is not in .* could not be"):
        d.load_text("wikitext-2", tmp_path)


def test_published_file_with_other_bytes_is_not_trained_on(tmp_path):
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare/input.txt").write_text("To be or not to be")
    with pytest.raises(UserError, match=r"is not the published file .*: run `"):
        d.load_text("tiny-shakespeare", tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")  # a file where the data folder should be: root fails too
    with pytest.raises(UserError, match=r"cannot be written .*: .*LMFS_DATA_DIR"):
        d.load_text("tiny-shakespeare", tmp_path / "file")


@pytest.mark.parametrize("name", ["sms-spam", "instruct"])
def test_datasets_for_fine_tuning_are_not_texts(name):
    with pytest.raises(UserError, match=r"finetune_.*: choose tales"):
        d.load_text(name)


def test_python_stdlib_splits_by_file():
    corpus = d.load_text("python-stdlib")
    assert len(corpus.train) > 2_000_000 and len(corpus.valid) > 200_000
    assert corpus == d.load_text("python-stdlib")
    source = d.read(Path(os.__file__))
    assert (source in corpus.train) != (source in corpus.valid)


@pytest.fixture
def tales(monkeypatch):
    """A stand-in for shared/data/tales.py that notes what it is asked for."""
    asked = []

    def write_corpus(characters, seed, split):
        asked.append((characters, seed, split))
        return f"{split} tale. " * 3, 1.25

    module = types.SimpleNamespace(write_corpus=write_corpus)
    monkeypatch.setitem(sys.modules, "shared.data.tales", module)
    return asked


@pytest.mark.parametrize(("name", "size"), [("tales", 5_000_000), ("tales-25mb", 25_000_000)])
def test_tales_has_a_floor(tales, name, size):
    corpus = d.load_text(name)
    assert tales == [(size, 1, "train"), (250_000, 2, "valid")]
    assert (corpus.name, corpus.floor) == (name, 1.25)
    assert corpus.train.startswith("train") and corpus.valid.startswith("valid")


def test_default_falls_back_to_tales_in_one_line(tales, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert d.load_default("wikitext-2").name == "tales"
    out = capsys.readouterr()
    assert out.out.count("\n") == 1 and "training on the built-in tales" in out.out
    assert "wikitext-2/train.txt" in out.out and out.err == ""


def test_real_tales_agree_with_the_interface():
    pytest.importorskip("shared.data.tales")
    corpus = d.load_text("tales")
    assert len(corpus.train) >= 5_000_000 and 0 < corpus.floor < 8


# ------------------------------------------------------------------------------------ command line


def run(*args: str, cwd: Path = ROOT, script: str = "shared/data/download.py", **env: str):
    clean = {k: v for k, v in os.environ.items() if k not in ("LMFS_DATA_DIR", "HF_ENDPOINT")}
    return subprocess.run(
        [sys.executable, script, *args],
        cwd=cwd,
        env=clean | {"HF_HUB_OFFLINE": "1"} | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_list_works_from_both_folders(tmp_path):
    there = run("--list", LMFS_DATA_DIR=str(tmp_path))
    inside = run("--list", cwd=ROOT / "shared/data", script="download.py", LMFS_DATA_DIR="/nowhere")
    assert there.returncode == inside.returncode == 0
    for name in (*d.DATASETS, *d.BUILT_IN):
        assert name in there.stdout and name in inside.stdout
    assert str(tmp_path) in there.stdout and "CC BY 4.0" in there.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense", "tales", "rubbish"], "unknown dataset nonsense, rubbish: choose from"),
        (["--nonsense"], "unrecognized arguments"),
        (["tiny-shakespeare"], "HF_HUB_OFFLINE is set"),
    ],
)
def test_errors_are_one_line_and_status_2(tmp_path, args, words):
    result = run(*args, LMFS_DATA_DIR=str(tmp_path))
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_all_offline_says_so_for_each_and_quickly(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    assert d.main(["--data-dir", str(tmp_path)]) == 2
    assert time.monotonic() - start < d.KNOCK
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(d.DATASETS) and all(line.startswith("error: ") for line in lines)


def test_built_in_needs_no_download(tmp_path):
    result = run("tales", "python-stdlib", "--data-dir", str(tmp_path))
    assert (result.returncode, result.stderr, result.stdout.count("built in")) == (0, "", 2)


def test_main_downloads_then_leaves_alone(server, sample, tmp_path, capsys):
    server.routes["/a"] = whole
    sample(f"{server.url}/a")
    assert d.main(["sample", "--data-dir", str(tmp_path)]) == 0
    assert d.main(["sample", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"sample: downloaded to {tmp_path / 'sample'}",
        f"sample: already in {tmp_path / 'sample'}",
    ]


def test_hub_through_the_environment_in_a_process_of_its_own(server, tmp_path):
    """TinyStories through HF_ENDPOINT, as a user types it (needs the disk it asks for)."""
    if d.shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("the command would refuse for want of disk space")
    for file in d.DATASETS["tinystories"].files:
        for url in file.sources[0].split():
            path = d.address(url).partition("/datasets/")[2]
            hub_file(server, path, parquet(["A tale."]))
    env = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    result = run("tinystories", "--data-dir", str(tmp_path), **env)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "tinystories/train.txt").read_text() == "A tale.\n<|endoftext|>\n" * 4


def test_import_is_quick():
    heavy = ["requests", "datasets", "huggingface_hub", "pyarrow", "tqdm", "torch", "numpy"]
    code = f"import shared.data.download, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
