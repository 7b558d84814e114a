"""A trained model as one ONNX file, for programs without Python and machines without torch; it loads as a model folder does.

The input is ``image (n, size, size, 3) uint8``, RGB and resized to the model's size, or ``embedding (n, d) float32``. The outputs are
``codes (n, ceil(n_bits / 8)) uint8`` (as :attr:`Codes.packed`), ``projection (n, n_bits) float32``, ``features (n, d) float32`` of images,
and ``reconstruction (n, d) float32`` where the model has a decoder. After the features all is float64, as in :meth:`Hasher.project`.

The metadata entry ``distillhash`` is the model's ``config.json``; an initialiser of that name holds the bytes of its
``model.safetensors``, which no node uses. So a model from this file has the fingerprint, the parameters and the codes of the folder: the
graph computes features of images, and the hasher the rest.

In int8 the network is another one: `arithmetic` in the configuration says so, and the model has a fingerprint of its own.
"""

from __future__ import annotations

import json
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.backbones import Backbone, TorchBackbone
from distillhash.backbones.base import BF16
from distillhash.backbones.onnx import OPSET, Passes, drawn_images, export_network, open_session, quantised, read_graph
from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.files import write_atomic
from distillhash.methods.base import AffineHasher, AffineLayers, Hasher, parse_model

if TYPE_CHECKING:
    from distillhash.backbones.base import Pixels
    from distillhash.methods.linear_algebra import AnchorGraph
    from distillhash.models.hash_model import HashModel

NAME = "distillhash"
MOST_DIFFERENT = 1e-3  # share of bits that may not be those of encode; none are expected
_MAX_BYTES = 2**31 - 1
_IR_VERSION = 8  # of onnx 1.10, 2021
_FEWEST_IMAGES = 20  # for int8
_N_IMAGES, _N_VECTORS = 32, 256  # that are drawn to compare codes


