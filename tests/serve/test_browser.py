"""The page in a real browser: Debian's Chromium, driven by Playwright. Skipped where there is no Chromium."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.index import open_index
from image_factory import make_jpeg
from serving import CHROMIUM, N_PHOTOS, Running, in_thread

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that a container's root does not have; the pages are ours.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, server: Running) -> Iterator[Open]:
    """Opens pages; at the end none may have logged an error, broken its content-security policy, or asked another host."""
    complaints: list[str] = []
    pages: list[Page] = []

    def opened(path: str = "", url: str = server.url, **context: Any) -> Page:
        settings = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"} | context
        page = browser.new_context(**settings).new_page()

        def note(message: ConsoleMessage) -> None:
            if message.type == "error":
                complaints.append(message.text)

        def watch(request: Request) -> None:
            if not request.url.startswith((url, "blob:", "data:")):
                complaints.append(f"asked {request.url}")

        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", watch)
        page.set_default_timeout(15_000)
        page.goto(url + path)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert complaints == []


def tiles(page: Page) -> list[int]:
    """Ids of the tiles that exist, in their order."""
    found: list[int] = page.eval_on_selector_all(
        ".tile", "tiles => tiles.sort((a, b) => a.dataset.place - b.dataset.place).map(t => Number(t.dataset.id))"
    )
    return found


def results(page: Page) -> list[list[int]]:
    """(id, distance) of the tiles that exist."""
    found: list[list[int]] = page.eval_on_selector_all(
        ".tile",
        """tiles => tiles.sort((a, b) => a.dataset.place - b.dataset.place)
           .map(t => [Number(t.dataset.id), Number(t.querySelector('.caption b').textContent)])""",
    )
    return found


def expected(server: Running, code: str, without: int | None = None) -> list[list[int]]:
    """The exact ranking, from the index's rows and numpy alone."""
    with open_index(server.index) as index:
        items = index.get(list(range(N_PHOTOS)))
    query = Codes.from_packed(np.frombuffer(bytes.fromhex(code), np.uint8)[None], 64)
    codes = Codes.from_packed(np.concatenate([item.code.packed for item in items]), 64)
    distances = hamming_distances(query, codes)[0]
    ranked = sorted(([item.id, int(d)] for item, d in zip(items, distances, strict=True)), key=lambda r: (r[1], r[0]))
    return [row for row in ranked if row[0] != without]


def set_radius(page: Page, value: int) -> None:
    page.locator("#radius").fill(str(value))


def test_start_shows_pictures_of_the_index(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#facts")).to_have_text(f"{N_PHOTOS} images · 64 bits · lsh")
    expect(page.locator(".tile img.there").first).to_be_visible()
    expect(page.locator("h1").locator("visible=true")).to_have_text("Find similar pictures")
    first = page.locator(".tile").evaluate_all("tiles => tiles.slice(0, 8).map(tile => tile.dataset.id)")
    page.get_by_role("button", name="Show others").click()
    page.wait_for_function(
        """first => {
             const ids = [...document.querySelectorAll('.tile')].slice(0, 8).map(tile => tile.dataset.id);
             return ids.length === first.length && ids.join() !== first.join();
           }""",
        arg=first,
    )  # one tile alone may well be drawn again


def test_upload_shows_the_exact_neighbours(open_page: Open, server: Running, tmp_path: Path) -> None:
    photo = tmp_path / "holiday.jpg"
    photo.write_bytes(make_jpeg(200, 150, seed=321))
    code = httpx.post(server.url + "encode", files={"file": photo.read_bytes()}).json()["code"]
    page = open_page()
    page.set_input_files("#file", photo)
    expect(page.locator("#query-name")).to_have_text("holiday.jpg")
    expect(page.locator("#code-hex")).to_have_text(code)
    assert page.url.endswith(f"#/code/{code}")
    set_radius(page, 64)
    ranking = expected(server, code)
    shown = results(page)
    assert shown == ranking[: len(shown)] and len(shown) > 10
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator('.tile[data-place="59"]')).to_be_attached()
    tail = results(page)
    assert tail == ranking[-len(tail) :]


def test_the_patterns_are_the_bits(open_page: Open, server: Running) -> None:
    """The pixels of a result's two patterns: the query's ones, and the bits that differ."""
    page = open_page("#/item/5", device_scale_factor=1)
    expect(page.locator(".caption canvas").first).to_be_visible()
    first = int(page.locator(".tile").first.get_attribute("data-id") or -1)
    drawn = page.eval_on_selector(
        ".tile .caption canvas",
        """canvas => {
             const c = canvas.getContext('2d');
             const { data } = c.getImageData(0, 0, canvas.width, canvas.height);
             const at = (p, i) => {
               const left = p * (24 + 6) + (i % 8) * 3 + 1, top = Math.floor(i / 8) * 3 + 1;
               return [...data.slice(4 * (top * canvas.width + left), 4 * (top * canvas.width + left) + 4)];
             };
             const off = JSON.stringify([225, 228, 232, 255]);
             return [0, 1].map(p => [...Array(64).keys()].map(i => Number(JSON.stringify(at(p, i)) !== off)));
           }""",
    )
    with open_index(server.index) as index:
        query, result = (np.unpackbits(item.code.packed[0]) for item in index.get([5, first]))
    assert drawn == [query.tolist(), (query ^ result).tolist()]
    assert page.locator(".tile .caption b").first.inner_text() == str(int((query ^ result).sum()))


