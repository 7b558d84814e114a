"""ONNX Runtime on the CPU: any exported image network, a file (https://onnx.ai), and the networks of torch, exported here to run faster.

**Input**: one, ``(n, 3, h, w)`` or ``(n, h, w, 3)``, float32, float16 or uint8. How its pixels are made is said by the first of these:

1. the options ``mean`` and ``std`` (of channels in 0..1), ``rescale_factor``, ``channels``, ``layout``;
2. ``preprocessor_config.json`` beside the file, as for ``hf:``, or beside its folder where that is called ``onnx``;
3. the graph: a uint8 input takes pixels as they are; a network that begins with a subtraction, division or multiplication by constants
   normalises by itself, and the size of the constants tells whether it takes 0..255 or 0..1.

**Output**: the option ``output``; else the only one; else the first of ``image_embeds``, ``image_features`` and ``pooler_output`` that
is there; else the only one with two axes. The mean is taken over tokens ``(n, t, d)``, the class token included, and over a map,
``(n, d, h, w)`` or ``(n, h, w, d)``: its equal sides are h and w.

Images go through one at a time, or in passes of the number that the graph fixes, so a row does not depend on the rows beside it. Each
pass uses one thread. The file is data, and ONNX Runtime runs what the graph says: no code of the file, but any amount of arithmetic.

A network of torch (:func:`run_by_onnx`) is exported once and kept in the user's cache, by its fingerprint and the versions of both
packages. Each time it is opened, features of a few images are compared with torch's.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.backbones.base import Backbone, Pixels, Run, TorchBackbone
from distillhash.backbones.cache import engine_folder
from distillhash.backbones.huggingface import (
    PIXEL_OPTIONS,
    check_options,
    choose_channels,
    parse_config,
    pixel_statistics,
    read_processor,
    size_in,
)
from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError, first_line
from distillhash.files import open_regular, read_file, write_atomic
from distillhash.pytorch import torch

# From version 1.32 on it sends statistics of its use over the network, unless it is told before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MAX_BYTES = 2**31 - 1  # of a protocol buffer; larger networks keep their weights in files beside it
_MAX_PIXELS = 2**24  # of a pass
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_OUTPUTS = ("image_embeds", "image_features", "pooler_output")
_TO_LAYOUT = {"nchw": (0, 3, 1, 2), "nhwc": (0, 1, 2, 3)}
OPSET = 17
_MOST_KEPT = 8  # exported networks in the cache, 14 to 20 MB each; those used longest ago go
_EXPORT_VERSION = 1  # of :func:`export_network`: whoever changes it raises this
_TOLERANCE = 1e-4  # of features of both engines, relative to the largest; 3e-6 was measured
_PIXELS_A_PASS = 2**16  # fewer images leave a core waiting, more fall out of its cache
_N_DRAWN = 5
_MAX_DIM = 2**20
_logger = logging.getLogger(__name__)
_warned: set[str] = set()  # networks that were complained about


class OnnxFile(Backbone):
    """``onnx:FILE``. Its options are those of the module's text, and ``digest``: the file must have it, or is refused unread."""

    def __init__(self, file: str, *, image_size: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        name, path = f"onnx:{file}", Path(os.path.abspath(file))  # noqa: PTH100  # links stay: weights lie beside a link
        options = check_options(name, options or {}, (*PIXEL_OPTIONS, "layout", "output", "digest"))
        graph, self._digest = _read(name, path, options.get("digest"))
        self._session, inputs, outputs = open_session(name, str(path))
        processor = _processor(name, path)
        self._input, self._dtype, shape = _image_input(name, inputs)
        self._layout = _layout(name, shape, options, has_processor=bool(processor))
        size = _side(name, shape, self._layout, image_size, processor)
        self._output = _output(name, outputs, options)
        batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 1
        most = max(1, _MAX_PIXELS // size**2)
        if batch > most:
            raise DataError(f"{name} takes {batch} images at a time; export it for {most} or fewer, or any number")
        self._path, self._per_pass = path, batch
        self._axes: tuple[int, ...] = ()  # of the output, over which the mean is taken
        self.name = name
        self._normalise(graph, options, processor)
        self.channels = choose_channels(name, options, processor)
        super().__init__(name, 0, size)
        if batch > 1:
            self.batch_size = batch
        self._try()

    def _normalise(self, graph: Any, options: dict[str, Any], processor: dict[str, Any]) -> None:
        """Find mean and standard deviation, and where they come from two sides or none, say so."""
        remedy = "give --backbone-set mean=... and std=... (Python: backbone_options), of channels in 0..1"
        try:
            inside = _normalises(graph, self._input)
        except (ArithmeticError, IndexError, TypeError, ValueError):  # a damaged graph, which ONNX Runtime bore
            inside = None
        given = "mean" in options or "std" in options
        if self._dtype == np.uint8:
            if given:
                raise ParameterError(f"{self.name} takes pixels as uint8 and normalises them; leave out mean and std")
        elif given or (processor and inside is None):
            self.mean, self.std = pixel_statistics(self.name, options, processor)
        elif inside is None:
            raise ParameterError(
                f"{self.name} does not say how pixels are normalised; {remedy}, or put its preprocessor_config.json beside it"
            )
        elif processor:
            raise ParameterError(
                f"{self.name} normalises pixels itself, and the preprocessor_config.json beside it asks for the same; {remedy}"
            )
        else:
            self.mean, self.std = [0.0] * 3, [1 / inside] * 3

    def _try(self) -> None:
        """Features of noise, which tell their width."""
        size = self.image_size
        noise = np.random.default_rng(0).integers(0, 256, (self._per_pass, size, size, 3)).astype(np.uint8)
        self._shape = shape = self._pass(noise).shape
        if len(shape) not in (2, 3, 4) or shape[0] != self._per_pass or 0 in shape:
            raise DataError(
                f"{self.name}: output {self._output!r:.80} of {self._per_pass} images has the shape {shape}, not (n, d), (n, t, d) or a "
                "map; choose another with --backbone-set output=NAME"
            )
        if len(shape) == 3:
            self._axes = (1,)
        elif len(shape) == 4:
            fits = {"nchw": shape[2] == shape[3], "nhwc": shape[1] == shape[2]}
            self._axes = (
                (2, 3) if (fits["nchw"], self._layout == "nchw") > (fits["nhwc"], self._layout == "nhwc") else (1, 2)
            )
        self.dim = next(side for axis, side in enumerate(shape) if axis and axis not in self._axes)
        found = self.embed(noise)
        if not np.isfinite(found).all():
            raise DataError(f"{self.name} makes NaN or infinity of an image; export it again, in float32")
        apart = np.concatenate([self.embed(image[None]) for image in (noise[0], noise[-1])])
        if np.abs(apart - found[[0, -1]]).max() > 1e-4 * np.abs(found).max():
            raise DataError(
                f"{self.name} gives an image other features beside other images; export it for one image, or any number of them"
            )

    def architecture(self) -> str:
        """The digest of the file and of the weights beside it: a file may move."""
        return f"onnx:{self._digest}"

    def preprocessing(self) -> dict[str, Any]:
        """Of uint8 inputs no mean and standard deviation."""
        described = super().preprocessing()
        if self._dtype == np.uint8:
            del described["mean"], described["std"]
        return {**described, "layout": self._layout, "output": self._output}

    def config(self) -> dict[str, Any]:
        """With the file's absolute path and its digest."""
        return {**super().config(), "name": f"onnx:{self._path}", "digest": self._digest}

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """As :meth:`Backbone.embed`; of a uint8 input, floats are rounded. A pass that fails is a :class:`DataError`."""
        features = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self._per_pass):
            part = pixels[start : start + self._per_pass]
            found = self._pass(part)
            if found.shape != self._shape:
                raise DataError(
                    f"{self.name}: the shape of output {self._output!r:.80} depends on the image, {found.shape} after {self._shape}; "
                    "export it with an output of one shape"
                )
            features[start : start + len(part)] = (found.mean(self._axes) if self._axes else found)[: len(part)]
        return features

    def _pass(self, pixels: Pixels) -> NDArray[Any]:
        """The output for at most as many images as the graph fixes."""
        values: NDArray[Any] = pixels[..., ::-1] if self.channels == "bgr" else pixels
        if self._dtype != np.uint8:
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            values = (values.astype(np.float32) / 255 - mean) / std
        elif values.dtype != np.uint8:
            values = values.round().clip(0, 255)
        values = values.transpose(_TO_LAYOUT[self._layout])
        images = np.zeros((self._per_pass, *values.shape[1:]), self._dtype)
        images[: len(values)] = values
        try:
            (found,) = self._session.run([self._output], {self._input: images})
            return np.asarray(found, np.float32)
        except Exception as error:  # ONNX Runtime's errors have no common class
            size = self.image_size
            raise DataError(
                f"{self.name} fails on images of {size} x {size} pixels ({_reason(error)}); give --image-size a size that it takes, or "
                "export it again"
            ) from error


def run_by_onnx(backbone: TorchBackbone, *, required: bool) -> Run | None:
    """What runs ``backbone`` in ONNX Runtime; None where that cannot be, or would not be faster.

    Raises:
        MissingDependencyError: ``required``, and ONNX Runtime is not installed.
        ParameterError: ``required``, and the backbone is not on a CPU.
        DataError: ``required``, and its network cannot be exported, or features differ.
    """
    if not required and (backbone.device != "cpu" or not backbone.exports):
        return None
    try:
        import onnxruntime as _  # noqa: F401  # only whether it is installed
    except ImportError as error:
        if not required:
            return None
        raise MissingDependencyError("--engine onnx needs ONNX Runtime; pip install 'distillhash[onnx]'") from error
    if backbone.device != "cpu":
        raise ParameterError(
            f"--engine onnx runs on the CPU, not on {backbone.device}; give --device cpu, or leave it out"
        )
    try:
        return _exported(backbone)
    except Exception as error:  # exporting fails in many ways
        reason = f"{backbone.name} cannot be run by ONNX Runtime ({first_line(error)})"
        if required:
            raise DataError(f"{reason}; leave out --engine onnx") from error
        if backbone.name not in _warned:
            _warned.add(backbone.name)
            _logger.warning("%s; torch runs it", reason)
        return None


def _exported(backbone: TorchBackbone) -> Run:
    """The network from the cache if it is there and right, else exported anew."""
    import onnxruntime

    versions = f"{torch.__version__}/{onnxruntime.__version__}/{_EXPORT_VERSION}"
    folder, identity = engine_folder(), f"{backbone.fingerprint}/{versions}"
    file = folder and folder / f"{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}.onnx"
    if file:
        with contextlib.suppress(OSError, DataError, FormatError):  # absent, damaged, or of another processor
            run = _checked(backbone, read_file(file, limit=_MAX_BYTES))
            file.touch()
            return run
    data = export_network(backbone)
    run = _checked(backbone, data)
    if file:
        with contextlib.suppress(OSError):  # the cache saves time and nothing else
            write_atomic(file, data)
            for old in sorted(file.parent.glob("*.onnx"), key=lambda one: -one.stat().st_mtime)[_MOST_KEPT:]:
                old.unlink()
    return run


def export_network(backbone: TorchBackbone, *, as_bytes: bool = False) -> bytes:
    """The network as an ONNX file: ``image (n, size, size, 3)``, floats in 0..255 or uint8, to ``features (n, d) float32``."""

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = backbone.network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(backbone.normalise(image.permute(0, 3, 1, 2).float()))
            return found.float()

    size, stream = backbone.image_size, io.BytesIO()
    options: dict[str, Any] = {"f": stream}  # torch's stubs know names of files alone
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8 if as_bytes else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter takes a tenth of the time and needs no further package.
        torch.onnx.export(
            Whole().eval(),
            (example,),
            **options,
            input_names=["image"],
            output_names=["features"],
            dynamic_axes={"image": {0: "n"}, "features": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return stream.getvalue()


def quantised(network: bytes, images: NDArray[np.uint8]) -> bytes:
    """An exported network in int8, weights per channel, with the ranges of activations that images ``(n, size, size, 3)`` give."""
    _require("int8")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {"image": image[None]}

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        plain, folded, small = (str(Path(folder) / name) for name in ("plain.onnx", "folded.onnx", "small.onnx"))
        Path(plain).write_bytes(network)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        quantize_static(folded, small, Images(), per_channel=True, **kinds)
        return Path(small).read_bytes()


def _checked(backbone: TorchBackbone, data: bytes) -> Run:
    """The exported network, if it gives what torch gives: :class:`DataError` otherwise."""
    run = Passes(backbone.name, data, backbone.image_size)
    images = drawn_images(_N_DRAWN, backbone.image_size)
    with torch.inference_mode():
        normalised = backbone.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        expected = backbone.network(normalised).float().numpy()
    found = run(images)
    if not np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max():  # NaN as well
        raise DataError(f"its features differ by {np.abs(found - expected).max():.2g} from those of torch")
    return run


def drawn_images(n: int, size: int) -> NDArray[np.uint8]:
    """Images ``(n, size, size, 3)`` of coarse squares and a little noise, on which features are compared; always the same."""
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 8, 8, 3))[:, np.arange(size)[:, None] * 8 // size, np.arange(size) * 8 // size]
    return np.asarray(255 * (0.9 * coarse + 0.1 * rng.random((n, size, size, 3))), np.uint8)


class Passes:
    """A file's network from ``(n, size, size, 3)`` pixels to ``features``, a few images at a time where that changes no bit.

    Attributes:
        dim: Width of the features.
    """

    def __init__(self, name: str, data: bytes, size: int) -> None:
        """:class:`FormatError` for a file that is no such network."""
        self._name = name
        self._session, inputs, outputs = open_session(name, data)
        kinds = {kind: dtype for kind, dtype in _TYPES.items() if dtype != np.float16}
        if len(inputs) != 1 or inputs[0][1] not in kinds or inputs[0][2][1:] != [size, size, 3]:
            raise FormatError(f"{name} takes no images of {size} pixels but {inputs!s:.120}; export the model again")
        (self._input, kind, _), width = inputs[0], (outputs.get("features") or [None])[-1]
        if type(width) is not int or not 0 < width <= _MAX_DIM:
            raise FormatError(f"{name} gives no features, (n, d); export the model again")
        self._dtype, self.dim = kinds[kind], width
        self._n_images = max(1, _PIXELS_A_PASS // size**2)
        images = drawn_images(_N_DRAWN, size)
        if not np.array_equal(self(images), np.concatenate([self(image[None]) for image in images])):
            self._n_images = 1

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Row i of image i alone; :class:`DataError` where the network fails."""
        features = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self._n_images):
            part = slice(start, start + self._n_images)
            images = np.ascontiguousarray(pixels[part], self._dtype)
            try:
                (features[part],) = self._session.run(["features"], {self._input: images})
            except Exception as error:  # ONNX Runtime's errors have no common class
                raise DataError(f"{self._name} fails on an image ({_reason(error)}); export it again") from error
        return features


def read_graph(path: Path) -> tuple[bytes, Any]:
    """An ONNX file and what it says; :class:`FormatError` where it is none, or keeps numbers in other files."""
    _require(str(path))
    from onnx import ModelProto

    try:
        data = read_file(path, limit=_MAX_BYTES)
        model = ModelProto.FromString(data)
        is_whole = model.HasField("graph") and not any(_external(tensor) for tensor in _tensors(model))
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); give an ONNX file, whole") from error
    except Exception as error:  # a damaged protocol buffer
        raise FormatError(f"{path} is not an ONNX file, or is damaged; export the model again") from error
    if not is_whole:
        raise FormatError(f"{path} is empty, or keeps numbers in other files; export the model again")
    return data, model


def _require(name: str) -> None:
    """Raise :class:`MissingDependencyError` unless ONNX Runtime and the reader of graphs are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs ONNX Runtime; pip install 'distillhash[onnx]'") from error


def _read(name: str, path: Path, expected: Any) -> tuple[Any, str]:
    """The graph, and the digest of the file and of the files of weights that it names; a file with another than ``expected`` is refused."""
    _require(name)
    import onnx

    hasher = hashlib.blake2b(digest_size=16)
    try:
        data = read_file(path, limit=_MAX_BYTES)
        hasher.update(data)
        model = onnx.ModelProto.FromString(data)
        if not model.HasField("graph"):
            raise ValueError("it is empty")
        for location in sorted({place for tensor in _tensors(model) for place in _external(tensor)}):
            _refuse_outside(name, path.parent, location)
            with open_regular(path.parent / location) as file:
                while block := file.read(2**22):
                    hasher.update(block)
    except OSError as error:
        remedy = "give an ONNX file, whole" if expected is None else "put it back there, or train again"
        raise DataError(f"{name}: {error.filename or path} cannot be read ({error.strerror}); {remedy}") from error
    except DataError:
        raise
    except Exception as error:  # a damaged protocol buffer
        raise FormatError(f"{name} is not an ONNX file, or is damaged; export the network again") from error
    found = hasher.hexdigest()
    if expected is not None and found != str(expected):
        raise FormatError(
            f"{name} (digest {found}) is not the file the model was trained with ({expected!s:.80}); put that one there, or train again"
        )
    return model.graph, found


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a graph, at any depth."""
    from onnx import TensorProto

    for _, value in message.ListFields():
        for part in (value,) if hasattr(value, "ListFields") else value if hasattr(value, "add") else ():
            if isinstance(part, TensorProto):
                yield part
            else:
                yield from _tensors(part)


def _external(tensor: Any) -> list[str]:
    """The file that holds a tensor's numbers, if it is another one."""
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return []
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _refuse_outside(name: str, folder: Path, location: str) -> None:
    """Raise :class:`DataError` for weights that are not below the network's own folder, by their name or through a link."""
    ways = (PurePosixPath(location), PureWindowsPath(location))
    plain = (
        location
        and "*" not in location
        and not any(way.is_absolute() or way.drive or ".." in way.parts for way in ways)
    )
    if not plain or not (folder / location).resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{name} names weights outside of its folder (perhaps through a link), {location!r:.200}; put the file itself beside it"
        )


def open_session(name: str, file: str | bytes) -> tuple[Any, list[tuple[str, str, Any]], dict[str, Any]]:
    """The network of a path or a file's contents; its inputs as names, types and shapes; the shapes of its outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # extraction runs one pass a core
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        inputs = [(one.name, one.type, one.shape) for one in session.get_inputs()]
        return session, inputs, {one.name: one.shape for one in session.get_outputs()}
    except Exception as error:  # its errors have no common class; names may not be text
        raise FormatError(
            f"{name} cannot be run by ONNX Runtime {onnxruntime.__version__} ({_reason(error)}); export it again for this version"
        ) from error


def _reason(error: BaseException) -> str:
    """What ONNX Runtime says, without places in its source code."""
    text = " ".join(str(error).split()) or type(error).__name__
    places = (
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"^Load model from .* failed:",
        r"/onnxruntime_src/\S+ .*?\)(?: const)? ",
    )
    for noise in places:
        text = re.sub(noise, "", text)
    text = re.sub(r"^ONNX Runtime only .*?(Opset \d+) .* till (opset \d+).*", r"\1 is above \2", text)
    return text[:200].rstrip(". ")


def _processor(name: str, path: Path) -> dict[str, Any]:
    """The preprocessing of transformers beside the file, or beside the folder ``onnx`` that it is in; empty where there is none."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    found = (
        read_processor(lambda file: parse_config(folder / file, name) if (folder / file).exists() else None)  # noqa: B023
        for folder in folders
    )
    return next(filter(None, found), {})


def _image_input(name: str, inputs: list[tuple[str, str, Any]]) -> tuple[str, Any, list[Any]]:
    """Name, dtype and shape (numbers, or anything else where they are free) of the input."""
    wanted = "export it with one input of images, (n, 3, h, w) or (n, h, w, 3)"
    if len(inputs) != 1:
        names = f" ({', '.join(repr(one) for one, _, _ in inputs)})" if inputs else ""
        raise DataError(f"{name} takes {len(inputs)} inputs{names:.200}; {wanted}")
    ((image, kind, shape),) = inputs
    if not shape:
        raise DataError(f"{name}: the rank of its input {image!r:.80} is not fixed; {wanted}")
    if kind not in _TYPES or len(shape) != 4:
        raise DataError(
            f"{name}: its input {image!r:.80} is no image but a {kind:.80} of {len(shape)} axes; {wanted}, of float32, float16 or uint8"
        )
    return image, _TYPES[kind], shape


def _layout(name: str, shape: list[Any], options: dict[str, Any], *, has_processor: bool) -> str:
    """``nchw`` or ``nhwc``."""
    at = {"nchw": shape[1], "nhwc": shape[3]}
    possible = [layout for layout, channels in at.items() if channels == 3 or not isinstance(channels, int)]
    certain = [layout for layout, channels in at.items() if channels == 3]
    wanted = options.get("layout")
    if wanted not in (None, "nchw", "nhwc"):
        raise ParameterError(f"{name}: layout must be nchw or nhwc, got {wanted!r:.80}")
    if not possible or wanted not in (None, *possible):
        asked = f" as {wanted}" if wanted else ""
        raise DataError(
            f"{name}: its input has the shape {shape!s:.80}, which has no 3 channels{asked}; give a network for images"
        )
    if wanted is None and len(certain) != 1 and len(possible) > 1:
        if not has_processor:
            raise ParameterError(
                f"{name} does not say which axis of its input holds the channels; give --backbone-set layout=nchw or layout=nhwc "
                "(Python: backbone_options)"
            )
        return "nchw"  # of transformers
    return str(wanted or (certain if len(certain) == 1 else possible)[0])


def _side(name: str, shape: list[Any], layout: str, asked: int | None, processor: dict[str, Any]) -> int:
    """The side of the images."""
    sides = shape[2:4] if layout == "nchw" else shape[1:3]
    fixed = sorted({side for side in sides if isinstance(side, int) and side > 0})
    if len(fixed) > 1:
        raise DataError(f"{name} takes images of {sides[0]} x {sides[1]} pixels; export it for square ones")
    if fixed and asked not in (None, *fixed):
        raise ParameterError(f"{name} takes images of {fixed[0]} pixels alone, not {asked}; leave out the image size")
    size = fixed[0] if fixed else asked or size_in(processor)
    if size is None:
        raise ParameterError(
            f"{name} does not say how large its images are; give --image-size (Python: image_size), or put its "
            "preprocessor_config.json beside it"
        )
    return size


def _output(name: str, found: dict[str, Any], options: dict[str, Any]) -> str:
    """The output by the rule of the module's text."""
    names = list(found)
    flat = [output for output, shape in found.items() if len(shape or ()) == 2]
    wanted = str(options["output"]) if "output" in options else None
    if wanted is None:
        known = [output for output in _OUTPUTS if output in found]
        choice = names if len(names) == 1 else known[:1] or flat
        wanted = choice[0] if len(choice) == 1 else None
    if wanted is None or wanted not in found:
        asked = f"has no output {wanted!r:.80}" if wanted is not None else "has several outputs"
        raise ParameterError(
            f"{name} {asked}; choose one with --backbone-set output=NAME: {', '.join(map(repr, names)):.300}"
        )
    return wanted


def _normalises(graph: Any, image: str) -> float | None:
    """255 where a graph begins by normalising pixels in 0..255, 1 for pixels in 0..1, None where it does not."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    users = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
        for source in node.input:
            users[source].append(node)
    slope = 1.0  # by what pixels were multiplied so far
    largest = None  # of what was subtracted, in the pixels' own unit
    at = image
    while len(users[at]) == 1:
        (node,) = users.pop(at)
        if node.op_type in ("Sub", "Add", "Div", "Mul") and len(node.input) == 2:
            other = node.input[1] if node.input[0] == at else node.input[0]
            tensor = stored.get(other)
            turned = node.op_type in ("Sub", "Div") and other == node.input[0]
            if turned or tensor is None or int(np.prod(tensor.dims)) not in (1, 3) or _external(tensor):
                break
            value = float(np.abs(numpy_helper.to_array(tensor)).max())
            largest = max(largest or 0.0, value / slope if node.op_type in ("Sub", "Add") else 0.0)
            slope *= 1 / value if node.op_type == "Div" else value if node.op_type == "Mul" else 1.0
        elif node.op_type not in ("Cast", "Transpose", "Identity"):
            break
        at = node.output[0]
    if largest is None:
        return None
    return 255.0 if slope < 0.1 or largest > 2 else 1.0
