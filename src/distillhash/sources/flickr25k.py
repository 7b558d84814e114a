"""MIRFLICKR-25000 with its 24 potential labels, in the layout of its two archives.

Huiskes and Lew, "The MIR Flickr Retrieval Evaluation", MIR 2008. https://press.liacs.nl/mirflickr/mirdownload.html

``mirflickr25k.zip`` holds ``mirflickr/im1.jpg`` ... ``im25000.jpg``; ``mirflickr25k_annotations_v080.zip`` one text file per label that
lists image numbers, one a line. The 14 further files ``*_r1.txt`` (relevant labels, subsets of their namesakes) are not used, as in the
hashing papers.
"""

from pathlib import Path

import numpy as np

from distillhash.errors import DataError, FormatError
from distillhash.files import read_file
from distillhash.sources.files import FileImages

N_IMAGES = 25_000
_LABELS = """
animals baby bird car clouds dog female flower food indoor lake male night people plant_life portrait river sea sky structures sunset
transport tree water
"""
LABEL_NAMES = tuple(_LABELS.split())
_ORIGIN = "https://press.liacs.nl/mirflickr/mirdownload.html"
_AGAIN = f"unpack it again from {_ORIGIN}"


def open_flickr25k(folder: Path, name: str) -> FileImages:
    """All 25,000 images in the order of their numbers (keys ``im1.jpg`` ...), labels ``(25000, 24) uint8``.

    ``folder`` holds ``mirflickr/`` or is that folder. The annotation files lie in ``mirflickr25k_annotations_v080/`` or directly in
    ``folder``, in ``mirflickr/``, or beside it. An image with no label stays, with a row of zeros. An image file that is absent is
    reported when it is read.
    """
    images = next((place for place in (folder / "mirflickr", folder) if any(place.glob("im[0-9]*.jpg"))), None)
    if images is None:
        raise DataError(
            f"{name}: {folder / 'mirflickr' / 'im1.jpg'} and the other images are missing; unpack mirflickr25k.zip from {_ORIGIN}"
        )
    above = (folder,) if images != folder else (folder, folder.parent)
    places = [place / sub for sub in ("mirflickr25k_annotations_v080", ".") for place in (*above, images)]
    files = [f"{label}.txt" for label in LABEL_NAMES]
    annotations = next((place for place in places if any((place / file).exists() for file in files)), places[0])
    missing = [file for file in files if not (annotations / file).exists()]
    if missing:
        raise DataError(
            f"{name}: {annotations / missing[0]} is missing ({len(missing)} of the 24 annotation files are); "
            f"unpack mirflickr25k_annotations_v080.zip from {_ORIGIN}"
        )
    labels = np.zeros((N_IMAGES, len(files)), np.uint8)
    for column, file in enumerate(files):
        path = annotations / file
        try:
            numbers = np.array([int(number) for number in read_file(path).decode("ascii").split()], np.int64)
        except (ValueError, OverflowError, OSError) as error:
            raise FormatError(f"{name}: {path} is not a list of image numbers ({error}); {_AGAIN}") from error
        if numbers.size and (numbers.min() < 1 or numbers.max() > N_IMAGES):
            raise FormatError(f"{name}: {path} lists image {numbers.max()}; they run from 1 to {N_IMAGES}, {_AGAIN}")
        labels[numbers - 1, column] = 1
    paths = [f"im{number}.jpg" for number in range(1, N_IMAGES + 1)]
    return FileImages(name, images, paths, labels=labels, label_names=LABEL_NAMES)