def test_the_slider_changes_the_grid_at_once(open_page: Open, server: Running) -> None:
    with open_index(server.index) as index:
        code = index.get([3])[0].code.packed.tobytes().hex()
    ranking = expected(server, code, without=3)
    page = open_page("#/item/3")
    expect(page.locator(".caption").first).to_be_visible()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for radius in (ranking[4][1], ranking[25][1], ranking[1][1]):
        set_radius(page, radius)
        inside = [row for row in ranking if row[1] <= radius]
        assert results(page) == inside[: len(results(page))]
        expect(page.locator("#radius-count")).to_have_text(f"{len(inside)} of {N_PHOTOS - 1}")
        assert not [url for url in requests if "/search" in url], "the slider asked the server"
    set_radius(page, 0)
    if ranking[0][1] > 0:
        expect(page.locator("#nothing")).to_contain_text("No picture within 0 bits")
        page.get_by_role("button", name="Show it").click()
        assert results(page) == [row for row in ranking if row[1] == ranking[0][1]]


def test_click_through_and_back(open_page: Open) -> None:
    page = open_page()
    page.locator(".tile a").first.click()
    expect(page.locator(".caption").first).to_be_visible()
    first = page.url
    name = page.locator(".tile a").nth(2).get_attribute("title")
    page.locator(".tile a").nth(2).click()
    expect(page.locator("#query-name")).to_have_text(str(name))
    assert page.url != first
    page.go_back()
    page.wait_for_url(first)
    page.go_back()
    expect(page.locator("#drop")).to_be_visible()


def test_a_file_that_is_no_image(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    page.set_input_files("#file", text)
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("notes.jpg” is not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    page.set_input_files("#file", empty)
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("is empty")
    large = tmp_path / "large.jpg"
    large.write_bytes(make_jpeg() + bytes(21 * 2**20))
    page.set_input_files("#file", large)
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("20 MB at most")
    heic = tmp_path / "phone.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    page.set_input_files("#file", heic)
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("HEIC")
    page.set_input_files("#file", {"name": "ok.jpg", "mimeType": "image/jpeg", "buffer": make_jpeg(seed=4)})
    expect(page.locator(".caption").first).to_be_visible()  # the page goes on


def test_a_picture_that_comes_before_the_page_knows_its_index(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#drop-note")).to_contain_text("not kept")  # the first load asks no more
    held: list[Route] = []
    page.route("**/stats", lambda route: held.append(route))
    with page.expect_request("**/stats"):
        page.reload(wait_until="domcontentloaded")
    page.set_input_files("#file", {"name": "early.jpg", "mimeType": "image/jpeg", "buffer": make_jpeg(seed=4)})
    [stats] = held
    stats.continue_()
    expect(page.locator("#query-name")).to_have_text("early.jpg")
    expect(page.locator(".caption").first).to_be_visible()


def test_keyboard_only(open_page: Open) -> None:
    page = open_page("#/item/8")
    expect(page.locator(".caption").first).to_be_visible()
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.closest('.tile')?.dataset.place"
    assert page.evaluate(focused) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "2"
    page.keyboard.press("ArrowDown")
    below = int(page.evaluate(focused))
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert int(page.evaluate(focused)) < below
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    expect(page.locator("#viewer")).to_be_visible()
    name = page.locator("#viewer-name").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-name")).not_to_have_text(name)
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(".tile:focus-within")).to_have_attribute("data-place", "1")
    before = int(page.locator("#radius").input_value())
    page.keyboard.press("[")
    assert int(page.locator("#radius").input_value()) == before - 1
    page.keyboard.press("]")
    page.keyboard.press("Home")
    title = page.evaluate("document.activeElement.title")
    page.keyboard.press("Enter")
    expect(page.locator("#query-name")).to_have_text(title)
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#drop")).to_be_visible()


def test_drop_and_paste(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".tile").first).to_be_visible()
    give = """([kind, bytes]) => {
        const data = new DataTransfer();
        if (bytes) data.items.add(new File([new Uint8Array(bytes)], `${kind}.jpg`, { type: 'image/jpeg' }));
        else data.setData('text/plain', 'https://example.org/cat.jpg');
        const event = kind === 'paste' ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true })
                                       : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    page.evaluate(give, ["dragenter", list(make_jpeg(seed=50))])
    expect(page.locator("#veil")).to_be_visible()
    page.evaluate(give, ["drop", list(make_jpeg(seed=50))])
    expect(page.locator("#veil")).to_be_hidden()
    expect(page.locator("#query-name")).to_have_text("drop.jpg")
    page.evaluate(give, ["paste", list(make_jpeg(seed=51))])
    expect(page.locator("#query-name")).to_have_text("paste.jpg")
    page.evaluate(give, ["paste", None])
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("addresses are not fetched")


def test_every_picture_and_control_has_a_name(open_page: Open) -> None:
    for path in ("", "#/item/2", "#/duplicates", "#/quality"):
        page = open_page(path)
        page.wait_for_timeout(600)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('img, button, a, input, canvas:not([aria-hidden]), svg[role]')]
                 .filter(e => e.offsetParent !== null || e instanceof SVGElement)
                 .filter(e => !(e.getAttribute('aria-label') || e.hasAttribute('alt') || e.textContent.trim() || e.labels?.length))
                 .map(e => e.outerHTML)"""
        )
        assert nameless == []


