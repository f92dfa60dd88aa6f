"""Which Butterfly this is."""

from importlib.metadata import PackageNotFoundError, version


def butterfly_version() -> str:
    """The installed version; in an image that holds only the sources there is none to read."""
    try:
        return version("butterfly")
    except PackageNotFoundError:
        return "unknown"
