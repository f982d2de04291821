"""The fonts of the training pictures, which come as packages.

Owns finding and loading them. Knows nothing of what is written.
"""

from functools import lru_cache
from importlib import metadata
from pathlib import Path

from PIL import ImageFont

_FAMILIES = {
    "matplotlib": ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmb10", "cmr10", "cmss10"),
    "font-lato": ("Lato",),
    "font-roboto": ("Roboto",),
    "font-source-sans-pro": ("SourceSansPro",),
    "font-source-serif-pro": ("SourceSerifPro",),
    "font-fredoka-one": ("FredokaOne",),
}
_LEFT_OUT = ("Thin", "ExtraLight", "Display")


@lru_cache(maxsize=1)
def font_files() -> tuple[Path, ...]:
    """Every font file, thin ones left out; raises PackageNotFoundError when a package is not installed."""
    found = []
    for package, families in _FAMILIES.items():
        for file in metadata.distribution(package).files or ():
            style = file.stem
            if file.suffix == ".ttf" and style.startswith(families) and not any(word in style for word in _LEFT_OUT):
                found.append(Path(str(metadata.distribution(package).locate_file(file))))
    return tuple(sorted(found, key=lambda path: path.name))


@lru_cache(maxsize=512)
def load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font in pixels of its em square."""
    return ImageFont.truetype(path, size)
