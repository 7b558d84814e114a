"""The page and the API behind real reverse proxies, under a path: nginx where it is installed, and a small one of Python."""

import contextlib
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from distillhash.cli import main
from distillhash.errors import ParameterError
from distillhash.serve.settings import Settings
from image_factory import make_jpeg
from serving import CHROMIUM, Running, in_thread

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TOKEN = "correct-horse-battery"
Proxy = Callable[..., str]
long = pytest.mark.long
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")


@pytest.fixture(params=[pytest.param("python", marks=[] if NGINX is None else long), "nginx"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """Starts proxies; gives the address at which one shows a server under a path."""
    if request.param == "nginx" and NGINX is None:
        pytest.skip("there is no nginx; apt-get install nginx-light")
    start = nginx if request.param == "nginx" else python_proxy
    with contextlib.ExitStack() as stack:

        def started(upstream: str, prefix: str, *, removes: bool = True, host: str | None = None) -> str:
            port = httpx.URL(upstream).port
            assert port is not None
            folder = tmp_path / f"proxy{port}{prefix.replace('/', '-')}"
            folder.mkdir()
            return stack.enter_context(start(folder, port, prefix, removes, host)) + prefix.removeprefix("/")

        yield started


@contextlib.contextmanager
def nginx(folder: Path, port: int, prefix: str, removes: bool, host: str | None) -> Iterator[str]:
    """nginx as people set it up; ``host`` is the Host that the server gets, None for nginx's default, the server's own address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    passed_host = f"proxy_set_header Host {host};" if host else ""
    (folder / "nginx.conf").write_text(
        f"""daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
        events {{}}
        http {{ access_log off; {temporary} client_max_body_size 50m;
          server {{ listen 127.0.0.1:{own};
            location {prefix} {{ proxy_pass http://127.0.0.1:{port}{"/" if removes else ""}; {passed_host} }} }} }}"""
    )
    process = subprocess.Popen(
        [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", own)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{own}/"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def python_proxy(folder: Path, port: int, prefix: str, removes: bool, host: str | None) -> Iterator[str]:
    """A proxy that knows no redirects: it also shows the server under the prefix without its last slash."""
    del folder

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line, *fields = iter(lambda: self.rfile.readline().decode("latin-1").strip(), "")
            method, target, version = line.split()
            if not (target + "/").startswith(prefix):
                self.wfile.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            if removes:
                target = "/" + target.removeprefix(prefix.rstrip("/")).removeprefix("/")
            fields = [field for field in fields if not re.match("connection:|keep-alive:", field, re.IGNORECASE)]
            if host != "$http_host":
                fields = [host_field, *(field for field in fields if not field.lower().startswith("host:"))]
            lengths = [int(field[15:]) for field in fields if field.lower().startswith("content-length:")]
            head = "\r\n".join([f"{method} {target} {version}", *fields, "connection: close", "", ""])
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(head.encode("latin-1") + self.rfile.read(sum(lengths)))
                while data := server.recv(65536):
                    self.wfile.write(data)

    host_field = f"host: {host or f'127.0.0.1:{port}'}"
    with Quiet(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}/"
        proxy.shutdown()
        thread.join()


class Quiet(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, *_: object) -> None:
        """A browser may go away whenever it likes."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def page_at(browser: Browser, url: str, base: str) -> Iterator[Page]:
    """A page opened at ``url``. In the end it must have asked for nothing outside ``base``, and met no error."""
    complaints: list[str] = []
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "response", lambda answer: complaints.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.on(
        "request",
        lambda request: (
            None if (request.url + "/").startswith((base, "blob:")) else complaints.append(f"asked {request.url}")
        ),
    )
    page.set_default_timeout(15_000)
    page.goto(url)
    yield page
    page.context.close()
    # Before the page moves to the address with the slash, the browser may look ahead for its style at the wrong one.
    assert [c for c in complaints if url == base or "/static/" not in c] == []


def use(page: Page, base: str) -> None:
    """Look, search with a file, with a result, and back; the other views."""
    expect(page.locator(".tile img.there").first).to_be_visible()
    page.set_input_files("#file", {"name": "new.jpg", "mimeType": "image/jpeg", "buffer": make_jpeg(90, 70, seed=7)})
    expect(page.locator("#query-name")).to_have_text("new.jpg")
    expect(page.locator(".tile img.there").first).to_be_visible()
    page.wait_for_url(re.compile(re.escape(base) + "#/code/"))
    page.locator(".tile a").nth(1).click()
    page.wait_for_url(re.compile(re.escape(base) + "#/item/"))
    expect(page.locator("#query-picture img")).to_be_visible()
    page.locator(".tile .look").first.dispatch_event("click")
    expect(page.locator("#viewer-open")).to_have_attribute("href", re.compile(r"^items/\d+/image$"))
    page.keyboard.press("Escape")
    page.go_back()
    page.wait_for_url(re.compile(re.escape(base) + "#/code/"))
    for view in ("duplicates", "quality"):
        page.locator(f'nav a[data-view="{view}"]').click()
        expect(page.locator(f"#{view}-lead")).not_to_be_empty()
    page.reload()
    expect(page.locator("#quality-lead")).not_to_be_empty()


@needs_browser
@pytest.mark.parametrize(
    "prefix", ["/photos/", *(pytest.param(path, marks=long) for path in ("/a/b/c/", "/search/", "/"))]
)
def test_the_page_works_behind_a_proxy_that_removes_the_path(
    browser: Browser, server: Running, proxy: Proxy, prefix: str
) -> None:
    base = proxy(server.url, prefix)
    with page_at(browser, base, base) as page:
        use(page, base)
    if prefix != "/":
        with page_at(browser, base.rstrip("/"), base) as page:
            page.wait_for_url(base)
            expect(page.locator(".tile img.there").first).to_be_visible()


@needs_browser
@pytest.mark.parametrize("prefix", [pytest.param("/photos/", marks=long), "/a/b/c/"])
@pytest.mark.parametrize("removes", [False, pytest.param(True, marks=long)])
def test_the_page_works_with_a_root_path(
    browser: Browser, photo_index: Path, proxy: Proxy, prefix: str, removes: bool
) -> None:
    with in_thread(photo_index, root_path=prefix) as url:
        base = proxy(url, prefix, removes=removes)
        with page_at(browser, base, base) as page:
            use(page, base)
        with page_at(browser, f"{base.rstrip('/')}#/quality", base) as page:
            page.wait_for_url(f"{base}#/quality")
            expect(page.locator("#quality-lead")).not_to_be_empty()
        with page_at(browser, url, url) as page:  # and without the proxy
            expect(page.locator(".tile img.there").first).to_be_visible()


@needs_browser
@pytest.mark.parametrize("root_path", ["", pytest.param("/photos", marks=long)])
def test_the_cookie_is_for_the_path(browser: Browser, photo_index: Path, proxy: Proxy, root_path: str) -> None:
    with in_thread(photo_index, token=TOKEN, root_path=root_path) as url:
        base = proxy(url, "/photos/", host="$http_host")
        page = browser.new_context().new_page()
        page.set_default_timeout(15_000)
        page.goto(base)
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator(".tile img.there").first).to_be_visible()
        [cookie] = page.context.cookies()
        assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/photos", True, "Strict")
        page.context.close()


@pytest.mark.parametrize("removes", [True, False])
def test_answers_name_the_root_path(own_index: Path, proxy: Proxy, removes: bool) -> None:
    with (
        in_thread(own_index, root_path="/a/b/") as url,
        httpx.Client(base_url=proxy(url, "/a/b/", removes=removes)) as client,
    ):
        document = client.get("openapi.json").json()
        assert document["servers"] == [{"url": "/a/b"}] and "/items/{id}" in document["paths"]
        added = client.post("items", files={"file": make_jpeg(50, 40, seed=8000)})
        where = added.headers["location"]
        assert where == f"/a/b/items/{added.json()['id']}"
        assert httpx.get(str(client.base_url.join(where))).json()["id"] == added.json()["id"]
        assert client.put("items/1").headers["allow"] == "DELETE, GET"
        moved = httpx.get(url + "a/b?x=1")
        assert moved.status_code == 308 and moved.headers["location"] == "/a/b/?x=1"
        assert httpx.get(url + "a/bc").status_code == 404
        assert httpx.get(url + "/stats").status_code == 200  # a proxy that leaves a slash too many


def test_other_sites_and_names_stay_out_behind_a_proxy(server: Running, proxy: Proxy) -> None:
    """Whatever a stranger says about himself in the headers that proxies set."""
    base = proxy(server.url, "/photos/", host="$http_host")
    forwarded = {
        "x-forwarded-host": "127.0.0.1",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-prefix": "//evil.example",
        "x-forwarded-proto": "https",
        "forwarded": "for=127.0.0.1;host=127.0.0.1",
    }
    with httpx.Client(base_url=base, headers=forwarded) as client:
        assert client.get("stats").status_code == 200
        assert client.get("stats", headers={"host": "evil.example"}).status_code == 421
        assert client.get("stats", headers={"host": "127.0.0.1.evil.example"}).status_code == 421
        for origin in (
            "https://evil.example",
            "null",
            "https://127.0.0.1.evil.example",
            "http://127.0.0.1:1",
            "file://",
        ):
            assert client.post("search?id=1", headers={"origin": origin}).status_code == 403, origin
        for site in ("cross-site", "same-site", "Same-Origin", ""):
            assert client.post("search?id=1", headers={"sec-fetch-site": site}).status_code == 403, site
        own = base.split("/photos")[0]
        assert client.post("search?id=1", headers={"origin": own}).status_code == 200
        page = client.get("").text + str(client.get("openapi.json").json())
        assert "evil" not in page


def test_an_origin_is_compared_without_the_usual_port(server: Running) -> None:
    for host, origin, status in (
        ("localhost", "http://localhost:80", 200),
        ("localhost:443", "https://localhost", 200),
        ("localhost:443", "http://localhost", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost", "ftp://localhost", 403),
    ):
        answer = httpx.post(server.url + "search?id=1", headers={"host": host, "origin": origin})
        assert answer.status_code == status, (host, origin)


@pytest.mark.parametrize(
    "path", ["photos", "/photos/../x", "/./x", "//evil.example", "/a b", "/a?b", "/ä", "/items", "/static/", "/a\n"]
)
def test_root_paths_that_cannot_be_used(path: str, photo_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ParameterError, match="root path"):
        Settings(root_path=path)
    assert main(["serve", "--index", str(photo_index), "--root-path", path]) == 2
    assert "root path" in capsys.readouterr().err


def test_root_paths_are_normalised() -> None:
    for given, kept in (
        ("", ""),
        ("/", ""),
        ("/photos/", "/photos"),
        ("/a/b.c/~me", "/a/b.c/~me"),
        ("/items/x", "/items/x"),
    ):
        assert Settings(root_path=given).root_path == kept
