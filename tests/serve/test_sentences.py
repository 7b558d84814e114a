"""Searching by a sentence: the API, and the page in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from distillhash import load_model
from distillhash.cli import main
from distillhash.index import open_index
from pair_factory import write_miniature
from serving import CHROMIUM, in_thread, pairs, problem


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server of pictures whose model takes sentences; its URL and the index."""
    folder = tmp_path_factory.mktemp("sentences")
    table = write_miniature(folder / "miniature.parquet", 60)
    train = ["train", "--pairs", str(table), "--method", "ccaitq", "--text-encoder", "tfidf", "--bits", "16"]
    assert main([*train, "--image-size", "32", "--out", str(folder / "model"), "--quiet"]) == 0
    index = folder / "index"
    assert main(["index", str(table), "--model", str(folder / "model"), "--index", str(index), "--quiet"]) == 0
    with in_thread(index) as url:
        yield url, index


def test_search_by_a_sentence(sentences: tuple[str, Path]) -> None:
    url, folder = sentences
    model: Any = load_model(folder / "model")
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/stats").json()["accepts_text"] is True
        answer = client.post("/search", params={"text": "waves of the sea", "k": 7})
        code = model.encode_texts(["waves of the sea"])
        assert answer.json()["query"] == {"id": None, "code": code.packed.tobytes().hex()}
        with open_index(folder) as index:
            assert pairs(answer) == index.search(code, 7)[0]
        assert "'xyzzy' has none of its 1 words" in problem(client.post("/search?text=xyzzy"), 422)
        assert "exactly one of" in problem(client.post("/search?text=sea&id=1"), 422)
        problem(client.post("/search?text="), 422)
        problem(client.post("/search", params={"text": "sea " * 251}), 422)


def test_a_sentence_needs_a_model_that_takes_them(client: httpx.Client) -> None:
    assert client.get("/stats").json()["accepts_text"] is False
    assert "knows images alone" in problem(client.post("/search?text=sea"), 422)


def test_a_sentence_typed_into_the_page(sentences: tuple[str, Path]) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    url, folder = sentences
    model: Any = load_model(folder / "model")
    with open_index(folder) as index:
        expected = index.search(model.encode_texts(["a night & stars"]), 60)[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        page.get_by_label("Describe a picture").fill("a night & stars")
        page.keyboard.press("Enter")
        expect(page.locator("#query-name")).to_have_text("“a night & stars”")
        page.locator("#radius").fill("16")
        expect(page.locator("#radius-count")).to_contain_text("60")
        first = page.locator("#grid a, #grid button").first
        assert f", {expected[0][1]} of 16 bits differ" in (first.get_attribute("aria-label") or "")
        page.reload()
        expect(page.locator("#query-name")).to_have_text("“a night & stars”")
        page.goto(url + "#/words/xyzzy")
        expect(page.locator("#banner")).to_contain_text("none of its 1 words")
        browser.close()
    assert complaints == []
