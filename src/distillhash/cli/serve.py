"""Serve an index: a page to search it in the browser, and an HTTP API.

distillhash serve --index photos.index
DISTILLHASH_TOKEN=$(openssl rand -hex 24) distillhash serve --index photos.index --host 0.0.0.0 --port 80
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from distillhash.cli.common import INDEX_HELP, add_device_options, add_download_option, say, where
from distillhash.errors import MissingDependencyError, ParameterError
from distillhash.files import read_file
from distillhash.serve.settings import Settings

TOKEN_VARIABLE = "DISTILLHASH_TOKEN"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--index", required=True, metavar="DIR|URI", help=f"{INDEX_HELP}, filled by index")
    add("--model", metavar="DIR", help="model folder; needed where the index is on a server")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    add("--root-path", default="", metavar="P", help="path under which a proxy shows the server, such as /photos")
    add("--token-file", metavar="FILE", help=f"file with the token that requests must carry (or set {TOKEN_VARIABLE})")
    add("--duplicates", metavar="FILE", help="groups that dedup --out wrote, to be shown on the page")
    upload, pixels = Settings.max_upload >> 20, Settings.max_pixels
    add("--max-upload", type=int, default=upload, metavar="MB", help=f"largest upload (default: {upload})")
    add("--max-pixels", type=int, default=pixels, metavar="N", help=f"largest picture (default: {pixels})")
    add(
        "--encoders",
        type=int,
        metavar="N",
        help="processes that encode uploaded images on the processor, each with the model in its memory; 0 encodes in the server's own "
        "(default: one per core, four at most)",
    )
    add_device_options(parser)
    add_download_option(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Open everything that may fail, then serve until a signal."""
    if not 0 <= arguments.port <= 65535:
        raise ParameterError(f"--port must be in 0..65535, got {arguments.port}")
    try:
        from distillhash.serve.run import bind, serve, url_of
        from distillhash.serve.service import Service
    except ImportError as error:
        raise MissingDependencyError(
            f"serve needs packages that are not installed ({error.name}); pip install 'distillhash[serve]'"
        ) from error
    from distillhash.index import open_index
    from distillhash.index.address import folder_of, shown
    from distillhash.search import Searcher, has_model, open_searcher

    token, file = os.environ.get(TOKEN_VARIABLE) or None, arguments.token_file
    if file is not None:
        try:
            token = read_file(file, limit=4096).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ParameterError(f"the token file {file} cannot be read ({error}); write the token into it") from error
    settings = Settings(
        host=arguments.host,
        token=token,
        max_upload=arguments.max_upload * 2**20,
        max_pixels=arguments.max_pixels,
        encoders=arguments.encoders,
        duplicates=Path(arguments.duplicates) if arguments.duplicates else None,
        root_path=arguments.root_path,
    )
    started = time.perf_counter()
    if arguments.model or has_model(arguments.index):
        options = {**where(arguments), "allow_download": arguments.allow_download}
        searcher = open_searcher(arguments.index, arguments.model, **options)
    else:  # it can still be searched by id and by code
        searcher = Searcher(open_index(arguments.index))
    service = Service(searcher, folder_of(arguments.index), settings)
    index = searcher.index
    listener = bind(arguments.host, arguments.port)
    url = url_of(listener)
    say(arguments, f"{len(index)} items of {index.n_bits} bits in {shown(arguments.index)}")
    serve(service, listener, say=lambda text: say(arguments, text))
    return {"url": url, "seconds": time.perf_counter() - started}
