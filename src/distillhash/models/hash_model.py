"""HashModel: a backbone and a hasher, from images or vectors to codes.

A model folder holds ``config.json`` (format version, method, hyper-parameters, backbone with its preprocessing and weight
fingerprint, what it was trained on) and ``model.safetensors`` (the hasher; after fine-tuning the backbone as well).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

import distillhash
from distillhash.codes import Codes
from distillhash.errors import (
    DataError,
    FormatError,
    NotFittedError,
    ParameterError,
    SkippedItemsWarning,
)
from distillhash.methods.base import Hasher, read_model_folder, sample_rows, write_model_folder
from distillhash.methods.registry import hasher_from
from distillhash.models import hub
from distillhash.sources import EmbeddingSource, Skipped, Source, open_source

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, Engine, FeatureCache
    from distillhash.backbones.extract import FeatureBatch, Known
    from distillhash.methods.training import Checkpoint

DEFAULT_VIEWS = 6
ONNX_NAME = "model.onnx"
_BACKBONE_PREFIX = "backbone."


@dataclass(frozen=True)
class Encoded:
    """Codes of a source, in its order."""

    codes: Codes
    rows: NDArray[np.intp]  # (m,): of the source, those of the codes
    features: NDArray[np.float32]  # (m, d): what the codes were made from
    skipped: list[Skipped]
    digests: list[bytes]  # of the content of each row; empty for vectors, unless known was given
    known: NDArray[np.intp]  # rows that known recognised; they have no code


class HashModel:
    """From images, or vectors, to codes.

    Attributes:
        hasher: The method, fitted by :meth:`fit`.
        backbone_name: Name of the feature extractor; ``embeddings`` for sources that are vectors already.
        fingerprint: Identity of the trained model; None before :meth:`save`. Indexes refuse codes of another model by it.
        training: Facts about the training source, after :meth:`fit`.
        skipped_: Items that :meth:`fit` could not use.
    """

    _CONFIG_HAS: ClassVar[str] = "backbone"  # in the config.json of every model of this class

    def __init__(
        self,
        backbone: str = "efficientnet-lite0",
        hasher: Hasher | None = None,
        *,
        image_size: int | None = None,
        weights: str | Path | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        engine: Engine = "auto",
        cache: FeatureCache | None = None,
    ) -> None:
        """Store the parts; weights are read when they are first needed.

        Args:
            backbone: A name of ``distillhash ls backbones``.
            hasher: An unfitted or fitted method from :func:`distillhash.make_hasher`.
            image_size: Side in pixels that images are resized to. None lets :meth:`fit` choose it by the images, see
                :func:`distillhash.backbones.sized_for`; before that it is the backbone's own.
            weights: Weights file for backbones that do not carry theirs.
            backbone_options: Options of ``hf:``, ``onnx:`` and ``torchscript:`` by name, see :func:`distillhash.backbones.make_backbone`.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            engine: What runs the backbone on a CPU: ``auto``, ``onnx`` or ``torch``, see :func:`distillhash.backbones.make_backbone`.
            cache: Where features are kept between runs; None keeps none.

        Raises:
            ParameterError: no hasher.
        """
        if not isinstance(hasher, Hasher):
            raise ParameterError(f"{type(self).__name__} needs a hasher; make one with make_hasher(method, n_bits)")
        self.backbone_name = backbone
        self.hasher = hasher
        self.cache = cache
        self.fingerprint: str | None = None
        self.training: dict[str, Any] = {}
        self.skipped_: list[Skipped] = []
        self._image_size, self._weights, self._device, self._engine = image_size, weights, device, engine
        self._backbone_options = backbone_options
        self._saved_backbone: tuple[dict[str, Any], dict[str, NDArray[Any]]] | None = None
        self._checkpoint_folder: str | Path | None = None
        self._checkpoint: Checkpoint | None = None
        self._allow_download = False  # of what a model folder names; a name given to the constructor is consent

    @property
    def n_bits(self) -> int:
        """Code length."""
        return self.hasher.n_bits

    @property
    def device(self) -> str:
        """Where the backbone runs: ``cpu``, ``cuda`` or ``mps``."""
        from distillhash.backbones.base import choose_device

        return choose_device(self._device)

    @cached_property
    def backbone(self) -> Backbone:
        """The feature extractor, built on first use; :class:`FormatError` if its weights are not those of the training."""
        from distillhash.backbones import backbone_from_config, make_backbone

        if self._saved_backbone is None:
            return make_backbone(
                self.backbone_name,
                image_size=self._image_size,
                weights=self._weights,
                device=self._device,
                engine=self._engine,
                options=self._backbone_options,
            )
        config, tensors = self._saved_backbone
        where: dict[str, Any] = {"device": self._device, "engine": self._engine}
        backbone = backbone_from_config(config, allow_download=self._allow_download, **where)
        if tensors:
            backbone.load_tensors(tensors)
        if backbone.fingerprint != config.get("fingerprint"):
            raise FormatError(
                f"the weights of backbone {self.backbone_name} ({backbone.fingerprint}) are not those the model was trained with "
                f"({config.get('fingerprint')}); give the same weights file or package version"
            )
        return backbone

    def fit(
        self,
        source: Any,
        *,
        n_views: int | None = None,
        fine_tune: bool = False,
        max_images: int = 50_000,
        max_pixels: int | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Learn from an unlabelled source; labels it may carry are never read.

        A group of processes (:mod:`distillhash.distributed`) shares the work of the backbone, and each ends with the same model.

        Args:
            source: Whatever :func:`distillhash.sources.open_source` takes.
            n_views: Augmented copies of every image to train on as well; None takes six for the methods that use views, and none for
                embeddings. Methods that choose take six where the features of the images see the augmentation
                (:func:`~distillhash.supervision.agreement.recognised_views`), and none elsewhere. With views, `distillhash-contrast`
                learns from larger images as well (its teacher).
            fine_tune: Train the backbone together with the head (methods that train a head only).
            max_images: Items learned from at most, drawn by the hasher's seed; memory is ``4 d max_images`` bytes a view.
            max_pixels: Images above this are skipped; None takes the decoder's limit.
            progress: Show progress on stderr.
            checkpoint: With ``fine_tune``, a folder that keeps how far training is. The same fit goes on from there after it was
                stopped; on the CPU it ends with the same model, bit for bit. :meth:`save` removes it.

        Returns:
            self.

        Raises:
            DataError: nothing usable in the source, or too little for the method; a checkpoint of another fit.
            ParameterError: views or fine-tuning asked for where there are no images.
        """
        opened = self._open_training(source)
        vectors = self.backbone_name == "embeddings"
        if max_images < 2:
            raise ParameterError(f"max_images must be at least 2, got {max_images}")
        if n_views is None and (vectors or not self.hasher.uses_views):
            n_views = 0
        if n_views is not None and n_views < 0:
            raise ParameterError(f"the number of views must be at least 0, got {n_views}")
        if vectors and (n_views or fine_tune):
            raise ParameterError("augmented views and fine-tuning need images; this source holds embeddings")
        if fine_tune and not self.hasher.fine_tunes:
            raise ParameterError(f"{self.hasher.method} cannot fine-tune a backbone; leave out fine-tuning")
        if fine_tune:
            self.backbone.check_trainable()
        chosen = sample_rows(len(opened), max_images, np.random.default_rng(self.hasher.seed))
        sample = opened if len(chosen) == len(opened) else opened.select(chosen)
        self._checkpoint_folder = checkpoint
        counts = self._learn(sample, fine_tune=fine_tune, n_views=n_views, progress=progress, max_pixels=max_pixels)
        facts = {"source": opened.name, "n_items": len(opened)}
        self.training = {**facts, **counts, "fine_tuned": fine_tune}
        self.fingerprint = None
        return self

    def _open_training(self, source: Any) -> Any:
        """What :meth:`_learn` takes: it has a length, a name, and ``select(rows)``."""
        return self._open(source)

    def _learn(self, sample: Any, *, fine_tune: bool, n_views: int | None, **options: Any) -> dict[str, Any]:
        """Fit the hasher; how much was used, for :attr:`training`."""
        self._choose_size(sample, quiet=not options["progress"])
        table, facts = None, dict[str, Any]()
        if n_views is None:
            table = self._extract(sample, **options)
            n_views, facts = self._choose_views(sample, table, **options)
        if table is None or n_views:
            teacher = bool(n_views) and self.hasher.uses_teacher
            table = self._extract(sample, n_views=n_views, teacher=teacher, **options)
        self.skipped_ = table.skipped
        images = None
        if fine_tune:
            from distillhash.backbones import ImageInputs, TorchBackbone
            from distillhash.methods.training import Checkpoint, TrainableImages

            assert isinstance(self.backbone, TorchBackbone)  # as check_trainable has found
            if self._checkpoint_folder is not None:
                self._checkpoint = Checkpoint(self._checkpoint_folder, self._facts(table, n_views))
            inputs = ImageInputs(sample.select(table.rows), self.backbone)
            images = TrainableImages(inputs, self.backbone.network, self._checkpoint)
        self.hasher.fit(table.features, views=table.views, images=images, teacher=table.teacher)
        if fine_tune:
            self.backbone.refresh()
            self.hasher.fit_decoder(self._extract(sample, **options).features)
        return {"n_used": len(table.rows), "n_views": n_views, **facts}

    def _facts(self, table: FeatureBatch, n_views: int) -> dict[str, Any]:
        """What training the backbone depends on."""
        return {
            "version of distillhash": distillhash.__version__,
            "method, options or seed": [self.hasher.method, self.hasher.get_params()],
            "backbone": [self.backbone.config(), self.backbone.fingerprint],
            "data": blake2b(b"".join(table.digests), digest_size=16).hexdigest(),
            "number of views": n_views,
        }

    def _choose_views(self, sample: Source, table: FeatureBatch, **options: Any) -> tuple[int, dict[str, Any]]:
        """How many views to train on, and what says so."""
        if not self.hasher.wants_views(table.features):
            return 0, {}
        if not self.hasher.chooses_views:
            return DEFAULT_VIEWS, {}
        from distillhash.supervision.agreement import ASKED, RECOGNISED, recognised_views

        rows = sample_rows(len(table.rows), ASKED, np.random.default_rng(self.hasher.seed))
        seen = self._extract(sample.select(table.rows[rows]), n_views=1, **options)
        assert seen.views is not None
        share = recognised_views(seen.features, seen.views)
        return 0 if share >= RECOGNISED else DEFAULT_VIEWS, {"views_recognised": share}

    def _choose_size(self, images: Source, *, quiet: bool) -> None:
        """Set the image size for what is learned from, unless the user or a saved model did."""
        from distillhash.backbones import sized_for

        if self._image_size is None and self._saved_backbone is None:
            self.backbone = sized_for(self.backbone, images, quiet=quiet)

    def _extract(self, source: Source, **options: Any) -> FeatureBatch:
        from distillhash.backbones import extract_features

        return extract_features(source, self.backbone, cache=self.cache, seed=self.hasher.seed, **options)

    def encode(self, source: Any, *, progress: bool = False) -> Codes:
        """Codes of a source's items, in its order.

        An item that cannot be read has no code: the result is then shorter than the source and a
        :class:`~distillhash.errors.SkippedItemsWarning` says so. Use :meth:`encode_batches` to know which items.

        Raises:
            NotFittedError: before :meth:`fit`.
            DataError: nothing usable in the source.
        """
        encoded = list(self.encode_batches(source, progress=progress))
        skipped = [item for batch in encoded for item in batch.skipped]
        codes = Codes.concatenate([batch.codes for batch in encoded], self.n_bits)
        if not len(codes):
            first = f"; first {skipped[0].key}: {skipped[0].reason}" if skipped else ""
            raise DataError(f"nothing usable in {source}: {len(skipped)} items skipped{first}")
        if skipped:
            warnings.warn(
                f"{len(skipped)} items could not be used and have no code, first {skipped[0].key}: {skipped[0].reason}",
                SkippedItemsWarning,
                stacklevel=2,
            )
        return codes

    def encode_batches(
        self, source: Any, *, known: Known | None = None, progress: bool = False, max_pixels: int | None = None
    ) -> Iterator[Encoded]:
        """Codes batch by batch, in the source's order; memory does not grow with the source.

        ``known`` names items that are read but get no code, see :func:`distillhash.backbones.iter_features`.
        """
        from distillhash.backbones import iter_features

        if not self.hasher.is_fitted:
            raise NotFittedError("this model is not trained; call fit(source), or load one with load_model(folder)")
        opened = self._open(source)
        batches = iter_features(
            opened, self.backbone, cache=self.cache, known=known, progress=progress, max_pixels=max_pixels
        )
        for batch in batches:
            codes = self.hasher.encode(batch.features)
            yield Encoded(codes, batch.rows, batch.features, list(batch.skipped), batch.digests, batch.known)

    def _open(self, source: Any) -> Source:
        opened = open_source(source)
        wants_vectors = self.backbone_name == "embeddings"
        if isinstance(opened, EmbeddingSource) != wants_vectors:
            kinds = ("embeddings", "images") if wants_vectors else ("images", "embeddings")
            raise DataError(
                f"this model takes {kinds[0]} (backbone {self.backbone_name}), but {opened.name} holds {kinds[1]}"
            )
        return opened

    def save(self, path: str | Path) -> None:
        """Write the model folder (created if absent): ``config.json`` and ``model.safetensors``; remove the checkpoint of :meth:`fit`."""
        tensors = self.hasher.tensors()
        if self.training.get("fine_tuned"):
            tensors |= {_BACKBONE_PREFIX + name: array for name, array in self.backbone.tensors().items()}
        write_model_folder(path, self.model_config(), tensors)
        self.fingerprint = read_model_folder(path)[0]["fingerprint"]
        if self._checkpoint is not None:
            self._checkpoint.remove()

    def model_config(self) -> dict[str, Any]:
        """The contents of ``config.json``: hasher, backbone with its fingerprint, training."""
        config = self.hasher.config()
        config["backbone"] = {**self.backbone.config(), "fingerprint": self.backbone.fingerprint}
        config["training"] = self.training
        return config

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, measures: Mapping[str, float] | None = None
    ) -> None:
        """Write the model folder with what the Hugging Face hub wants beside it: a model card and golden vectors.

        Of the path of the training source only the last part is written, for others to read.

        Args:
            folder: Created if absent.
            license: Identifier of the model's licence, such as ``apache-2.0``, for the card.
            measures: Measures to print in the card, by name, such as the numbers of :func:`distillhash.metrics.evaluate_codes`.

        Raises:
            NotFittedError: before :meth:`fit`.
            ParameterError: the weights of the backbone are files of this machine, which nobody else has.
            DataError: the folder cannot be written.
        """
        hub.write_pretrained(self, Path(folder), Path(folder).name, license, measures)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        license: str | None = None,
        measures: Mapping[str, float] | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes as one commit; the repository is created if absent.

        Args:
            repo: ``OWNER/NAME`` on the hub. ``hf auth login`` or the environment variable ``HF_TOKEN`` say who you are.
            private: Whether a new repository is hidden from others; None leaves that to the settings of the owner.
            license: See :meth:`save_pretrained`.
            measures: See :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            MissingDependencyError: huggingface_hub is not installed.
            DataError: the hub refuses, or cannot be reached.
        """
        return hub.upload(self, repo, private, license, measures)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        engine: Engine = "auto",
        cache: FeatureCache | None = None,
        allow_download: bool = False,
    ) -> Self:
        """Read a model folder, or download one from the Hugging Face hub, and compare its golden vectors.

        The folder may be somebody else's: it is read as :func:`~distillhash.load_model` reads one, and four files by name are downloaded.

        Args:
            name: A folder, else ``OWNER/NAME`` on the hub.
            revision: Branch, tag or commit of the hub; a commit names one content for ever.
            device: Where its backbone runs.
            engine: What runs it on a CPU, see :func:`distillhash.backbones.make_backbone`.
            cache: Where features are kept between runs.
            allow_download: Also download the backbone that the folder names, where this machine does not have it.

        Returns:
            The model; a :class:`CrossModalModel` where the folder holds one.

        Raises:
            MissingDependencyError: no such folder, and huggingface_hub is not installed.
            DataError: there is no such model, or the hub cannot be reached.
            FormatError: the folder is damaged, or the codes of its golden vectors are others here.
        """
        folder = Path(name) if Path(name).exists() else hub.downloaded(str(name), revision)
        options: dict[str, Any] = {"engine": engine, "cache": cache, "allow_download": allow_download}
        model = cls.from_folder(folder, device=device, **options)
        hub.compare_golden(model, folder)
        return model

    @classmethod
    def from_folder(cls, path: str | Path, *, device: str = "auto", engine: Engine = "auto", **options: Any) -> Self:
        """See :func:`distillhash.load_model`; :class:`FormatError` where the folder holds another kind of model than this class."""
        file, data = onnx_file(path), None
        if file is None:
            config, tensors = read_model_folder(path)
        else:
            from distillhash.models.onnx import ExportedBackbone, read_onnx

            config, tensors, data = read_onnx(file)
        if "backbone" not in config:
            raise FormatError(f"{path} holds a hasher without a backbone; read it with load_hasher")
        kinds = [kind for kind in (*cls.__subclasses__(), cls) if kind._CONFIG_HAS in config]
        if not kinds:
            raise FormatError(f"{path} holds no {cls._CONFIG_HAS}, so it is no {cls.__name__}; read it with load_model")
        model = kinds[0].from_contents(config, tensors, device=device, engine=engine, **options)
        if data is not None and model.backbone_name != "embeddings":
            if engine == "torch" or device not in ("auto", "cpu"):
                option = "--engine torch" if engine == "torch" else f"--device {device}"
                raise ParameterError(f"{file} is run by ONNX Runtime on the CPU; leave out {option}")
            assert model._saved_backbone is not None  # as from_contents has set it
            model._device, model.backbone = "cpu", ExportedBackbone(str(file), data, *model._saved_backbone)
            if model.backbone.dim != model.hasher.n_features_:
                raise FormatError(f"{file}: its network does not belong to its hash function; export the model again")
        return model

    @classmethod
    def from_contents(
        cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]], *, allow_download: bool = False, **options: Any
    ) -> Self:
        """The trained model in the contents of a model folder; see :func:`load_model`. ``options`` are arguments of the constructor."""
        for part in ("backbone", "training"):
            if not isinstance(config.get(part, {}), dict):
                raise FormatError(f"{part} in the model's config.json must describe one, got {config[part]!r:.80}")
        if not isinstance(config["backbone"].get("name"), str):
            raise FormatError(f"the model's config.json names no backbone, but {config['backbone'].get('name')!r:.80}")
        own = {name: array for name, array in tensors.items() if not name.startswith(_BACKBONE_PREFIX)}
        backbone = {name.removeprefix(_BACKBONE_PREFIX): tensors[name] for name in tensors.keys() - own.keys()}
        model = cls(config["backbone"]["name"], hasher_from(config, own), **options)
        model._saved_backbone = config["backbone"], backbone
        model.training = config.get("training", {})
        model.fingerprint = config["fingerprint"]
        model._allow_download = allow_download
        return model

    def __repr__(self) -> str:
        return f"HashModel(backbone={self.backbone_name!r}, hasher={self.hasher!r})"


def onnx_file(path: str | Path) -> Path | None:
    """The ONNX file that a model is read from: ``path`` itself, or ``model.onnx`` in a folder without ``config.json``; None for others."""
    place = Path(path)
    if place.is_file():
        return place
    inside = place / ONNX_NAME
    return inside if inside.is_file() and not (place / "config.json").exists() else None
