"""The code in pages and examples runs as printed."""

import contextlib
import io
import os
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from distillhash.cli import main
from hub_server import running_hub

ROOT = Path(__file__).parents[1]
DIGITS = load_digits()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_scikit_learn() -> None:
    pytest.importorskip("pandas")
    names: dict[str, Any] = {"X": DIGITS.data[:300], "y": DIGITS.target[:300]}
    for block in blocks("scikit-learn.md", "python"):
        exec(block, names)
    assert names["bits"].shape == (300, 64)
    assert [*names["table"].columns] == [f"binaryhasher{i}" for i in range(8)]
    assert names["search"].best_params_ == {"method": "itq", "n_bits": 32}


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    x = DIGITS.data[:300].astype(np.float32)
    with running_hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        names: dict[str, Any] = {"x": x}
        for block in blocks("hub.md", "python"):
            exec(block, names)
        assert names["same"].encode(x) == names["codes"]
        assert names["address"].startswith(f"{hub.url}/me/codes-64/commit/")
    np.save("x.npy", x)
    names["model"].save("model")
    lines = "".join(blocks("hub.md", "bash")).splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [
        ["distillhash", "evaluate"],
        ["distillhash", "export"],
        ["hf", "upload"],
    ]
    for line in lines[:2]:
        command, _, file = line.partition(" > ")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main([*shlex.split(command)[1:], "--quiet"]) == 0
        Path(file or os.devnull).write_text(out.getvalue())
    assert "| neighbour_recall@10 | " in Path("codes-64/README.md").read_text()


def test_the_pipeline_prints_what_the_page_says() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        results = runpy.run_path(str(ROOT / "examples/sklearn_pipeline.py"))["main"]()
    page = (ROOT / "docs/scikit-learn.md").read_text()
    itq = [results[f"itq, {n_bits} bits: neighbour recall@10"] for n_bits in (16, 32, 64)]
    lsh = [results[f"lsh, {n_bits} bits: neighbour recall@10"] for n_bits in (16, 32, 64)]
    shown = re.search(r"keeps (\.\d+), (\.\d+) and (\.\d+) .* \(`lsh` (\.\d+), (\.\d+), (\.\d+)\)", page)
    assert shown and [float(number) for number in shown.groups()] == pytest.approx([*itq, *lsh], abs=0.02)
    floats, bits = (results[f"5 nearest neighbours on 64 {kind}: accuracy"] for kind in ("floats", "bits"))
    assert bits > 0.93 and floats > 0.95