def test_dark_and_narrow(open_page: Open) -> None:
    page = open_page("#/item/2", color_scheme="dark", viewport={"width": 360, "height": 740})
    expect(page.locator(".caption").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(19, 22, 25)"
    page.locator("#theme").click()  # light
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.locator(".bar nav a").nth(1).click()
    expect(page.locator("#duplicates-title")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".bar nav a").nth(2).click()
    expect(page.locator("#quality-figures svg").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_ten_thousand_results_stay_quick(open_page: Open) -> None:
    """Layout and scrolling of 10,000 results in the real grid: few elements, no long frame."""
    page = open_page()
    expect(page.locator(".tile").first).to_be_visible()
    found = page.evaluate(
        """async () => {
            const { Grid } = await import('/static/grid.js');
            const { bitsOf } = await import('/static/bits.js');
            const known = await (await fetch('/items?sample=60')).json();
            const items = Array.from({ length: 10000 }, (_, i) => ({ ...known.items[i % 60], distance: Math.floor(i / 200) }));
            const host = document.createElement('div');
            document.querySelector('main').replaceChildren(host);
            const grid = new Grid(host, { onLook() {} });
            const start = performance.now();
            grid.show(items, { query: bitsOf(items[0].code, 64) });
            const shown = performance.now() - start;
            let most = 0;
            const frames = [];
            for (let i = 0; i < 60; i++) {
                scrollTo(0, (i * 7919 * 37) % (document.body.scrollHeight - innerHeight));
                const before = performance.now();
                grid.render();
                frames.push(performance.now() - before);
                most = Math.max(most, host.childElementCount);
                await new Promise(requestAnimationFrame);
            }
            const before = performance.now();
            grid.limit(5000);
            const limited = performance.now() - before;
            return { shown, usual: frames.sort((a, b) => a - b)[30], slowest: frames[59], most, limited, height: host.clientHeight };
        }"""
    )
    assert found["most"] < 200, found
    assert found["height"] > 100_000, found
    assert found["shown"] < 500 and found["usual"] < 50 and found["slowest"] < 500 and found["limited"] < 200, found


def test_groups_of_near_duplicates(open_page: Open, server: Running) -> None:
    page = open_page("#/duplicates")
    expect(page.locator("#duplicates-lead")).not_to_be_empty()
    page.locator("#group-radius").fill("16")
    expect(page.locator("#duplicates-lead")).to_contain_text("within 16 bits")
    truth = httpx.get(server.url + "duplicates", params={"radius": 16}).json()
    assert truth["n_groups"] > 0
    expect(page.locator(".group")).to_have_count(min(30, truth["n_groups"]))
    expect(page.locator(".group").first.locator(".member")).to_have_count(len(truth["groups"][0]))
    page.locator(".member:not(.keeper)").first.click()
    expect(page.locator("#query-name")).to_have_text(truth["groups"][0][1]["name"])


def test_groups_from_a_file(open_page: Open, server: Running, tmp_path: Path, photo_index: Path) -> None:
    with open_index(photo_index) as index:
        a, b, c = (item.key for item in index.get([1, 2, 3]))
    group = {"keeper": b, "members": [{"path": a, "distance": 2}, {"path": b, "distance": 0}]}
    lost = {"keeper": c, "members": [{"path": c, "distance": 0}, {"path": "/gone.jpg", "distance": 1}]}
    file = tmp_path / "dups.json"
    file.write_text(json.dumps({"radius": 5, "expected_false_pairs": 11.7, "groups": [group, lost]}))
    with in_thread(photo_index, duplicates=file) as url:
        page = open_page("#/duplicates", url=url)
        lead = page.locator("#duplicates-lead")
        expect(lead).to_contain_text("1 group. Every picture of a group lies within 5 bits")
        expect(lead).to_contain_text("About 12 false pairs")
        expect(lead).to_contain_text("1 picture of the file is not in this index")
        expect(page.locator("#duplicates-radius")).to_be_hidden()
        expect(page.locator(".member .keep")).to_have_text("keep")
        assert page.locator(".member").first.get_attribute("href") == "#/item/2"
        page.close()  # before the server stops: pictures may still be on their way


def test_the_token_is_asked_for(open_page: Open, photo_index: Path) -> None:
    with in_thread(photo_index, token="correct-horse-battery") as url:
        page = open_page("#/item/4", url=url)
        expect(page.get_by_role("heading", name="This server asks for its token")).to_be_visible()
        page.get_by_label("Token").fill("correct-horse-battery")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator(".tile img.there").first).to_be_visible()
        page.close()
