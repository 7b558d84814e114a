"""Public code of other methods against ours, on the same features: who is better, and which setting makes the difference.

    git clone https://github.com/zexuanqiu/CIBHash repositories/CIBHash     # and so on: REPOSITORIES below names them all
    python benchmarks/authors.py cifar10:DIR --repositories repositories --out results/authors

**This runs code that others wrote**, with your rights and without a sandbox. Read a repository before you name it here.

The split is that of protocol cifar10-distillhash: its 5,000 training images; 1,000 of its queries and 10,000 of its database, drawn by
the protocol's seed. Features are those of a frozen backbone. Methods that compare two views get the same six views on both sides.
An adapter replaces a repository's images and backbone by these features and leaves loss, head, optimiser, schedule and numbers as they
are there. It takes the last epoch, where some repositories keep the best one on their test queries. Text that torch or NumPy no longer
accept is replaced while a file is loaded; nothing is written into the repository.

Every run of foreign code has a process of its own. Finished cells are kept in OUT/rows.jsonl; OUT/summary.md and OUT/table.md hold means.
A repository that is missing, or code that fails, is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash import Codes, make_hasher
from distillhash.backbones import FeatureCache, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.methods.heads import Standardise, linear
from distillhash.methods.training import CachedFeatures
from distillhash.metrics import evaluate_codes
from distillhash.sources import open_source

Signs = tuple[NDArray[np.int8], NDArray[np.int8]]  # -1 and +1, of the queries and of the database
Options = dict[str, Any]

REPOSITORIES = {
    "Anchor-Graph-Hashing": "https://github.com/ColumbiaDVMM/Anchor-Graph-Hashing",
    "CIBHash": "https://github.com/zexuanqiu/CIBHash",
    "CIMON": "https://github.com/luoxiao12/CIMON",
    "Deep-Unsupervised-Image-Hashing": "https://github.com/liyunqianggyn/Deep-Unsupervised-Image-Hashing",
    "GreedyHash": "https://github.com/ssppp/GreedyHash",
    "MLS3RDUH": "https://github.com/rongchengtu1/MLS3RDUH",
    "SSDH_PyTorch": "https://github.com/TreezzZ/SSDH_PyTorch",
    "TBH": "https://github.com/ymcidence/TBH",
    "hashing-baseline-for-image-retrieval": "https://github.com/willard-yuan/hashing-baseline-for-image-retrieval",
    "sdc": "https://github.com/kamwoh/sdc",
    "unsupervised-hashing": "https://github.com/zavareh89/unsupervised-hashing",
}
# What the repositories import for images and logs alone, and an adapter does not need.
STAND_INS = [
    "torchvision",
    "torchvision.models",
    "torchvision.datasets",
    "torchvision.transforms",
    "data",
    "data.data_loader",
]
STAND_INS += [
    "loguru",
    "seaborn",
    "hydra",
    "omegaconf",
    "matplotlib",
    "matplotlib.pyplot",
    "matplotlib.patheffects",
    "cv2",
]
ARRAYS = ["train", "views", "query", "database", "query_labels", "database_labels"]
MEASURES = ["map", "map@1000", "precision@10", "neighbour_recall@10"]
NEVER = 1 << 60


class SkippedError(Exception):
    """Something that a comparison needs is not here."""


@dataclass(frozen=True)
class Task:
    """One run of a repository's code: where it is, and what it is to encode. ``folder`` holds the arrays."""

    repository: Path
    folder: Path
    n_bits: int
    seed: int
    scaled: bool = False
    started: bool = False

    @cached_property
    def data(self) -> dict[str, NDArray[Any]]:
        """Features and labels."""
        return {name: np.load(self.folder / f"{name}.npy") for name in ARRAYS}

    @property
    def train(self) -> Tensor:
        """Features to learn from, ``(n, d)``."""
        return torch.from_numpy(self.data["train"])

    @property
    def width(self) -> int:
        """Dimensions of a feature."""
        return int(self.data["train"].shape[1])

    @cached_property
    def scale(self) -> nn.Module:
        """What a head begins with: nothing, or where ``scaled`` the mean and one scale that heads of ours take off."""
        return Standardise(self.data["train"]) if self.scaled else nn.Identity()

    def head(self, n_outputs: int) -> nn.Module:
        """A linear head of theirs; where ``started`` its weights are drawn as those of ours are, 1.7 times as large."""
        draw = torch.Generator().manual_seed(self.seed)
        layer = linear(self.width, n_outputs, draw) if self.started else nn.Linear(self.width, n_outputs)
        return nn.Sequential(self.scale, layer)

    def load(self, path: str, changes: dict[str, str] | None = None, **names: Any) -> Any:
        """Run a Python file of the repository as a module, with texts replaced (each must be there) and ``names`` defined."""
        text = (self.repository / path).read_text()
        for old, new in (changes or {}).items():
            if old not in text:
                raise SkippedError(f"{self.repository.name}/{path} holds no {old!r}; is it another version?")
            text = text.replace(old, new)
        module = ModuleType(Path(path).stem)
        module.__dict__.update(names)
        exec(compile(text, str(self.repository / path), "exec"), module.__dict__)
        return module

    def settings(self, path: str) -> Any:
        """A YAML file of the repository."""
        return importlib.import_module("yaml").safe_load((self.repository / path).read_text())

    def encode(self, outputs: Callable[[Tensor], Any]) -> Signs:
        """Signs of what a model gives for queries and database."""
        with torch.no_grad():
            query, database = (outputs(torch.from_numpy(self.data[name]).clone()) for name in ("query", "database"))
        return signs_of(np.asarray(query)), signs_of(np.asarray(database))

    @cached_property
    def two_views(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Gives two different views of every row, drawn as for methods of ours."""
        views, draws = CachedFeatures(self.data["train"], self.data["views"]), np.random.default_rng(self.seed)

        def pair(rows: Tensor) -> tuple[Tensor, Tensor]:
            first, second = views.pair(rows.numpy(), draws, 0.0).inputs.chunk(2)
            return first, second

        return pair


class Loader:
    """Batches of rows in place of a loader of images; ``form`` makes of row numbers what a repository expects of a batch."""

    def __init__(self, train: Tensor, form: Callable[[Tensor], Any], batch_size: int, drop_last: bool = False) -> None:
        self.dataset, self.form, self.batch_size = SimpleNamespace(data=train), form, batch_size
        self.batches = len(train) // batch_size if drop_last else -(-len(train) // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.dataset.data))
        starts = range(0, self.batches * self.batch_size, self.batch_size)
        return (self.form(order[start : start + self.batch_size]) for start in starts)


class Bare(nn.Module):
    """Stands where a repository loads VGG16: features pass unchanged, or through the dropout at its end that scripts leave on."""

    dropout: ClassVar[float] = 0.0

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        layers = [nn.Identity() for _ in range(5)]
        self.features, self.classifier = nn.Identity(), nn.Sequential(*layers, nn.Dropout(self.dropout))


def signs_of(values: NDArray[Any]) -> NDArray[np.int8]:
    return np.where(values > 0, 1, -1).astype(np.int8)


# One function for each method. It runs a repository's code and gives the codes.


def ssdh(task: Task) -> Signs:
    given = task.load("run.py").load_config()
    model = task.load("model_loader.py").ModelWrapper(nn.Identity(), task.width, task.n_bits)
    model.hash_layer[0] = nn.Sequential(model.hash_layer[0], task.scale)
    module = task.load("ssdh.py")
    module.load_model, module.evaluate = lambda *_: model, lambda *_: 0.0
    Path("checkpoints").mkdir()
    loader = Loader(task.train, lambda rows: (task.train[rows], None, rows), given.batch_size)
    settings = given.alpha, given.beta, given.max_iter, given.arch, given.lr, given.device, False, NEVER, NEVER, -1
    module.train(loader, None, None, False, task.n_bits, task.width, *settings)
    return task.encode(model.eval())


def cimon(task: Task, threshold: float = 0.0) -> Signs:
    given = task.load("run.py").load_config()
    model = task.load("model_loader.py").ModelWrapper(nn.Identity(), task.width, task.n_bits, 30)
    model.hash_layer[0] = nn.Sequential(model.hash_layer[0], task.scale)
    module = task.load("cimon.py")
    module.load_model, module.evaluate = lambda *_: model, lambda *_: 0.0
    Path("checkpoints").mkdir()
    loader = Loader(task.train, lambda rows: (*task.two_views(rows), None, rows), given.batch_size)
    device, limit = torch.device("cpu"), threshold or given.threshold
    settings = given.alpha, given.beta, given.max_iter, given.arch, given.lr, device, False, -1, given.num_class, limit
    module.train(loader, None, None, False, task.n_bits, task.width, *settings, given.eta, given.temperature, NEVER)
    return task.encode(model.eval())


def cibhash(task: Task) -> Signs:
    sys.modules["torchvision"].models.vgg16 = Bare
    base = importlib.import_module("model.base_model")

    def loaders(batch_size: int, *_: Any, **__: Any) -> tuple[Any, ...]:
        return Loader(task.train, lambda rows: (*task.two_views(rows), None), batch_size), None, None, None

    vars(base)["LabeledData"] = lambda _: SimpleNamespace(topK=1000, get_loaders=loaders)
    module = task.load("model/CIBHash.py", {"nn.Linear(4096,": f"scale, nn.Linear({task.width},"}, scale=task.scale)
    words = ["model", "--encode_length", str(task.n_bits), "--seed", str(task.seed), "--validate_frequency", str(NEVER)]
    model = module.CIBHash(module.CIBHash.get_model_specific_argparser().parse_args(words))
    model.run_training_session(1, MagicMock())
    return task.encode(model.eval().encode_discrete)


def mls3rduh(task: Task, in_head: bool = True) -> Signs:
    bare = {"models.vgg16(pretrained)": "bare()", "4096": str(task.width)}
    network = task.load("utils/hash_model.py", bare, bare=Bare).HASH_Net("vgg16", task.n_bits, False)
    network.classifier = nn.Identity()
    network.hash[0] = nn.Sequential(task.scale, network.hash[0] if in_head else nn.Identity())
    changes = {
        "4096": str(task.width),
        "loss_all.data[0]": "loss_all.item()",
        "regterm.data[0]": "regterm.item()",
        "list(top20[-nnk:])": "top20[-nnk:].tolist()",
        "list(top20[-nno:])": "top20[-nno:].tolist()",
        "aa = dim - (sum_row > 0).sum()": "aa = int(dim - (sum_row > 0).sum())",
    }
    module = task.load("MLS3RDUH.py", changes)
    Path("final_codes").mkdir()

    def loader(_: Any, batch_size: int, **__: Any) -> Loader:
        return Loader(task.train, lambda rows: (task.train[rows], torch.zeros(len(rows), 1), rows), batch_size)

    module.DataLoader = loader
    module.dp = SimpleNamespace(DatasetProcessing=lambda *_: task.train)
    module.image_hash_model = SimpleNamespace(HASH_Net=lambda *_: network)
    module.load_label = lambda *_: torch.zeros(len(task.train), 1)
    module.GenerateCode, module.calc_hr = lambda *_: None, MagicMock()
    module.MLS3RDUH_algo(task.n_bits)
    return task.encode(lambda x: network.eval()(x)[1])


def greedyhash(task: Task) -> Signs:
    changes = {
        "encode_length = 64": f"encode_length = {task.n_bits}",
        "nn.Linear(4096, encode_length)": "head(encode_length)",
        "labels.size(0) / 2": "labels.size(0) // 2",
        "(i + 1) % (len(train_dataset) // batch_size / 1) == 0": "False",
        "(epoch + 1) % 5 == 0": "False",
        "torch.utils.data.DataLoader": "loader",
    }
    network = classified(task, "unsupervised_vgg.py", changes).cnn.eval()
    return task.encode(lambda x: network(x)[1])


def bihalf(task: Task) -> Signs:
    changes = {
        "encode_length = 16": f"encode_length = {task.n_bits}",
        "nn.Linear(4096, encode_length)": "head(encode_length)",
        "torch.manual_seed(0)": f"torch.manual_seed({task.seed})",
        "(epoch + 1) % 10 == 0": "False",
        "torch.utils.data.DataLoader": "loader",
        "cnn = CNN(": "global cnn; cnn = CNN(",
    }
    module = classified(task, "ImageHashing/Cifar10_II.py", changes)
    module.main()
    return task.encode(lambda x: module.cnn.eval()(x)[1])


def classified(task: Task, path: str, changes: dict[str, str]) -> Any:
    """Load a script that reads CIFAR-10 by torchvision and trains on batches of images and labels."""
    images = SimpleNamespace(data=np.zeros((60_000, 1)), targets=list(range(10)) * 6000)
    torchvision: Any = sys.modules["torchvision"]
    torchvision.models.vgg16, torchvision.datasets.CIFAR10 = Bare, lambda **_: images
    sys.path.insert(0, str((task.repository / path).parent))

    def loader(batch_size: int, **_: Any) -> Loader:
        return Loader(task.train, lambda rows: (task.train[rows], torch.zeros(len(rows))), batch_size)

    return task.load(path, changes, loader=loader, head=task.head)


def sdc(task: Task) -> Signs:
    return kamwoh(task, "sdc", "SDC", ["hash_fc"], lambda rows: (task.train[rows], torch.zeros(len(rows)), rows))


def nsh(task: Task) -> Signs:
    return kamwoh(
        task,
        "nsh",
        "NSH",
        ["hash_encoder", "latent_encoder"],
        lambda rows: (task.two_views(rows), None, rows),
        softsort_tau=1 / task.n_bits,
    )


def kamwoh(
    task: Task, name: str, title: str, heads: list[str], form: Callable[[Tensor], Any], **computed: float
) -> Signs:
    """Train a model of the repository ``sdc`` by its trainer, with the settings of its YAML files."""
    settings = task.settings("configs/train.yaml") | task.settings(f"configs/model/{name}.yaml")
    adam = task.settings("configs/optim/adam.yaml") | settings.get("optim", {})
    loss = {key: value for key, value in settings["criterion"].items() if "$" not in str(value)} | computed
    backbone = importlib.import_module("models.backbone.identity").Identity(task.width)
    trainer = getattr(importlib.import_module(f"trainers.{name}"), f"{title}Trainer")({"device": "cpu"})
    trainer.model = getattr(importlib.import_module(f"models.arch.{name}"), title)(backbone, task.n_bits, 10)
    for head in heads:
        setattr(trainer.model, head, nn.Sequential(task.scale, *getattr(trainer.model, head)))
    trainer.criterion = getattr(importlib.import_module(f"models.loss.{name}"), f"{title}Loss")(**loss)
    weights = trainer.model.get_training_modules().parameters()
    trainer.optimizer = torch.optim.Adam(weights, lr=float(adam["lr"]), weight_decay=float(adam["weight_decay"]))
    last = settings["epochs"] if "scheduler" in settings else int(0.8 * settings["epochs"])
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, last, 0.1)
    trainer.dataloader = {"train": Loader(task.train, form, settings["batch_size"], drop_last=True)}
    for epoch in range(settings["epochs"]):
        trainer.train_one_epoch(ep=epoch)
    return task.encode(lambda x: trainer.model.eval()(x)[1])


def tbh(task: Task, steps: int = 0) -> Signs:
    try:
        tensorflow = importlib.import_module("tensorflow")
    except ImportError as error:
        raise SkippedError("tensorflow is not installed") from error
    tensorflow.random.set_seed(task.seed)
    importlib.import_module("util.data.set_processor").SET_DIM["cifar10"] = task.width
    module = task.load("train/tbh_train.py")
    model = module.TBH("cifar10", task.n_bits, 512)
    module.TBH = lambda *_: model
    module.hook, module.REPO_PATH = lambda *_: 0.0, "."
    arrays = np.arange(len(task.train)), task.data["train"], np.zeros((len(task.train), 10), np.int32)
    batches = (
        tensorflow.data.Dataset.from_tensor_slices(arrays).cache().repeat().shuffle(10_000, seed=task.seed).batch(400)
    )
    module.Dataset = lambda **_: SimpleNamespace(train_data=batches, test_data=batches, update=lambda *_: None)
    given = {"max_iter": steps} if steps else {}
    module.train("cifar10", task.n_bits, 512, 400, **given)
    return task.encode(lambda x: model([[None, x.numpy()]], training=False).numpy() - 0.5)


def dgh(task: Task, scale: bool = True) -> Signs:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=scale, with_std=scale).fit(task.data["train"])
    graph = {"n_anchors": 300, "s": 3, "sigma": None, "metric": "euclidean"}
    train = scaler.transform(task.data["train"])
    Z, anchors = importlib.import_module("Affinity_matrix").Affinity(
        train, graph, random_state=task.seed, init="kmeans"
    )
    module = importlib.import_module("Discrete_hashing_methods")
    codes, _ = module.DGH(Z, K=task.n_bits, rho=0.1, TB=300, TG=20, random_state=task.seed, verbose=0)
    extend = importlib.import_module("out_of_sample").out_of_sample_binary_codes
    return task.encode(lambda x: extend(scaler.transform(x.numpy()), codes, Z, anchors, graph))


def agh(task: Task, layers: int = 2, neighbours: int = 2, rounds: int = 300) -> Signs:
    from sklearn.cluster import KMeans

    found = KMeans(300, init="random", n_init=1, max_iter=rounds, random_state=task.seed).fit(task.data["train"])
    anchors = found.cluster_centers_
    name, learned = ("Two", "W, t") if layers == 2 else ("One", "W")
    learn = f"[~, {learned}, sigma] = {name}LayerAGH_Train(train, anchors, bits, {neighbours}, 0);"
    code = f"{name}LayerAGH_Test(%s, anchors, {learned}, {neighbours}, sigma);"
    return octave(task, [""], f"{learn} q = {code % 'query'} d = {code % 'database'}", anchors=anchors)


HABIR = "p = struct('nbits', bits, 'dim', size(train, 2), 'ntrain', size(database, 1));"


def itq(task: Task) -> Signs:
    learn = f"{HABIR} p = trainPCAH(train, p); p = trainITQ(train, p);"
    return octave(task, ["Method-PCAH", "Method-ITQ", "utils"], learn + bits_by("compressITQ"))


def pcah(task: Task) -> Signs:
    return octave(task, ["Method-PCAH", "utils"], f"{HABIR} p = trainPCAH(train, p);" + bits_by("compressPCAH"))


def sh(task: Task) -> Signs:
    learn = f"{HABIR} p = trainPCAH(train, p); p = trainSH(train, p);"
    return octave(task, ["Method-PCAH", "Method-SH", "utils"], learn + bits_by("compressSH"))


def lsh(task: Task) -> Signs:
    return octave(task, ["Method-LSH", "utils"], f"{HABIR} p = trainLSH(p);" + bits_by("compressLSH"))


def dsh(task: Task) -> Signs:
    return octave(task, ["utils", "Method-DSH"], f"{HABIR} p = trainDSH(train, p);" + bits_by("compressDSH"))


def sph(task: Task) -> Signs:
    learn = f"{HABIR} p = trainSpH(train, p); [d, q] = compressSpH([database; query], p);"
    return octave(task, ["Method-SpH", "utils"], learn)


def bits_by(function: str) -> str:
    return f"[q, ~] = {function}(query, p); [d, ~] = {function}(database, p);"


def octave(task: Task, folders: list[str], commands: str, **arrays: NDArray[Any]) -> Signs:
    """Run MATLAB functions of the repository on centred features; ``commands`` leave ``q`` and ``d``, bits or packed bits."""
    from scipy.io import loadmat, savemat

    program = shutil.which("octave")
    if program is None:
        raise SkippedError("octave is not on PATH")
    mean = task.data["train"].mean(axis=0, dtype=np.float64)
    given = {name: task.data[name] for name in ("train", "query", "database")} | arrays
    savemat("given.mat", {name: values - mean for name, values in given.items()} | {"bits": float(task.n_bits)})
    paths = "".join("addpath('{}');".format(str(task.repository / folder).replace("'", "''")) for folder in folders)
    seeds = f"rand('twister', {task.seed}); randn('twister', {task.seed});"
    Path("run.m").write_text(
        f"load given.mat\ntry, pkg load statistics; end\n{paths} {seeds}\n{commands}\nsave('-v7', 'found.mat', 'q', 'd');\n"
    )
    subprocess.run([program, "--norc", "--no-gui", "--quiet", "run.m"], check=True)
    found = loadmat("found.mat")
    sides = [found[side].astype(np.uint8) for side in "qd"]
    if sides[0].shape[1] != task.n_bits:
        sides = [np.unpackbits(side, axis=1, bitorder="little")[:, : task.n_bits] for side in sides]
    return signs_of(sides[0]), signs_of(sides[1])


@dataclass(frozen=True)
class Peer:
    """Code of a method, and our method: what each is run with.

    ``cut`` says how far their settings are cut short, where they take days. ``single`` are settings of ours that bring it to theirs,
    tried one at a time and then all; None for the views means none. ``tried`` are further settings of ours, ``theirs`` changes to their
    run. ``measure`` is a file, a function and a depth of the repository's own metric.
    """

    repository: str
    run: Callable[..., Signs]
    by: str = "the authors"
    ours: str = ""
    options: Options = field(default_factory=dict)
    cut: Options = field(default_factory=dict)
    single: dict[str, Options] = field(default_factory=dict)
    tried: dict[str, Options] = field(default_factory=dict)
    theirs: dict[str, Options] = field(default_factory=dict)
    measure: tuple[str, str, tuple[Any, ...]] | None = None


SCALED: dict[str, Options] = {"its head standardises": {"scaled": True}}
SLOW: Options = {"optimizer": "sgd", "learning_rate": 1e-4, "batch_size": 32, "epochs": 300, "weight_decay": 5e-4}
STARTED: dict[str, Options] = {"standardises and starts as ours": {"scaled": True, "started": True}}
DROPPED: dict[str, Options] = {"dropout .5 on the features, as after VGG16": {"dropout": 0.5}}
ANCHORS: dict[str, Options] = {"3 neighbours": {"neighbours": 3}, "5 rounds of k-means": {"rounds": 5}}
TORCH = ("evaluate.py", "mean_average_precision")
TOOLBOX = "hashing-baseline-for-image-retrieval", "HABIR, a toolbox"
PEERS = {
    "ssdh": Peer(
        "SSDH_PyTorch",
        ssdh,
        "TreezzZ, a port",
        single={
            "beta 2": {"beta": 2.0},
            "self-pairs and self-distances": {"self_pairs": True, "self_distances": True},
            "SGD 1e-3, batch 24, 50 epochs, decay 1e-5": {
                "optimizer": "sgd",
                "learning_rate": 1e-3,
                "batch_size": 24,
                "epochs": 50,
                "weight_decay": 1e-5,
            },
        },
        theirs=SCALED,
        measure=(*TORCH, ("cpu", 5000)),
    ),
    "cibhash": Peer(
        "CIBHash",
        cibhash,
        single={
            "hidden 1,024": {"hidden": 1024},
            "temperature .3": {"temperature": 0.3},
            "thresholds, not draws": {"sampling": "threshold"},
            "60 epochs": {"epochs": 60},
        },
        theirs=SCALED | DROPPED,
        measure=("utils/evaluation.py", "calculate_top_map", (1000,)),
    ),
    "mls3rduh": Peer(
        "MLS3RDUH",
        mls3rduh,
        single={
            "SGD .04, batch 128, 150 epochs, decay 1e-5": {
                "optimizer": "sgd",
                "learning_rate": 0.004,
                "batch_size": 128,
                "epochs": 150,
                "weight_decay": 1e-5,
            },
        },
        theirs={"no dropout": {"in_head": False}} | SCALED,
        measure=("utils/calc_hr.py", "calc_topMap", (5000,)),
    ),
    "greedyhash": Peer(
        "GreedyHash",
        greedyhash,
        single={
            "penalty .1": {"penalty": 0.1},
            "cosines not centred": {"centre": False},
            "no views": {"views": None},
            "SGD 1e-4, batch 32, 60 epochs, decay 5e-4": {
                "optimizer": "sgd",
                "learning_rate": 1e-4,
                "batch_size": 32,
                "epochs": 60,
                "weight_decay": 5e-4,
                "schedule": "constant",
            },
        },
        theirs=SCALED | STARTED | DROPPED,
        measure=("cal_map.py", "calculate_top_map", (1000,)),
    ),
    "bihalf": Peer(
        "Deep-Unsupervised-Image-Hashing",
        bihalf,
        single={
            "cosines not centred": {"centre": False},
            "thresholds not moved": {"recentre": False},
            "no views": {"views": None},
            "SGD 1e-4, batch 32, 300 epochs, decay 5e-4": SLOW,
        },
        tried={
            "SGD 1e-3 for 300 epochs": SLOW | {"learning_rate": 1e-3},
            "SGD 1e-3 for 300 epochs, cosines not centred, thresholds not moved": SLOW
            | {"learning_rate": 1e-3, "centre": False, "recentre": False},
        },
        theirs=SCALED | STARTED | DROPPED,
        measure=("ImageHashing/cal_map_single.py", "calculate_map", ()),
    ),
    "sdc": Peer(
        "sdc",
        sdc,
        single={
            "hidden 1,280": {"hidden": 1280},
            "no views": {"views": None},
            "Adam 1e-4, batch 64, 100 epochs": {"learning_rate": 1e-4, "batch_size": 64, "epochs": 100},
        },
        theirs=SCALED,
    ),
    "nsh": Peer(
        "sdc",
        nsh,
        "the authors of SDC",
        single={
            "latent 1,024": {"latent": 1024},
            "Adam 1e-5, batch 50, 200 epochs, decay 1e-5": {
                "learning_rate": 1e-5,
                "batch_size": 50,
                "epochs": 200,
                "weight_decay": 1e-5,
            },
        },
        theirs=SCALED,
    ),
    "cimon": Peer(
        "CIMON",
        cimon,
        single={
            "SGD 1e-3, batch 24, 150 epochs, decay 1e-5": {
                "optimizer": "sgd",
                "learning_rate": 1e-3,
                "batch_size": 24,
                "epochs": 150,
                "weight_decay": 1e-5,
            },
        },
        theirs=SCALED | {"threshold .25": {"threshold": 0.25}},
        measure=(*TORCH, ("cpu", 50_000)),
    ),
    "tbh": Peer("TBH", tbh, cut={"steps": 1000}, measure=("util/eval_tools.py", "eval_cls_map", (1000,))),
    "dgh": Peer(
        "unsupervised-hashing",
        dgh,
        "Hemati and others",
        single={"rho .1": {"rho": 0.1}, "variant i": {"variant": "i"}},
        theirs={"features not scaled": {"scale": False}},
    ),
    "agh": Peer("Anchor-Graph-Hashing", agh, single={"2 neighbours": {"n_neighbours": 2}}, theirs=ANCHORS),
    "agh, one layer": Peer(
        "Anchor-Graph-Hashing",
        partial(agh, layers=1),
        ours="agh",
        options={"layers": 1},
        single={"2 neighbours": {"n_neighbours": 2}},
        theirs=ANCHORS,
    ),
    "itq": Peer(TOOLBOX[0], itq, TOOLBOX[1]),
    "pcah": Peer(TOOLBOX[0], pcah, TOOLBOX[1]),
    "sh": Peer(TOOLBOX[0], sh, TOOLBOX[1]),
    "sph": Peer(TOOLBOX[0], sph, TOOLBOX[1]),
    "dsh": Peer(TOOLBOX[0], dsh, TOOLBOX[1]),
    "lsh": Peer(TOOLBOX[0], lsh, TOOLBOX[1]),
}


def run_theirs(method: str, options: Options, task: Task, out: Path) -> None:
    """Run foreign code in this process, whose working folder is a temporary one, and write its codes or the reason why not to ``out``."""
    prepare_process(task, out)
    try:
        given = dict(options)
        Bare.dropout = given.pop("dropout", 0.0)
        task = replace(task, scaled=given.pop("scaled", False), started=given.pop("started", False))
        query, database = PEERS[method].run(task, **given)
        np.savez(out / "codes.npz", query=query, database=database)
    except SkippedError as error:
        (out / "reason").write_text(str(error))
    except BaseException as error:  # code of others may raise anything, SystemExit too
        traceback.print_exc()
        (out / "reason").write_text(f"{type(error).__name__}: {error}")


def measure_theirs(method: str, task: Task, codes: Path, out: Path) -> None:
    """Write what the repository's own metric says of codes."""
    prepare_process(task, out)
    measure = PEERS[method].measure
    assert measure is not None
    path, function, depth = measure
    old = "np.linspace(1, tsum, tsum)"
    changes = {old: "np.linspace(1, tsum, int(tsum))"} if old in (task.repository / path).read_text() else {}
    with np.load(codes) as found:
        sides = [found[name].astype(np.float32) for name in ("query", "database")]
    given = [*sides, *(np.eye(10, dtype=np.float32)[task.data[f"{side}_labels"]] for side in ("query", "database"))]
    if path == "util/eval_tools.py":
        given[:2] = [(side + 1) / 2 for side in sides]  # its codes are 0 and 1
    if path == TORCH[0]:
        given = [torch.from_numpy(values) for values in given]
    (out / "value").write_text(str(float(getattr(task.load(path, changes), function)(*given, *depth))))


def prepare_process(task: Task, out: Path) -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    log = os.open(out / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(out)
    sys.argv = ["authors"]
    sys.path.insert(0, str(task.repository))
    for name in STAND_INS:
        sys.modules[name] = MagicMock()
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # noqa: NPY002  # the generator that others use
    random.seed(task.seed)
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_: self  # type: ignore[assignment,method-assign]
    torch.cuda.set_device = lambda *_: None


def end_with(parent: int) -> None:
    """End this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def in_process(timeout: float, function: Callable[..., None], *arguments: Any) -> str:
    """Run ``function`` in a fresh process; why it came to no good end, or an empty text."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments, daemon=True)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return f"stopped after {timeout:.0f} s"
    return "" if process.exitcode == 0 else f"ended with {process.exitcode}"


class Comparison:
    """The cells of one run: arrays in a temporary folder, repositories, rows that are finished."""

    def __init__(self, repositories: Path, folder: Path, out: Path, timeout: float) -> None:
        self.repositories, self.folder, self.timeout = repositories.resolve(), folder, timeout
        self.kept = out / "rows.jsonl"
        self.rows = [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []
        self.failed: dict[str, str] = {}

    def cells(self, method: str, n_bits: int, seed: int, singles: bool) -> None:
        """Both at their own settings, ours at theirs, theirs with a head that standardises; with ``singles`` every change alone."""
        peer = PEERS[method]
        everything: Options = {}
        for change in peer.single.values():
            everything |= change
        self.cell("theirs", method, "own settings", peer.cut, n_bits, seed)
        self.cell("ours", method, "defaults", {}, n_bits, seed)
        if everything:
            self.cell("ours", method, "their settings", everything, n_bits, seed)
        for label, change in peer.theirs.items():
            if singles or label in SCALED:
                self.cell("theirs", method, label, change, n_bits, seed)
        alone = peer.single if len(peer.single) > 1 else {}
        for label, change in (alone | peer.tried).items() if singles else ():
            self.cell("ours", method, label, change, n_bits, seed)

    def cell(self, code: str, method: str, setting: str, options: Options, n_bits: int, seed: int) -> None:
        """Run one cell, unless it is finished, and keep its row."""
        name = {"method": method, "code": code, "setting": setting, "n_bits": n_bits, "seed": seed}
        if any(name.items() <= row.items() for row in self.rows):
            return
        peer = PEERS[method]
        task = Task(self.repositories / peer.repository, self.folder, n_bits, seed)
        started = time.perf_counter()
        with TemporaryDirectory() as scratch:
            out = Path(scratch)
            if code == "ours":
                self.encode_ours(peer.ours or method, peer.options | options, task, out)
            elif not task.repository.is_dir():
                self.failed[f"{method}"] = f"{peer.repository} is not there; {REPOSITORIES[peer.repository]}"
            else:
                reason = in_process(self.timeout, run_theirs, method, options, task, out)
                reason = (out / "reason").read_text() if (out / "reason").exists() else reason
                if reason:
                    self.failed[f"{method}, {setting}"] = reason.splitlines()[-1][:300]
                    print((out / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
            seconds = time.perf_counter() - started
            if not (out / "codes.npz").exists():
                print(name, self.failed, flush=True)
                return
            row = name | self.measures(task, out / "codes.npz") | {"seconds": round(seconds, 1)}
            if peer.measure and setting in ("own settings", "defaults") and task.repository.is_dir():
                reason = in_process(self.timeout, measure_theirs, method, task, out / "codes.npz", out)
                if reason:
                    print(method, (out / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
                else:
                    row["own"] = round(float((out / "value").read_text()), 4)
        self.rows.append(row)
        with self.kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def encode_ours(self, method: str, options: Options, task: Task, out: Path) -> None:
        """Train a method of ours and write its codes."""
        settings = {key: value for key, value in options.items() if key != "views"}
        hasher = make_hasher(method, task.n_bits, seed=task.seed, **settings)
        views = task.data["views"] if hasher.uses_views and "views" not in options else None
        hasher.fit(task.data["train"], views=views)
        sides = {name: hasher.encode(task.data[name]).signs() for name in ("query", "database")}
        np.savez(out / "codes.npz", **sides)  # type: ignore[arg-type]

    def measures(self, task: Task, codes: Path) -> dict[str, float]:
        """Our metrics of codes."""
        with np.load(codes) as found:
            sides = [Codes.from_signs(found[name]) for name in ("query", "database")]
        labels = task.data["query_labels"], task.data["database_labels"]
        features = {"query_features": task.data["query"], "database_features": task.data["database"]}
        report = evaluate_codes(sides[0], sides[1], *labels, (1000,), (10,), **features)
        return {name: round(report[name], 4) for name in MEASURES}


def table(rows: list[dict[str, Any]]) -> str:
    """Every kind of cell: means over seeds, the spread of MAP over them, and what their own metric says, in Markdown."""
    names = "bits, method, code, settings, seeds, MAP, spread, MAP@1000, P@10, neighbour recall@10, their metric"
    lines = heading(names)
    groups = grouped(rows)
    order = ["own settings", "defaults", "their settings"]
    rank = {key: (*key[:2], order.index(key[3]) if key[3] in order else 3) for key in groups}
    for key in sorted(groups, key=lambda key: (key[0], list(PEERS).index(key[1]), rank[key][2], key[2])):
        found = groups[key]
        maps = [row["map"] for row in found]
        spread = f"{np.std(maps, ddof=1):.3f}" if len(maps) > 1 else ""
        means = [f"{np.mean([row[name] for row in found]):.3f}" for name in MEASURES]
        own = [row["own"] for row in found if "own" in row]
        cells = [*map(str, key), str(len(found)), means[0], spread, *means[1:], f"{np.mean(own):.3f}" if own else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """One line for each method: MAP of their codes and ours, and what each change alone does to MAP with the first seed."""
    columns = "bits, method, theirs, ours, difference, ours at their settings, theirs with a head that standardises"
    lines = heading(f"{columns}, changes to ours one at a time, changes to theirs")
    groups = grouped(rows)
    mean = {key: float(np.mean([row["map"] for row in found])) for key, found in groups.items()}
    first = {key: min(found, key=lambda row: row["seed"]) for key, found in groups.items()}
    for n_bits, method in dict.fromkeys(key[:2] for key in groups):
        theirs, ours = (n_bits, method, "theirs", "own settings"), (n_bits, method, "ours", "defaults")
        if theirs not in groups or ours not in groups:
            continue
        changes = {"theirs": "", "ours": ""}
        for code, start, names in (
            ("ours", ours, PEERS[method].single | PEERS[method].tried),
            ("theirs", theirs, PEERS[method].theirs),
        ):
            ends = {name: first.get((n_bits, method, code, name)) for name in names}
            moved = {name: end["map"] - first[start]["map"] for name, end in ends.items() if end and name not in SCALED}
            changes[code] = "; ".join(f"{name}: {change:+.3f}" for name, change in moved.items())
        cells = [f"{mean[theirs]:.3f}", f"{mean[ours]:.3f}", f"{mean[ours] - mean[theirs]:+.3f}"]
        for code, setting in (("ours", "their settings"), ("theirs", *SCALED)):
            value = mean.get((n_bits, method, code, setting))
            cells.append("" if value is None else f"{value:.3f}")
        lines.append("| " + " | ".join([str(n_bits), method, *cells, changes["ours"], changes["theirs"]]) + " |")
    return "\n".join(lines) + "\n"


def heading(names: str) -> list[str]:
    return [f"| {names.replace(', ', ' | ')} |", "|" + "---|" * len(names.split(", "))]


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows that differ in the seed alone, by bits, method, code and settings; in the order of the methods."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["n_bits"], list(PEERS).index(row["method"]))):
        groups.setdefault((row["n_bits"], row["method"], row["code"], row["setting"]), []).append(row)
    return groups


def describe(repositories: Path) -> dict[str, dict[str, str]]:
    """Commit and licence of every repository that is there."""
    found = {}
    for name, address in REPOSITORIES.items():
        folder = repositories / name
        if folder.is_dir():
            shown = subprocess.run(
                ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            )
            files = sorted(folder.glob("LICEN[CS]E*"))
            licence = files[0].read_text(errors="replace").strip().splitlines()[0] if files else "no licence file"
            found[name] = {"address": address, "commit": shown.stdout.strip() or "unknown", "licence": licence}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--repositories", type=Path, required=True, help="folder of checked-out repositories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=":".join(PEERS), help="separated by colons")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--bits", default="32")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument(
        "--no-singles", action="store_true", help="leave out the changes one at a time (they run for the first seed)"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one run of foreign code")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    protocol, backbone = load_protocol("cifar10-distillhash"), make_backbone(arguments.backbone)
    prepared = prepare(open_source(arguments.source), protocol, backbone, cache=FeatureCache(), n_views=6)
    rng = np.random.default_rng(protocol.rule.seed)
    split, features = prepared.split, prepared.features
    query = np.sort(rng.choice(split.query, 1000, replace=False))
    database = np.sort(rng.choice(split.database, 10_000, replace=False))
    labels = {"query_labels": prepared.labels[query], "database_labels": prepared.labels[database]}
    arrays = {
        "train": features[split.train],
        "query": features[query],
        "database": features[database],
        "views": prepared.views,
        **labels,
    }
    about = {
        "backbone": prepared.backbone,
        "split_sha256": split.checksum,
        "repositories": describe(arguments.repositories),
    }
    (arguments.out / "provenance.json").write_text(json.dumps(about, indent=1) + "\n")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with TemporaryDirectory() as folder:
        for name, values in arrays.items():
            np.save(Path(folder) / f"{name}.npy", values)
        comparison = Comparison(arguments.repositories, Path(folder), arguments.out, arguments.timeout)
        for n_bits in map(int, arguments.bits.split(",")):
            for method in arguments.methods.split(":"):
                for seed in seeds:
                    comparison.cells(method, n_bits, seed, seed == seeds[0] and not arguments.no_singles)
    (arguments.out / "table.md").write_text(table(comparison.rows))
    (arguments.out / "summary.md").write_text(summary(comparison.rows))
    for name, reason in comparison.failed.items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
