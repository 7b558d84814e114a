"""The examples of examples/, run as far as one machine can: with the variables that Slurm or Kubernetes would set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import HashModel, make_hasher
from distillhash.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
yaml = pytest.importorskip("yaml")


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
