"""An HTTP server on the loopback that lies in one chosen way, and counts what it was asked."""

import contextlib
import re
import socket
import socketserver
import threading
import time


class Server(socketserver.ThreadingTCPServer):
    """Serves ``data`` at every path; ``lie(request)`` may answer instead and then returns True."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, data, lie=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.lie = lie
        self.tag = '"1"'
        self.delay = 0.0
        self.ranges = []
        self.paths = []
        self.headers = []
        self.connections = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/x.hello"

    def stop(self):
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self.thread.join(5)

    def handle_error(self, request, client_address):
        pass


class Request:
    """One GET: the asked range and the means to answer it in any way."""

    def __init__(self, server, stream, start, end):
        self.server, self.stream = server, stream
        self.start, self.end = start, end
        self.keep = True
        # How many requests came before.
        self.number = len(server.ranges) - 1

    @property
    def body(self):
        return self.server.data[self.start : self.end]

    def answer(self, status="206 Partial Content", body=None, *, length=0, close=False, **changes):
        """Headers of an honest answer, changed; ``length`` is added to the stated length."""
        body = self.body if body is None else body
        total = len(self.server.data)
        headers = {
            "Content_Range": f"bytes {self.start}-{self.start + len(self.body) - 1}/{total}",
            "Content_Length": str(len(body) + length),
            "ETag": self.server.tag,
            **({"Connection": "close"} if close else {}),
            **changes,
        }
        lines = [f"HTTP/1.1 {status}"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items() if v is not None]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        if close or length:
            self.keep = False

    def send(self, data):
        with contextlib.suppress(OSError):
            self.stream.sendall(data)

    def hang(self, seconds=30.0):
        """Say nothing until the test is over."""
        self.server.stopped.wait(seconds)
        self.keep = False

    def send_forever(self, piece, pause=0.0):
        """Send until the other side closes the connection."""
        self.keep = False
        with contextlib.suppress(OSError):
            while not self.server.stopped.is_set():
                self.stream.sendall(piece)
                time.sleep(pause)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        with self.server.lock:
            self.server.connections += 1
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.lie is not None:
            # What lies in a send buffer was not asked for by anybody.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                with contextlib.suppress(OSError):
                    more = self.request.recv(65536)
                    head += more
                    if more:
                        continue
                return
            text = head.decode("latin-1")
            match = re.search(r"(?im)^range: bytes=(\d+)-(\d+)", text)
            start, end = (int(match[1]), int(match[2]) + 1) if match else (0, 0)
            server = self.server
            with server.lock:
                server.ranges.append((start, end))
                server.paths.append(text.split(" ")[1])
                server.headers.append(text)
                request = Request(server, self.request, start, end)
            time.sleep(server.delay)
            if server.lie is None or not server.lie(request):
                request.answer()
            if not request.keep:
                return
