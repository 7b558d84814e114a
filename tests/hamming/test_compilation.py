"""Compiled code is kept where that is safe, and works where there is no such place."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import distillhash
from distillhash.hamming import compilation

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are those of Unix")
MODULE = """
from distillhash.hamming.compilation import compiled

@compiled
def double(x):
    return 2 * x

assert double(21) == 42
print(sum(double.stats.cache_hits.values()), double.stats.cache_path)
"""
STRANGER = 4_000_123
AS_STRANGER = (
    [str(shutil.which("setpriv")), f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    if hasattr(os, "getuid") and os.getuid() == 0 and shutil.which("setpriv")
    else []
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach, with the module and a package folder that nobody can write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "code").mkdir()
    (folder / "code" / "module.py").write_text(MODULE)
    (folder / "code").chmod(0o555)
    yield folder
    for path in (folder / "code", folder / "installed"):
        if path.exists():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, code: str = "import module", **environment: str) -> tuple[int, str]:
    """Hits and the folder of the cache, in a process that may not write the package's folder: root may, so it becomes someone else."""
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(folder / "code"), *sys.path])}
    words = [*AS_STRANGER, sys.executable, "-B", "-c", code]
    done = subprocess.run(
        words, cwd=folder, env=base | environment, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    hits, _, path = done.stdout.strip().partition(" ")
    return int(hits), path


def own(folder: Path, mode: int = 0o700) -> Path:
    """A folder of the user that :func:`run` runs as."""
    folder.mkdir()
    if AS_STRANGER:
        os.chown(folder, STRANGER, STRANGER)
    folder.chmod(mode)
    return folder


def poison(cache: Path, marker: Path) -> None:
    """Replace every index of a cache by a pickle that makes ``marker``."""

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(marker), "w")

    found = list(cache.rglob("*.nbi"))
    assert found
    for file in found:
        file.write_bytes(pickle.dumps(Payload()))


def test_the_modules_with_compiled_code_need_no_place_to_keep_it(place: Path) -> None:
    package = Path(shutil.copytree(Path(distillhash.__file__).parent, place / "installed" / "distillhash"))
    shutil.rmtree(package / "hamming" / "__pycache__", ignore_errors=True)
    for folder in (package, *package.rglob("*/"), place / "installed"):
        if folder.is_dir():
            folder.chmod(0o555)
    code = (
        "import distillhash.metrics, distillhash.supervision.flip_rate, distillhash.hamming.kernel as k, numpy as np\n"
        "from distillhash import Codes; from distillhash.hamming import nearest, planes_of\n"
        "codes = Codes.from_signs(np.array([[1, 1, 1], [1, -1, 1], [-1, -1, -1]]))\n"
        "assert nearest(planes_of(codes[:1]), planes_of(codes), k=2)[0].tolist() == [[0, 1]]\n"
        "assert 'installed' in k.__file__; print(0, k._nearest_rows.stats.cache_path)"
    )
    sources = os.pathsep.join([str(place / "installed"), *sys.path])
    try:
        assert run(place, code, PYTHONPATH=sources, HOME="/nonexistent") == (0, "None")
    finally:
        for folder in (place / "installed", package, *package.rglob("*/")):
            folder.chmod(0o755)


@pytest.mark.long
def test_a_private_folder_is_used_and_damaged_files_are_made_anew(place: Path) -> None:
    cache = own(place / "cache")
    assert run(place, NUMBA_CACHE_DIR=str(cache))[0] == 0
    for file in cache.rglob("*.nbi"):
        file.write_bytes(b"\x80\x04garbage")
    assert run(place, NUMBA_CACHE_DIR=str(cache))[0] == 0
    assert run(place, NUMBA_CACHE_DIR=str(cache))[0] == 1
    for file in cache.rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    assert run(place, NUMBA_CACHE_DIR=str(cache))[0] == 0


@pytest.mark.long
@pytest.mark.parametrize("damage", [b"", pickle.dumps(7), pickle.dumps("0.0") + b"x", b"\0" * 5000, b"cos\nnothing\n"])
def test_indexes_damaged_in_any_way_are_made_anew(place: Path, damage: bytes) -> None:
    cache = own(place / "cache")
    for expected in (0, 0, 1):
        assert run(place, NUMBA_CACHE_DIR=str(cache))[0] == expected
        for file in cache.rglob("*.nbi") if not expected else ():
            if file.read_bytes() != damage and not (place / "damaged").exists():
                file.write_bytes(damage)
        (place / "damaged").touch()


def test_files_that_others_may_have_written_are_not_read(place: Path) -> None:
    cache, marker = own(place / "cache"), place / "ran"
    settings = {"NUMBA_CACHE_DIR": str(cache), "HOME": "/nonexistent"}
    run(place, **settings)
    (inner,) = cache.iterdir()
    poison(cache, marker)
    inner.chmod(0o1777)  # others can add files
    assert run(place, **settings) == (0, "None")
    inner.chmod(0o755)
    cache.chmod(0o777)  # others can replace the folder in it
    assert run(place, **settings) == (0, "None")
    cache.chmod(0o755)
    place.chmod(0o777)  # or the folder above
    assert run(place, **settings) == (0, "None")
    place.chmod(0o755)
    (place / "numba").symlink_to(cache)  # numba's default where the home is a relative path, as `~` is without one
    assert run(place, XDG_CACHE_HOME=".") == (0, "None")
    assert not marker.exists()


@pytest.mark.skipif(not AS_STRANGER, reason="only root can give a folder to a group")
def test_a_folder_of_a_group_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    folder, members = tmp_path / "cache", list[str]()
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name="me", gr_mem=members))
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    folder.mkdir(mode=0o700)
    os.chown(folder, -1, STRANGER)
    assert compilation.private(str(folder))
    folder.chmod(0o775)
    assert compilation.private(str(folder))  # many systems give each user a group
    members.append("another")
    assert not compilation.private(str(folder)) and not compilation.private(str(folder / "new"))
    folder.chmod(0o755)
    assert compilation.private(str(folder))


@pytest.mark.long
@pytest.mark.skipif(not AS_STRANGER, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_read(place: Path) -> None:
    cache, marker = own(place / "cache"), place / "ran"
    settings = {"NUMBA_CACHE_DIR": str(cache), "HOME": "/nonexistent"}
    run(place, **settings)
    poison(cache, marker)
    for path in (cache, *cache.rglob("*")):
        os.chown(path, STRANGER + 1, STRANGER + 1)
        path.chmod(0o755)
    assert run(place, **settings) == (0, "None")
    assert not marker.exists()


def test_a_full_disk_is_done_without(place: Path) -> None:
    cache = own(place / "cache")
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); import module"
    assert run(place, code, NUMBA_CACHE_DIR=str(cache))[0] == 0
    assert not [file for file in cache.rglob("*") if file.is_file()]