class ExportedBackbone(Backbone):
    """The network in the ONNX file of a model. It takes bytes: floats are rounded."""

    def __init__(self, place: str, data: bytes, config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> None:
        """``config`` is that of the backbone in a model folder, and ``weights`` are the fine-tuned ones there."""
        size, self.fingerprint = config.get("image_size"), config.get("fingerprint", "")
        if type(size) is not int or type(self.fingerprint) is not str:
            raise FormatError(f"{place} describes images of {size!r:.80} pixels; export the model again")
        try:
            super().__init__(config["name"], 0, size)
        except ParameterError as error:
            raise FormatError(f"{place}: {error}") from error
        self._place, self._data, self._config, self._weights = place, data, config, weights
        self.dim = self._passes.dim

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self._place, self._data, self.image_size)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_passes"}  # a session cannot be copied

    def prepare(self) -> None:
        """Open the network."""
        _ = self._passes

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """See :meth:`Backbone.embed`."""
        return self._passes(pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255))

    def preprocessing(self) -> dict[str, Any]:
        """What the model folder says."""
        return {name: value for name, value in self._config.items() if name not in ("name", "fingerprint")}

    def config(self) -> dict[str, Any]:
        """Of the model folder that it was made from; there is none of a network in int8."""
        if "arithmetic" in self._config:
            raise ParameterError(f"{self._place} computes in int8, which a model folder cannot; copy the file instead")
        return super().config()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The fine-tuned weights; none where the network is as it came."""
        return self._weights


def read_onnx(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], bytes]:
    """Configuration and tensors, as of a model folder, and the bytes of an ONNX file that :func:`write_onnx` wrote.

    The file may be somebody else's: it is data of at most 2 GiB, and no other file is read. :class:`FormatError` where it is absent,
    damaged, newer, or no model.
    """
    data, proto = read_graph(path)
    described = next((entry.value for entry in proto.metadata_props if entry.key == NAME), None)
    stored = next((tensor.raw_data for tensor in proto.graph.initializer if tensor.name == NAME), None)
    if described is None or stored is None:
        raise FormatError(
            f"{path} is no model, but another ONNX file; give one that `distillhash export --to onnx` wrote, or train a model with "
            f"--backbone onnx:{path}"
        )
    config, tensors = parse_model(path, described.encode(), stored)
    backbone = config.get("backbone")
    if isinstance(backbone, dict) and "arithmetic" in backbone:
        config["fingerprint"] = _digest(f"{config['fingerprint']}/{backbone.get('fingerprint')}".encode())
    return config, tensors, data


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def write_onnx(
    model: HashModel, stored: tuple[bytes, bytes], path: Path, rows: NDArray[Any] | None = None, *, int8: bool = False
) -> tuple[int, int]:
    """Write a trained model as an ONNX file, unless it would give other codes than the model.

    Args:
        model: The model.
        stored: Its ``config.json`` and ``model.safetensors``.
        path: The file.
        rows: Images ``(n, size, size, 3) uint8`` or embeddings ``(n, d)`` on which codes are compared, n >= 1; None draws some.
        int8: Compute features in int8: the first half of ``rows`` gives the ranges, and codes are compared on the other. They differ.

    Returns:
        How many bits were compared, and how many differ.

    Raises:
        ParameterError: a backbone or a method that cannot be exported.
        DataError: more than one bit in a thousand differs, but for int8, or the file cannot be written.
    """
    from onnx import ModelProto, TensorProto, helper

    hasher, of_images = model.hasher, model.backbone_name != "embeddings"
    if of_images:
        if model.backbone_name.startswith("torchscript:"):
            remedy = "save the network as ONNX where you have its Python code, and train with --backbone onnx:FILE"
            raise ParameterError(f"{model.backbone_name} is a program, not a network of layers; {remedy}")
        if not isinstance(model.backbone, TorchBackbone):
            raise ParameterError(f"{model.backbone_name} is an ONNX file already; export models of other backbones")
        if model.backbone.precision == BF16:
            raise ParameterError("ONNX Runtime has no bf16 on CPUs, so this model cannot be exported; train without it")
        plain = model.backbone.at_size(model.backbone.image_size)
        plain.engine = None  # torch computes what is compared
        network, source, config = export_network(plain, as_bytes=True), "features", stored[0].decode()
        rows = drawn_images(_N_IMAGES, plain.image_size) if rows is None else rows
        if int8:
            if len(rows) < _FEWEST_IMAGES:
                raise ParameterError(f"int8 needs at least {_FEWEST_IMAGES} images, got {len(rows)}; give more")
            half = len(rows) // 2
            network, rows = quantised(network, rows[:half]), rows[half:]
            described = json.loads(config)
            described["backbone"] |= {"arithmetic": "int8", "fingerprint": _digest(network)}
            config = json.dumps(described)
        proto = ModelProto.FromString(network)
        expected = hasher.encode(plain.embed(rows))
    elif int8:
        raise ParameterError("int8 is for the network of a model of images; this one takes embeddings")
    else:
        config = stored[0].decode()
        proto, source = ModelProto(ir_version=_IR_VERSION, opset_import=[helper.make_opsetid("", OPSET)]), "embedding"
        proto.graph.name = NAME
        proto.graph.input.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", hasher.n_features_]))
        rows = np.asarray(_drawn_vectors(hasher) if rows is None else rows, np.float32)
        expected = hasher.encode(rows)
    _add_head(_Graph(proto), hasher, source)
    proto.producer_name = NAME
    for key, value in ((NAME, config), ("n_bits", hasher.n_bits), ("class_bits", hasher.class_bits)):
        proto.metadata_props.add(key=key, value=str(value))
    proto.graph.initializer.add(name=NAME, data_type=TensorProto.UINT8, dims=[len(stored[1])], raw_data=stored[1])
    if proto.ByteSize() > _MAX_BYTES:
        raise ParameterError(f"{path} would have {proto.ByteSize():,} bytes; an ONNX file has at most {_MAX_BYTES:,}")
    data = proto.SerializeToString()
    session, inputs, _ = open_session(str(path), data)
    found = np.concatenate([session.run(["codes"], {inputs[0][0]: row[None]})[0] for row in rows])
    differ = int(np.bitwise_count(found ^ expected.packed).sum())
    if not int8 and differ > MOST_DIFFERENT * len(rows) * hasher.n_bits:
        raise DataError(
            f"the exported model differs in {differ} of {len(rows) * hasher.n_bits} bits from {hasher.method}, so it is not written; "
            "encode with the model folder"
        )
    try:
        write_atomic(path, data)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another name") from error
    return len(rows) * hasher.n_bits, differ


def _drawn_vectors(hasher: Hasher) -> NDArray[np.float32]:
    """Embeddings to compare codes on: noise, and what the decoder, if there is one, makes of random codes."""
    rng, half = np.random.default_rng(0), _N_VECTORS // 2
    noise = rng.standard_normal((2, half, hasher.n_features_ or 0)).astype(np.float32)
    if hasher.has_decoder:
        noise[1] = hasher.reconstruct(Codes.from_signs(rng.choice([-1, 1], (half, hasher.n_bits))))
    return noise.reshape(2 * half, -1)


class _Graph:
    """Adds nodes to an ONNX graph."""

    def __init__(self, proto: Any) -> None:
        self._graph, self._n = proto.graph, 0

    def __call__(self, operator: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        """The name of what an operator gives for values, which are names, and constants, which are arrays or floats."""
        from onnx import helper

        names = [value if isinstance(value, str) else self._constant(np.asarray(value)) for value in inputs]
        output = output or self._new_name()
        self._graph.node.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def nearest(self, values: str, k: int) -> tuple[str, str]:
        """The ``k`` smallest of each row, rising, and their places."""
        from onnx import helper

        found = self._new_name(), self._new_name()
        sizes = self._constant(np.array([k]))
        self._graph.node.append(helper.make_node("TopK", [values, sizes], list(found), axis=1, largest=0, sorted=1))
        return found

    def declare(self, name: str, kind: int, width: int) -> None:
        """Make a value ``(n, width)`` an output."""
        from onnx import helper

        self._graph.output.append(helper.make_tensor_value_info(name, kind, ["n", width]))

    def _constant(self, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = self._new_name()
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _new_name(self) -> str:
        self._n += 1
        return f"{NAME}.{self._n}"


def _add_head(graph: _Graph, hasher: Hasher, source: str) -> None:
    """Projection, codes and, where there is a decoder, features rebuilt from the codes."""
    from onnx import TensorProto

    n_bits, n_bytes = hasher.n_bits, bytes_per_code(hasher.n_bits)
    exact = _project(graph, hasher, graph("Cast", source, to=TensorProto.DOUBLE))
    projection = graph("Cast", exact, output="projection", to=TensorProto.FLOAT)
    graph.declare(projection, TensorProto.FLOAT, n_bits)
    bits = graph("Cast", graph("GreaterOrEqual", projection, np.float32(0)), to=TensorProto.FLOAT)
    padded = graph("Pad", bits, np.array([0, 0, 0, -n_bits % 8]))
    groups = graph("Reshape", padded, np.array([0, n_bytes, 8]))
    weighted = graph("Mul", groups, np.float32(2) ** np.arange(7, -1, -1, dtype=np.float32))
    packed = graph("ReduceSum", weighted, np.array([2]), keepdims=0)
    graph.declare(graph("Cast", packed, output="codes", to=TensorProto.UINT8), TensorProto.UINT8, n_bytes)
    if hasher.has_decoder:
        decoder = hasher.decoder
        signs = graph("Sub", graph("Mul", graph("Cast", bits, to=TensorProto.DOUBLE), 2.0), 1.0)
        rebuilt = graph("MatMul", signs, decoder.weight.astype(np.float64))
        rebuilt = graph("Add", rebuilt, decoder.mean.astype(np.float64))
        graph("Cast", rebuilt, output="reconstruction", to=TensorProto.FLOAT)
        graph.declare("reconstruction", TensorProto.FLOAT, len(decoder.mean))


def _project(graph: _Graph, hasher: Hasher, x: str) -> str:
    """The hash function of :meth:`Hasher._project`, for float64 features ``x``."""
    from distillhash.methods.heads import HeadHasher
    from distillhash.methods.image_text import CrossModalHasher

    at: Any = hasher  # whose attributes are known by the method's name
    match hasher.method:
        case "distillhash-nested":
            unit = _directions(graph, x)
            parts = zip(at.scales_, at._parts().values(), strict=False)
            return graph("Concat", *(graph("Mul", _project(graph, part, unit), scale) for scale, part in parts), axis=1)
        case "distillhash-contrast":
            outputs = _layers(graph, at._affine, _root_rows(graph, x) if at.root else x)
            return outputs if at.plain_ is None else graph("Add", outputs, graph("MatMul", x, at.plain_))
        case "urph":
            return _layers(graph, at._affine, _directions(graph, x) if at.start == "itq" else x)
        case "sh":
            values = graph("Sub", graph("MatMul", graph("Sub", x, at.mean_), at.components_), at.low_)
            return graph("Cos", graph("Mul", values, at.frequency_))
        case "sph":
            return graph("Sub", at.radii_, graph("Sqrt", _squared_distances(graph, x, at.pivots_)))
        case "dgh":
            return _anchored(graph, at.graph_, at.weight_, x)
        case "agh":
            first, n_split = _anchored(graph, at.graph_, at.weight_, x), len(at.upper_)
            if not n_split:
                return first
            split = graph("Slice", first, np.array([0]), np.array([n_split]), np.array([1]))
            above, below = graph("Sub", split, at.upper_), graph("Sub", at.lower_, split)
            return graph("Concat", first, graph("Where", graph("Greater", split, 0.0), above, below), axis=1)
    if isinstance(hasher, CrossModalHasher):
        return _layers(graph, hasher.image_, x)
    if isinstance(hasher, HeadHasher):
        return _layers(graph, hasher._affine, x)
    if isinstance(hasher, AffineHasher):
        return graph("Add", graph("MatMul", graph("Sub", x, hasher.mean_), hasher.weight_), hasher.bias_)
    raise ParameterError(
        f"{hasher.method} is no method whose formula can be exported; give a model of a linear method or of a head"
    )


def _layers(graph: _Graph, layers: AffineLayers, x: str) -> str:
    """See :class:`AffineLayers`."""
    from onnx import TensorProto

    x = graph("Sub", x, layers.mean)
    for index, (weight, bias) in enumerate(layers.layers):
        if index and layers.activation == "gelu":  # there is no Erf of float64
            share = graph("Erf", graph("Cast", graph("Mul", x, 0.5**0.5), to=TensorProto.FLOAT))
            share = graph("Cast", share, to=TensorProto.DOUBLE)
            x = graph("Mul", x, graph("Mul", graph("Add", share, 1.0), 0.5))
        elif index:
            x = graph({"relu": "Relu", "tanh": "Tanh"}[layers.activation], x)
        x = graph("Add", graph("MatMul", x, weight), bias)
    return x


def _directions(graph: _Graph, x: str) -> str:
    """See :func:`distillhash.methods.linear_algebra.directions`."""
    return graph("Div", x, _or_one(graph, graph("ReduceL2", x, axes=[1])))


def _root_rows(graph: _Graph, x: str) -> str:
    """See :func:`distillhash.supervision.agreement.root_rows`."""
    sizes = graph("Abs", x)
    roots = graph("Sqrt", graph("Div", sizes, _or_one(graph, graph("ReduceSum", sizes, np.array([1])))))
    return graph("Mul", roots, graph("Sign", x))


def _or_one(graph: _Graph, x: str) -> str:
    return graph("Where", graph("Greater", x, 0.0), x, 1.0)


def _squared_distances(graph: _Graph, x: str, centres: NDArray[np.float64]) -> str:
    """See :func:`distillhash.methods.linear_algebra.squared_distances`."""
    origin = centres.mean(axis=0)
    x, u = graph("Sub", x, origin), centres - origin
    products = graph("MatMul", x, -2 * u.T)
    lengths = graph("ReduceSum", graph("Mul", x, x), np.array([1]))
    return graph("Max", graph("Add", graph("Add", products, lengths), np.sum(u**2, axis=1)), 0.0)


def _anchored(graph: _Graph, anchors: AnchorGraph, values: NDArray[np.float64], x: str) -> str:
    """See :meth:`AnchorGraph.embed`."""
    near, places = graph.nearest(_squared_distances(graph, x, anchors.anchors), anchors.neighbours)
    first = graph("Slice", near, np.array([0]), np.array([1]), np.array([1]))
    weights = graph("Max", graph("Exp", graph("Div", graph("Sub", first, near), anchors.bandwidth**2)), 1e-12)
    weights = graph("Div", weights, graph("ReduceSum", weights, np.array([1])))
    weighted = graph("Mul", graph("Unsqueeze", weights, np.array([2])), graph("Gather", values, places))
    return graph("ReduceSum", weighted, np.array([1]), keepdims=0)
