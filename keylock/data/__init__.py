"""The images a model is trained and judged on: the drawn shapes, known data sets, folders and arrays of one's own.

`open_data` turns what the user names into a checked `DataSource`. Nothing here needs torch; the loader that feeds a
training loop does, and is imported from `keylock.data.batches`.
"""

from keylock.data.damaged import check_images
from keylock.data.files import ImageFiles
from keylock.data.sets import Augmentation, DataSource, ImageSet
from keylock.data.shapes import SHAPE_CLASSES, Shapes, draw_shapes
from keylock.data.sources import DATA_SOURCES, open_data

__all__ = [
    "DATA_SOURCES",
    "SHAPE_CLASSES",
    "Augmentation",
    "DataSource",
    "ImageFiles",
    "ImageSet",
    "Shapes",
    "check_images",
    "draw_shapes",
    "open_data",
]
