"""Who may ask: the token, the cookie, and what the command line refuses."""

from pathlib import Path

import httpx
import pytest

from distillhash.cli import main
from distillhash.errors import ParameterError
from distillhash.serve.settings import Settings
from serving import in_thread

TOKEN = "correct-horse-battery"


def test_without_the_token_nothing_is_shown(photo_index: Path) -> None:
    with in_thread(photo_index, token=TOKEN) as url, httpx.Client(base_url=url) as client:
        for path in (
            "/stats",
            "/items/1",
            "/items/1/image",
            "/items/1/thumbnail",
            "/metrics",
            "/openapi.json",
            "/nothing",
        ):
            answer = client.get(path)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert client.post("/search?id=1").status_code == 401
        assert client.delete("/items/1").status_code == 401
        for path in ("/", "/static/app.js", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200, path
        for wrong in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"):
            assert client.get("/stats", headers={"authorization": wrong}).status_code == 401
        assert client.get("/stats", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.post("/search?id=1", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_the_page_trades_the_token_for_a_cookie(photo_index: Path) -> None:
    with in_thread(photo_index, token=TOKEN) as url, httpx.Client(base_url=url) as client:
        assert client.post("/session", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert not client.cookies
        answer = client.post("/session", headers={"authorization": f"Bearer {TOKEN}"})
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 204 and "httponly" in cookie and "samesite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/items/1/thumbnail").status_code == 200
        client.cookies.set("distillhash_session", "0" * 64, domain="127.0.0.1", path="/")
        client.cookies.jar.clear()
        assert client.get("/stats", headers={"cookie": f"distillhash_session={'0' * 64}"}).status_code == 401


def test_other_machines_need_a_token() -> None:
    for host in ("0.0.0.0", "192.168.1.7", "::", "example.org", ""):
        with pytest.raises(ParameterError, match="needs a token"):
            Settings(host=host)
        assert not Settings(host=host, token=TOKEN).is_local
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert Settings(host=host).is_local


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "ä" * 20, "a\n" * 10])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(ParameterError, match="at least 16"):
        Settings(token=token)


def test_the_command_line_says_what_is_wrong(
    photo_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTILLHASH_TOKEN", raising=False)
    (tmp_path / "groups.json").write_text('{"groups": [{"keeper": 1}]}')
    (tmp_path / "token").write_text("tiny\n")
    (tmp_path / "good").write_text(TOKEN + "\n")
    index = ["--index", str(photo_index)]
    for words, status, said in (
        ([*index, "--host", "0.0.0.0"], 2, "needs a token"),
        ([*index, "--host", "no.such.host.invalid", "--token-file", "absent"], 2, "absent"),
        ([*index, "--token-file", str(tmp_path / "token")], 2, "at least 16"),
        ([*index, "--port", "70000"], 2, "--port"),
        ([*index, "--max-upload", "0"], 2, "max_upload"),
        ([*index, "--duplicates", str(tmp_path / "groups.json")], 1, "dedup --out"),
        ([*index, "--host", "203.0.113.9", "--token-file", str(tmp_path / "good")], 2, "cannot listen on 203.0.113.9"),
        (["--index", str(tmp_path / "nothing")], 1, "there is no index"),
    ):
        assert main(["serve", *words]) == status, words
        assert said in capsys.readouterr().err, words


def test_a_taken_port_is_refused(photo_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(photo_index) as url:
        port = url.rstrip("/").rpartition(":")[2]
        assert main(["serve", "--index", str(photo_index), "--port", port]) == 2
        assert "choose another --port" in capsys.readouterr().err
