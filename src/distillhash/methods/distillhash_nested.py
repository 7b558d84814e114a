"""DistillHash-nested: one code for kinds and for neighbours, at the scale that the data have. This project's own method, and the default.

Not in a paper. A code is judged by two measures: whether what it finds is of the query's kind (MAP of classes), and whether it finds what
was nearest before (recall of the float neighbours). `distillhash-contrast` wins the first and loses the second, `itq` the other way round.
Here the first bits of a code are those of the one and the rest those of the other; searches use both parts
(:mod:`distillhash.hamming.ranking`). docs/distillhash-nested.md has the measurements behind every choice.

No step sees a label. Rows are scaled to length 1 first, so that codes of x and of 3 x are equal.

1. **Scale.** A(k) is the agreement of two random halves of the dimensions about an item's k nearest
   (:func:`~distillhash.supervision.agreement.half_agreement`). The neighbourhood that `distillhash-contrast` learns from is the smallest of
   k = 8, 16, 32, ..., 2% of the items with A(k) >= A(2%). Where kinds are large (ten classes of images) A rises with k, and it is 2%.
   Where items come in small groups (captions of one picture, products) it is less: the scale is *fine*.
2. **Fine scale.** Views are left out, and features are used as they are. Where classes alone count, the temperature is .3, the
   neighbourhood half as large again, and relaxed codes are trained. Where neighbours count too, some of the neighbours are those by plain
   cosine. Two settings are tried: the temperature .2 and a quarter of such neighbours; .1 and three quarters. A setting is taken if its
   code of a part of the rows keeps the neighbours of the other rows as well as `itq` would, to 2%. All bits are then those of
   `distillhash-contrast`: kinds and neighbourhoods are the same thing. Otherwise all bits are those of `itq`.
   Where more than 50,000 rows are learned from (``max_train``), k counts all of them, and the rows that decide are random ones with their
   neighbours (:func:`with_neighbours`).
3. **Two parts.** At 2% the class part has 2 sqrt(n_bits) bits, rounded to a multiple of 16, and the neighbour part has the others. It is
   `itq` of the directions. Codes below 32 bits, or with more bits than features, have the class part alone at any scale.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from distillhash.methods.base import Floats, Hasher, TrainingSet, check_features, sample_rows
from distillhash.methods.distillhash_contrast import LISTED, SHARP, DistillHashContrast
from distillhash.methods.heads import MANY
from distillhash.methods.itq import ITQ
from distillhash.methods.linear_algebra import directions
from distillhash.methods.urph import URPH
from distillhash.metrics import neighbour_recall
from distillhash.metrics.neighbours import find_neighbours
from distillhash.supervision.agreement import half_agreement

SMALLEST = 8  # neighbours at the fine scale
FINE = ((0.2, 0.25), (0.1, 0.75))  # temperature and plain share: the first keeps kinds better, the second neighbours
TOLERANCE = 0.02  # share of the neighbour recall that may be lost
TESTED = 6000  # rows that decide, at most; a fifth of them is held out
CLASS_WEIGHT = 0.5  # of a class bit in the projection, relative to a neighbour bit
SHORTEST = 32  # bits of a code of two parts


class DistillHashNested(Hasher):
    """Class bits of `distillhash-contrast` and neighbour bits of `itq`, at a scale chosen from the features.

    ``class_part_`` and ``neighbour_part_`` are the two hashers; one of them may be None. ``history_["chosen"]`` says what was chosen:
    ``neighbourhood`` (items), ``fine`` (bool), ``class_bits``, and the neighbour recalls compared where some were.

    Attributes:
        preserve: ``both``, or only ``classes``, or only ``neighbours``: all bits are then those of `urph`, preset `nearest`.
        max_train: Rows that the scale and the trained parts are learned from at most; `itq` takes all. Without FAISS at most 50,000.
    """

    method = "distillhash-nested"
    title = "Nested codes for kinds and neighbours"
    venue, year = "this project", 2026
    kind = "contrastive"
    uses_views = True
    chooses_views = True
    uses_teacher = True

    preserve: Literal["both", "neighbours", "classes"] = "both"
    max_train: Annotated[int, Ge(2)] = MANY

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_part_: DistillHashContrast | None = None
        self.neighbour_part_: ITQ | URPH | None = None
        self.scales_: Floats = np.ones(2)

    def wants_views(self, features: NDArray[Any]) -> bool:
        """At the coarse scale alone."""
        rows = directions(check_features(features))
        if self.preserve == "neighbours":
            return False
        counted = _counted_rows(min(len(rows), self._most))
        return neighbourhood_of(rows, self.seed, counted) >= _default_neighbourhood(counted)

    @property
    def _most(self) -> int:
        """Rows that the class part learns from at most."""
        from distillhash.supervision.graph import has_graphs  # here, as it imports numba

        return self.max_train if has_graphs() else min(self.max_train, MANY)

    @property
    def class_bits(self) -> int:
        """Bits of the class part; 0 where there is one part."""
        return 0 if self.class_part_ is None or self.neighbour_part_ is None else self.class_part_.n_bits

    def _fit(self, given: TrainingSet) -> None:
        self.class_part_ = self.neighbour_part_ = None
        features = directions(given.features)
        if self.preserve == "neighbours":
            near = URPH(self.n_bits, seed=self.seed, max_train=self.max_train, **URPH.preset("nearest"))
            self.neighbour_part_ = near.fit(features)
            return
        n = len(features)
        counted = _counted_rows(min(n, self._most))
        k = neighbourhood_of(features, self.seed, counted)
        is_fine = k < _default_neighbourhood(counted)
        chosen: dict[str, Any] = {"neighbourhood": k, "fine": is_fine}
        class_bits, fine = self._class_bits(features.shape[1]), FINE[0]
        if is_fine and class_bits < self.n_bits:
            found, chosen["recalls"] = self._choose_fine(features, k)
            class_bits, fine = (0, fine) if found is None else (self.n_bits, found)
        if class_bits:
            coarse = DistillHashContrast(class_bits, seed=self.seed)
            part = self._fine_part(class_bits, k / counted, fine) if is_fine else coarse
            part.set_params(max_train=self._most)
            views, teacher = (None, None) if is_fine else (given.views, given.teacher)
            self.class_part_ = part.fit(features, views=views, teacher=teacher)
        if class_bits < self.n_bits:
            self.neighbour_part_ = ITQ(self.n_bits - class_bits, seed=self.seed).fit(features)
        if self.class_bits:
            sample = features[sample_rows(n, TESTED, np.random.default_rng(self.seed))]
            sizes = [float(np.abs(part.project(sample)).mean()) or 1.0 for part in self._parts().values()]
            self.scales_ = np.array([CLASS_WEIGHT, 1.0]) / sizes
        trained = self.neighbour_part_ if self.class_part_ is None else self.class_part_
        assert trained is not None
        self.history_ = trained.history_ | {"chosen": chosen | {"class_bits": self.class_bits}}

    def _class_bits(self, n_features: int) -> int:
        """Bits of the class part in a code of two parts, or all of them."""
        bits = max(16, 16 * round(2 * self.n_bits**0.5 / 16))
        one = self.preserve == "classes" or self.n_bits < SHORTEST or self.n_bits - bits > n_features
        return self.n_bits if one else bits

    def _fine_part(self, n_bits: int, share: float, fine: tuple[float, float]) -> DistillHashContrast:
        settings: dict[str, Any] = {"neighbourhood": share, "temperature": fine[0], "plain_share": fine[1]}
        if self.preserve == "classes":
            settings = {"neighbourhood": min(1.0, 1.5 * share), "temperature": SHARP, "gradient": "relaxed"}
        return DistillHashContrast(n_bits, seed=self.seed, root=False, **settings)

    def _choose_fine(self, features: NDArray[Any], k: int) -> tuple[tuple[float, float] | None, dict[str, float]]:
        """The first of ``FINE`` by which a class part of all bits keeps neighbours as well as `itq`, and the recalls that say so.

        Codes are learned from four fifths of the rows. The others are the queries, and all are the database: among few rows neighbours
        are found too easily to tell codes apart.
        """
        rng = np.random.default_rng(self.seed)
        if min(len(features), self._most) > MANY:
            features = features[sample_rows(len(features), self._most, rng)]
            rows, k = with_neighbours(features, k, rng), min(k, LISTED)
        else:
            rows = rng.permutation(len(features))[:TESTED]
        seen, new = (features[np.sort(part)] for part in np.split(rows, [len(rows) * 4 // 5]))
        tested, own = np.concatenate([new, seen]), np.arange(len(new))

        def recall(hasher: Hasher) -> float:
            codes = hasher.fit(seen).encode(tested)
            found = neighbour_recall(codes[own], codes, new, tested, ks=(10,), depths=(10,), same_items=own)
            return float(found["recall10@10"])

        recalls = {"itq": recall(ITQ(min(self.n_bits, features.shape[1]), seed=self.seed))}
        for fine in FINE:
            found = recalls[f"temperature {fine[0]}"] = recall(self._fine_part(self.n_bits, k / len(seen), fine))
            if found >= recalls["itq"] * (1 - TOLERANCE):
                return fine, recalls
        return None, recalls

    def _parts(self) -> dict[str, Hasher]:
        parts: dict[str, Hasher | None] = {"class": self.class_part_, "neighbour": self.neighbour_part_}
        return {name: part for name, part in parts.items() if part is not None}

    def _project(self, features: Floats) -> Floats:
        rows = directions(features)
        outputs = [part._project(rows) for part in self._parts().values()]
        return np.hstack([scale * output for scale, output in zip(self.scales_, outputs, strict=False)])

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays of the parts, each name after the part's, and ``scales`` (2,) of their outputs."""
        arrays = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        return arrays | {"scales": self.scales_}

    def config(self) -> dict[str, Any]:
        """What ``config.json`` says, with the parts' hyper-parameters."""
        return super().config() | {"parts": {name: part.get_params() for name, part in self._parts().items()}}

    def restore(self, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Self:
        """See :meth:`Hasher.restore`."""
        self._stored_parts = config.get("parts")
        return super().restore(config, tensors)

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        near = URPH if self.preserve == "neighbours" else ITQ
        kinds: dict[str, type[Hasher]] = {"class": DistillHashContrast, "neighbour": near}
        if not isinstance(self._stored_parts, dict) or not 1 <= len(self._stored_parts) <= 2:
            raise ValueError(f"parts are {self._stored_parts!r:.80}")
        parts: dict[str, Any] = {}
        for name, parameters in self._stored_parts.items():
            own = {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}
            parts[name] = kinds[name](**parameters).restore({"n_features": self.n_features_}, own)
        if sum(part.n_bits for part in parts.values()) != self.n_bits or state["scales"].shape != (2,):
            raise ValueError(f"parts of {[part.n_bits for part in parts.values()]} bits")
        if not (state["scales"] > 0).all():
            raise ValueError(f"scales {state['scales']}")
        self.class_part_, self.neighbour_part_ = parts.get("class"), parts.get("neighbour")
        self.scales_ = state["scales"]


def neighbourhood_of(features: NDArray[Any], seed: int, counted: int) -> int:
    """The neighbourhood, in items of ``counted`` of the rows, of the scale that ``features (n, d)`` have; see step 1 of the module."""
    default = _default_neighbourhood(counted)
    sizes = []
    size = SMALLEST
    while size < default:
        sizes.append(size)
        size *= 2
    if not sizes or features.shape[1] < 2:
        return default
    rows = features[np.sort(np.random.default_rng(seed).permutation(len(features))[:counted])]
    *agreements, wanted = half_agreement(rows, [*sizes, default], seed)
    return next((k for k, agreement in zip(sizes, agreements, strict=True) if agreement >= wanted), default)


def with_neighbours(features: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows of ``features (n, d)`` in random order, about ``TESTED``: random ones, each with at most 32 of its ``k`` nearest.

    Among as many random rows of a large set hardly any two are neighbours.
    """
    size = min(k, LISTED)
    drawn = rng.choice(len(features), TESTED // (1 + size), replace=False)
    near = find_neighbours(features[drawn], features, k, same_items=drawn, max_queries=TESTED).nearest
    return rng.permutation(np.union1d(drawn, near[:, rng.choice(k, size, replace=False)]))


def _counted_rows(learned: int) -> int:
    """Rows that neighbourhoods are counted in: all of many, or those of the smallest part in which they are found."""
    return learned if learned > MANY else learned // -(-learned // DistillHashContrast.part)


def _default_neighbourhood(counted: int) -> int:
    return round(DistillHashContrast.neighbourhood * counted)
