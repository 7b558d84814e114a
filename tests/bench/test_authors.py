"""benchmarks/authors.py: how it loads, changes and measures code that others wrote, on a tiny repository made here."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

RUN = """
from types import SimpleNamespace
def load_config():
    return SimpleNamespace(alpha=2, beta=2, max_iter=1, arch="vgg16", lr=0.1, device="cpu", batch_size=4)
"""
WRAPPER = """
import torch.nn as nn
class ModelWrapper(nn.Module):
    def __init__(self, model, last_node, code_length):
        super().__init__()
        self.model, self.hash_layer = model, nn.Sequential(nn.ReLU(), nn.Linear(last_node, code_length), nn.Tanh())
    def forward(self, x):
        return self.hash_layer(self.model(x))
"""
# Its training sees every row once, beside its number, and leaves the difference of two features as the only bits.
TRAIN = """
import torch
def load_model(arch, code_length):
    raise AssertionError("images are not to be read")
def train(loader, query, database, multi_labels, bits, width, alpha, beta, epochs, arch, rate, device, *rest):
    model = load_model(arch, bits)
    seen = []
    for data, _, index in loader:
        assert torch.equal(data, loader.dataset.data[index])
        seen += index.tolist()
    assert sorted(seen) == list(range(len(loader.dataset.data))) and len(loader) == 3
    layer = model.hash_layer[1]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[:, 0], layer.weight[:, 1] = 1, -1
"""


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("authors")


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """A folder with one repository and, beside it, the arrays of a task in ``arrays``."""
    folder = tmp_path / "repositories" / "SSDH_PyTorch"
    folder.mkdir(parents=True)
    for name, text in (("run.py", RUN), ("model_loader.py", WRAPPER), ("ssdh.py", TRAIN)):
        (folder / name).write_text(text)
    rng = np.random.default_rng(0)
    sizes = {"train": 10, "query": 6, "database": 20}
    arrays: dict[str, Any] = {name: rng.random((size, 5), np.float32) for name, size in sizes.items()}
    arrays |= {f"{side}_labels": np.arange(sizes[side]) % 3 for side in ("query", "database")}
    arrays["views"] = rng.random((2, 10, 5), np.float32)
    (tmp_path / "arrays").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "arrays" / f"{name}.npy", values)
    return folder.parent


def test_an_adapter_runs_the_code_of_a_repository(
    authors: Any, repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = authors.Task(repositories / "SSDH_PyTorch", tmp_path / "arrays", 3, 0)
    found = authors.ssdh(task)
    for side, name in zip(found, ("query", "database"), strict=True):
        features = np.load(tmp_path / "arrays" / f"{name}.npy")
        wanted = np.where(features[:, 0] > features[:, 1], 1, -1)
        np.testing.assert_array_equal(side, np.repeat(wanted[:, None], 3, axis=1))
    assert sorted(path.name for path in task.repository.iterdir()) == ["model_loader.py", "run.py", "ssdh.py"]


def test_texts_to_replace_must_be_there(authors: Any, repositories: Path, tmp_path: Path) -> None:
    task = authors.Task(repositories / "SSDH_PyTorch", tmp_path / "arrays", 3, 0)
    assert task.load("run.py", {"alpha=2": "alpha=seven"}, seven=7).load_config().alpha == 7
    with pytest.raises(authors.SkippedError, match=r"SSDH_PyTorch/run.py holds no 'gamma'"):
        task.load("run.py", {"gamma": "delta"})


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_a_loader_gives_the_last_batch_or_not(authors: Any, drop_last: bool, sizes: list[int]) -> None:
    batches = list(authors.Loader(torch.zeros(10, 2), lambda rows: rows, 4, drop_last=drop_last))
    assert [len(batch) for batch in batches] == sizes
    assert len(set(torch.cat(batches).tolist())) == sum(sizes)


def test_the_table_holds_means_over_seeds(authors: Any) -> None:
    row = {"method": "itq", "code": "ours", "setting": "defaults", "n_bits": 32, "seed": 0, "own": 0.5}
    row |= dict.fromkeys(authors.MEASURES, 0.1)
    text = authors.table([row, row | {"seed": 1, "map": 0.3, "own": 0.7}])
    assert text.splitlines()[2] == "| 32 | itq | ours | defaults | 2 | 0.200 | 0.141 | 0.100 | 0.100 | 0.100 | 0.600 |"


@pytest.mark.long
def test_a_process_of_its_own_survives_what_is_missing_or_fails(
    authors: Any, repositories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    comparison = authors.Comparison(repositories, tmp_path / "arrays", tmp_path / "out", 300)
    for method in ("ssdh", "mls3rduh"):
        comparison.cell("theirs", method, "own settings", {}, 3, 0)
    (repositories / "SSDH_PyTorch" / "ssdh.py").write_text("raise SystemExit('no')")
    comparison.cell("theirs", "ssdh", "own settings", {}, 3, 1)
    assert comparison.failed["ssdh, own settings"] == "SystemExit: no"
    assert comparison.failed["mls3rduh"].startswith("MLS3RDUH is not there; https://")
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [("ssdh", 0)]
