"""Image files to pixels, by Pillow: what is read, what becomes of it, and what is refused. No torch, no torchvision."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from s3t.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes that are read; others have more than 8 bits a channel, or none that convert plainly."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Kinds of files that are read, by Pillow's names. Others are not, for Pillow reads some by other programs."""


def decode(data: bytes, size: int) -> NDArray[np.uint8]:
    """Return an image file's pixels, (height, width, 3): the first frame, upright by its EXIF tag, in RGB.

    Transparent parts become white. One that has more than ``size`` x ``size`` pixels is brought to that size by Pillow's
    bilinear filter; a smaller one keeps its own. DataError for other files than FORMATS, for images that it takes for a
    decompression bomb, and for modes of more than 8 bits a channel.
    """
    import numpy as np
    from PIL import Image

    image: Any = _opened(data)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.width * image.height > size * size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image, dtype=np.uint8)


def _opened(data: bytes) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.mode not in MODES:
                raise DataError(f"an image of mode {image.mode} is not read; convert it to 8 bits a channel, say RGB")
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        why = "of no known kind" if isinstance(error, UnidentifiedImageError) else error  # which would name an object
        raise DataError(
            f"{len(data)} bytes are no image that can be read ({why}); give PNG, JPEG or another"
        ) from error
    except Image.DecompressionBombWarning as error:
        raise DataError(f"the image is too large ({error}); make it smaller") from error
