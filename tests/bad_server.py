"""A web server on 127.0.0.1 that misbehaves on request: the path of an address says how."""

import io
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def jpeg(width: int = 32, height: int = 24, color: tuple[int, int, int] = (200, 60, 40)) -> bytes:
    """A small JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class BadServer(ThreadingHTTPServer):
    """`pages` are bodies by path; a path may begin with the name of a misbehaviour (see Handler)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.agents: set[str] = set()
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what is tested


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BadServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            server.times[self.path].append(time.monotonic())
            server.agents.add(self.headers.get("User-Agent", ""))
            nth = server.asked[self.path]
        kind = self.path.strip("/").split("/")[0]
        getattr(self, f"do_{kind}", self.do_page)(nth)

    def send(self, status: int, body: bytes, kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_page(self, nth: int) -> None:
        body = self.server.pages.get(self.path)
        self.send(200, body) if body else self.send(404, b"nothing here", "text/plain")

    def do_slow(self, nth: int) -> None:
        server = self.server
        with server.lock:
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        time.sleep(0.15)
        with server.lock:  # before the answer: with it the client may go on
            server.active -= 1
        self.send(200, jpeg())

    def do_held(self, nth: int) -> None:
        self.server.released.wait(20)
        self.send(200, jpeg())

    def do_dripping(self, nth: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.released.wait(0.05):
            self.wfile.write(b"\xff")

    def do_dripping_head(self, nth: int) -> None:
        while not self.server.released.wait(0.05):
            self.wfile.write(b"H")

    def do_drops(self, nth: int) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_drops_once(self, nth: int) -> None:
        self.do_drops(nth) if nth == 1 else self.send(200, jpeg())

    def do_500(self, nth: int) -> None:
        self.send(500, b"oops", "text/plain")

    def do_500_twice(self, nth: int) -> None:
        self.do_500(nth) if nth <= 2 else self.send(200, jpeg())

    def do_429_once(self, nth: int) -> None:
        if nth == 1:
            self.send(429, b"slow down", "text/plain", Retry_After="1")
        else:
            self.send(200, jpeg())

    def do_429_hour(self, nth: int) -> None:
        self.send(429, b"slow down", "text/plain", Retry_After="3600")

    def do_html(self, nth: int) -> None:
        self.send(200, b"  <!DOCTYPE html><p>please log in</p>")

    def do_text(self, nth: int) -> None:
        self.send(200, jpeg(), "text/html; charset=utf-8")

    def do_png(self, nth: int) -> None:
        buffer = io.BytesIO()
        Image.new("RGBA", (1300, 650), (0, 0, 0, 0)).save(buffer, "PNG")
        self.send(200, buffer.getvalue(), "application/octet-stream")

    def do_garbage(self, nth: int) -> None:
        self.send(200, b"\x00\x01\x02" * 100)

    def do_empty(self, nth: int) -> None:
        self.send(200, b"")

    def do_too_long(self, nth: int) -> None:
        """It says more than it sends."""
        self.close_connection = True
        self.send(200, jpeg()[:-40], Content_Length=str(len(jpeg())))

    def do_too_short(self, nth: int) -> None:
        """It says less than it sends, so that the image is cut."""
        self.close_connection = True
        self.send(200, jpeg(300, 300), Content_Length="400")

    def do_cut(self, nth: int) -> None:
        """No length, and it ends early."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(jpeg(300, 300)[:600])

    def do_announced(self, nth: int) -> None:
        self.send(200, jpeg(), Content_Length="99999999999")

    def do_endless(self, nth: int) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        while True:
            self.wfile.write(b"\xff\xd8" * 32768)

    def do_gzip(self, nth: int) -> None:
        self.send(200, jpeg(), Content_Encoding="gzip")

    def do_loop(self, nth: int) -> None:
        self.send(302, b"", Location="/loop/again")

    def do_moved(self, nth: int) -> None:
        self.send(301, b"", Location="/good.jpg")

    def do_to_file(self, nth: int) -> None:
        self.send(302, b"", Location="file:///etc/passwd")

    def do_to_private(self, nth: int) -> None:
        self.send(302, b"", Location=f"http://127.0.0.1:{self.server.server_address[1]}/good.jpg")

    def do_nonsense(self, nth: int) -> None:
        self.close_connection = True
        self.wfile.write(b"this is no HTTP at all\r\n\r\n")


@contextmanager
def bad_server() -> Iterator[BadServer]:
    """A server that runs while the block does."""
    server = BadServer()
    server.pages["/good.jpg"] = jpeg()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
