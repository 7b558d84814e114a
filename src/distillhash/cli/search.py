"""Find the items of an index nearest to a query.

distillhash search cat.jpg --index photos.index -k 5
distillhash search queries/ --index photos.index --radius 6 --json
distillhash search cat.jpg --index photos.index --where "key LIKE '%/2021/%'"
distillhash search cat.jpg --index photos.index --rerank decoder --candidates 500
distillhash search cat.jpg --index photos.index --by kind -k 100
distillhash search cat.jpg --index postgresql://localhost/photos --model model
distillhash search --text 'a dog on a beach' --index photos.index
"""

import argparse
import sys
from typing import Any

from distillhash.cli.common import INDEX_HELP, add_reading_options, model_options, open_argument, say
from distillhash.errors import DataError, ParameterError
from distillhash.output import escaped


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("queries", nargs="*", metavar="QUERY", help="an image file, a folder, or a .npy of embeddings")
    add("--text", action="append", default=[], metavar="WORDS", help="a sentence; needs a model trained with --pairs")
    add("--index", required=True, metavar="DIR|URI", help=f"{INDEX_HELP}, filled by index")
    add("--model", metavar="DIR", help="model folder; needed where the index is on a server")
    add("-k", type=int, default=10, help="neighbours per query (default: 10)")
    add("--radius", type=int, metavar="R", help="all items within R bits instead of the k nearest")
    add(
        "--by",
        choices=("both", "nearest", "kind"),
        default="both",
        help="order of codes of two parts: the nearest, the same kind, or first the nearest and then the same kind (default: both)",
    )
    add("--where", metavar="CONDITION", help="search only items for which this holds: SQL over id, key and metadata")
    add(
        "--rerank",
        choices=("projection", "decoder", "vectors", "features"),
        help="order the nearest codes by the query's real projection, or by the cosine of its features to those that are decoded from the "
        "codes, were kept by index --keep-vectors, or are read from image files again",
    )
    add("--candidates", type=_candidates, metavar="N|all", help="how many codes to re-rank (default: 10 k)")
    add_reading_options(parser, columns=False)


def _candidates(text: str) -> int:
    if not (text == "all" or text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a number or all, got {text!r}")
    return sys.maxsize if text == "all" else int(text)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode the queries, search, print."""
    from distillhash.search import is_image_file, open_searcher

    if not arguments.queries and not arguments.text:
        raise ParameterError("nothing to search for: give a QUERY, or --text with a sentence")
    if arguments.text and arguments.rerank is not None:
        raise ParameterError("--rerank orders by what is known of an image; leave it out where --text is given")
    compute = model_options(arguments) | {"max_pixels": arguments.max_pixels}
    with open_searcher(arguments.index, arguments.model, **compute) as searcher:
        found = searcher.find(
            *(open_argument(arguments, [query] if is_image_file(query) else query) for query in arguments.queries),
            texts=arguments.text,
            k=arguments.k,
            radius=arguments.radius,
            where=arguments.where,
            rerank=arguments.rerank,
            candidates=arguments.candidates,
            by=arguments.by,
        )
        is_exact = searcher.index.is_exact(searcher.class_bits, within=arguments.radius is not None)
    results, skipped = found.results, [{"query": item.key, "reason": item.reason} for item in found.skipped]
    for note in found.notes:
        say(arguments, note)
    if not is_exact:
        say(
            arguments,
            "approximate: this index may miss some of the nearest items; the page of its engine says how many",
        )
    for item in skipped:
        say(arguments, f"{item['query']}: {item['reason']}")
    if skipped and (arguments.strict or not results):
        first = f"first {skipped[0]['query']}: {skipped[0]['reason']}"
        raise DataError(f"{len(skipped)} of {len(skipped) + len(results)} queries could not be read; {first}")
    if not arguments.json:
        for result in results:
            rows = [f"  {n['distance']:>4}  {n['id']:>8}  {escaped(n['key'] or '')}" for n in result["neighbours"]]
            print("\n".join([escaped(result["query"]), *(rows or ["  nothing found"])]))  # noqa: T201  # the verb's output
    return {"results": results, "skipped": skipped, "exact": is_exact}
