"""Using a trained model where PyTorch, numba, SciPy and the rest are not installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distillhash import Codes, HashModel, make_hasher, method_names
from distillhash.dedup.codes import Settings
from distillhash.dedup.job import find_duplicates
from distillhash.methods import method_class
from distillhash.sources import open_source

ABSENT = "torch", "numba", "llvmlite", "scipy", "sklearn", "pyarrow", "matplotlib", "jinja2", "imagehash"
QUICK = ("itq", "sh", "sph", "agh", "dgh", "crovca", "ccaitq")
# What follows the list runs in a process that has none of the packages above.
PREPARE = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
ENCODE = """
import numpy as np
from pathlib import Path
from distillhash import load_hasher
from distillhash.methods import make_hasher
x = np.load("x.npy")
for folder in sorted(path for path in Path("models").iterdir() if path.is_dir()):
    np.save(f"models/{folder.name}.again.npy", load_hasher(folder).encode(x).packed)
try:
    make_hasher("crovca", 8).fit(x)
except ImportError as error:
    print(error)
"""


def run(folder: Path, code: str) -> str:
    """Run code where the packages are absent; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "methods",
    [QUICK, pytest.param((*method_names(), *method_names(image_text=True)), marks=pytest.mark.long)],
    ids=["quick", "all"],
)
def test_every_method_encodes_the_same(methods: tuple[str, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 40))  # some methods need pairs that are alike
    rows = (np.repeat(centres, 20, axis=0) + 0.4 * rng.standard_normal((120, 40))).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    for method in methods:
        cls = method_class(method)
        if method == "sdc":
            continue  # its activation is SciPy's
        hasher = make_hasher(method, 16, **({"epochs": 1} if hasattr(cls, "epochs") else {}))
        if cls.needs_texts:
            hasher.fit(rows, rows[:, :20])  # type: ignore[call-arg]  # image-text methods take both
        else:
            hasher.fit(rows, labels=np.arange(120) % 3 if cls.needs_labels else None)
        hasher.save(tmp_path / "models" / method)
        np.save(tmp_path / "models" / f"{method}.npy", hasher.encode(rows).packed)
    assert run(tmp_path, ENCODE) == "training needs PyTorch; pip install 'distillhash[train]'\n"
    for again in (tmp_path / "models").glob("*.again.npy"):
        expected = np.load(str(again).replace(".again", ""))
        np.testing.assert_array_equal(np.load(again), expected, err_msg=again.name)


VERBS = """
import io, json
from contextlib import redirect_stdout
from distillhash.cli import main
def verb(*words):
    out = io.StringIO()
    with redirect_stdout(out):
        status = main([*words, "--json", "--quiet"])
    return json.loads(out.getvalue())
verb("encode", "x.npy", "--model", "model", "--out", "codes.npz")
verb("index", "x.npy", "--model", "model", "--index", "index")
print(json.dumps(verb("search", "x.npy#0:5", "--index", "index", "-k", "3")))
print(verb("train", "x.npy", "--bits", "8", "--out", "other")["error"])
"""


def test_the_verbs_that_use_a_model(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    model = HashModel(backbone="embeddings", hasher=make_hasher("itq", 16))
    model.fit(str(tmp_path / "x.npy")).save(tmp_path / "model")
    found, refusal = run(tmp_path, VERBS).splitlines()
    assert Codes.load(tmp_path / "codes.npz")[0] == model.encode(str(tmp_path / "x.npy"))
    assert "pip install 'distillhash[train]'" in refusal
    assert found


DEDUP = """
import io, json
from contextlib import redirect_stdout
from distillhash.cli import main
def dedup(*words):
    out = io.StringIO()
    with redirect_stdout(out):
        main(["dedup", *words, "--json", "--quiet"])
    return json.loads(out.getvalue())
print(json.dumps(dedup("x.npy", "--model", "model", "--radius", "2")))
print(dedup("x.npy", "--model", "model")["error"])
"""


def test_duplicates_by_a_model_and_a_radius(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.standard_normal((90, 40)), 2, axis=0) + 0.01 * rng.standard_normal((180, 40))
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    HashModel(backbone="embeddings", hasher=make_hasher("itq", 32)).fit(str(tmp_path / "x.npy")).save(
        tmp_path / "model"
    )
    plain, refusal = run(tmp_path, DEDUP).splitlines()
    found = find_duplicates(open_source(str(tmp_path / "x.npy")), Settings(str(tmp_path / "model"), radius=2))
    expected = [[int(item.path.rpartition("/")[2]) for item in group] for group in found.groups]
    assert len(expected) > 80
    assert [
        [int(image["path"].rpartition("/")[2]) for image in group["members"]] for group in json.loads(plain)["groups"]
    ] == expected
    assert "give --radius BITS" in refusal
