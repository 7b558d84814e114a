"""The pictures of README and docs, from real runs: the search page, a quality report, and a review of near-duplicates.

    python benchmarks/pictures.py PHOTOGRAPHS --out docs/pictures

PHOTOGRAPHS is any source of images. Those in the repository were made from the test part of the Grocery Store data set (Klasson et al.,
WACV 2019, MIT licence) in a Parquet table. It needs Chromium, and takes a minute or two on two cores.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

COMMAND = (sys.executable, "-m", "distillhash")
SHOWN = 400  # photographs in the search page's index


def run(folder: Path, *words: str) -> None:
    """Run a verb of the command line in a folder."""
    subprocess.run([*COMMAND, *words, "--quiet"], check=True, cwd=folder)


@contextlib.contextmanager
def served(index: Path) -> Iterator[str]:
    """Serve an index; gives the page's address."""
    words = [*COMMAND, "serve", "--index", str(index), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    return
            raise SystemExit("the server did not start")
        finally:
            server.terminate()


def edited_copies(folder: Path, photographs: Path) -> None:
    """Some photographs beside copies of them: smaller, cropped, and saved again."""
    folder.mkdir()
    for number, file in enumerate(sorted(photographs.iterdir())[:24]):
        shutil.copy(file, folder)
        if number % 4 == 0:
            with Image.open(file) as image:
                width, height = image.size
                image.resize((width // 2, height // 2)).save(folder / f"{file.stem}-small.jpg")
                image.crop((width // 20, height // 20, width, height)).save(folder / f"{file.stem}-cropped.jpg")
                image.save(folder / f"{file.stem}-again.jpg", quality=50)


def write_photographs(source: str, folder: Path) -> None:
    """Every seventh image of a source as a file, ``SHOWN`` at most."""
    from distillhash.sources import ImageSource, open_source
    from distillhash.sources.decode import decode_image

    opened = open_source(source)
    assert isinstance(opened, ImageSource)
    folder.mkdir()
    for number in range(0, min(len(opened), 7 * SHOWN), 7):
        Image.fromarray(decode_image(opened.read(number))).save(folder / f"{number:05d}.jpg", quality=92)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="any source of images")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        place = Path(scratch)
        write_photographs(arguments.photographs, place / "photographs")
        run(place, "train", "photographs", "--bits", "64", "--out", "model")
        run(place, "index", "photographs", "--model", "model", "--index", "index")
        run(place, "demo")
        edited_copies(place / "copies", place / "photographs")
        run(place, "dedup", "copies", "--out", "dups.json", "--html", "review.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def shoot(page: Page, name: str) -> None:
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(800)
            page.screenshot(path=place / "shot.png")
            with Image.open(place / "shot.png") as shot:
                shot.convert("RGB").save(arguments.out / f"{name}.webp", quality=82, method=6)

        page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="light")
        with served(place / "index") as url:
            page.goto(f"{url}#/item/12")
            shoot(page, "search")
        page.goto((place / "demo/report.html").as_uri())
        shoot(page, "report")
        page.goto((place / "review.html").as_uri())
        shoot(page, "review")
        browser.close()


if __name__ == "__main__":
    main()
