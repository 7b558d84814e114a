"""The examples of examples/ run; those for many machines with the variables that Slurm or Kubernetes would set."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from distillhash import HashModel, make_hasher
from distillhash.cli import main
from distillhash.methods import ITQ
from engine_servers import MilvusServer

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
yaml = pytest.importorskip("yaml")


def main_of(name: str) -> Callable[..., Any]:
    """The function of a script, which is not run by itself."""
    function: Callable[..., Any] = runpy.run_path(str(EXAMPLES / name))["main"]
    return function


def test_the_list_names_every_example() -> None:
    named = set(re.findall(r"\]\((\w[\w.]+)", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES.iterdir() if not path.name.startswith("_")} - {"README.md"}


def check_nearest(found: list[list[tuple[int, int]]]) -> None:
    """The distances are those of a count of bits that differ, and so are those of the ids."""
    x = load_digits().data
    bits = ITQ(n_bits=32).fit(x[:1700]).encode(x).signs()
    distances = (bits[1700:, None] != bits[None, :1700]).sum(axis=2)
    assert len(found) == 97
    for row, neighbours in zip(distances, found, strict=True):
        assert [distance for _, distance in neighbours] == np.sort(row)[:5].tolist()
        assert all(row[item] == distance for item, distance in neighbours)


def test_codes_in_faiss() -> None:
    pytest.importorskip("faiss")
    check_nearest(main_of("codes_in_engines.py")("faiss"))


@pytest.mark.long
def test_codes_in_postgres(postgres: str) -> None:
    check_nearest(main_of("codes_in_engines.py")(f"{postgres}&table=digits_example"))


@pytest.mark.long
def test_codes_in_milvus_twice(milvus: MilvusServer) -> None:
    for _ in range(2):
        check_nearest(main_of("codes_in_engines.py")(milvus.uri("digits_example")))


@pytest.mark.long
def test_a_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 60,000 vectors in ten clusters in the place of CIFAR-10; the committed numbers are those that the page prints."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(60_000) % 10
    features = rng.standard_normal((10, 40))[labels] + rng.standard_normal((60_000, 40))
    np.savez("vectors.npz", features=features.astype(np.float32), labels=labels)
    rows = main_of("reproduce_row.py")("vectors.npz", "itq", "32", "--quiet")
    table = (ROOT / "docs/results.md").read_text()
    (printed,) = re.findall(
        r"^\| itq \| \S+ \S+ \| (\.\d+) .*? \| (\.\d+) \| (\.\d+) \|  \|  \|  \|$", table, re.MULTILINE
    )
    assert [f"{committed:.3f}"[1:] for _, committed in rows.values()] == list(printed)
    found = [row["map"] for row in json.loads(Path("row/table.json").read_text())]
    assert len(found) == 3 and rows["map"][0] == pytest.approx(sum(found) / 3)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before you commit"
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    words = " ".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    if path.stem == "search_photographs":  # two photographs: a cutting's neighbours are of the same one
        assert len(re.findall(r"\d bits  flower-\d\d.png", words)) == 8
    else:
        recalls = [float(found) for found in re.findall(r"bytes: (\S+) in the first 10", words)]
        assert len(recalls) == 3 and recalls == sorted(recalls) and recalls[-1] > 0.4


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A source and a model, the variables that name them, and a PATH on which ``distillhash`` is this one."""
    x = np.random.default_rng(0).standard_normal((31, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    HashModel(backbone="embeddings", hasher=make_hasher("lsh", 12)).fit(x).save(tmp_path / "m")
    program = tmp_path / "bin" / "distillhash"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m distillhash "$@"\n')
    program.chmod(0o755)
    names = {"SOURCE": tmp_path / "x.npy", "MODEL": tmp_path / "m", "OUT": tmp_path / "codes"}
    return {
        **os.environ,
        **{name: str(path) for name, path in names.items()},
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }


def check_joined(there: Path) -> None:
    """The codes in shards are those of encode."""
    plain, joined = there / "plain.parquet", there / "joined.parquet"
    assert main(["merge", str(there / "codes"), "--out", str(joined), "--quiet"]) == 0
    assert main(["encode", str(there / "x.npy"), "--model", str(there / "m"), "--out", str(plain), "--quiet"]) == 0
    assert joined.read_bytes() == plain.read_bytes()


def job() -> Any:
    return yaml.safe_load((EXAMPLES / "kubernetes_job.yaml").read_text())


def test_the_kubernetes_job_is_one() -> None:
    spec = job()["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (job()["apiVersion"], job()["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert int(values["SHARDS"]) == spec["completions"]
    assert values["DISTILLHASH_CORES"] == container["resources"]["limits"]["cpu"]


@pytest.mark.long
def test_a_slurm_array(environment: dict[str, str], tmp_path: Path) -> None:
    for number in ("2", "0", "1", "1"):
        array = {"SLURM_ARRAY_TASK_ID": number, "SHARDS": "3"}
        subprocess.run(["bash", EXAMPLES / "slurm_array.sh"], env=environment | array, check=True)
    check_joined(tmp_path)


@pytest.mark.long
def test_the_pods_of_the_kubernetes_job(environment: dict[str, str], tmp_path: Path) -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    for number in range(2):
        index = {"JOB_COMPLETION_INDEX": str(number), "SHARDS": "2", "DISTILLHASH_CORES": "1"}
        subprocess.run([*container["command"], *container["args"]], env=environment | index, check=True)
    check_joined(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_ray_script(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'distillhash[ray]'")
    words = [environment[name] for name in ("SOURCE", "MODEL", "OUT")]
    subprocess.run(["bash", EXAMPLES / "ray_cluster.sh", *words, "3"], env=environment, check=True)
    shutil.move(tmp_path / "codes.parquet", tmp_path / "by-script.parquet")
    check_joined(tmp_path)
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "by-script.parquet").read_bytes()
