"""Text that any file and terminal takes."""


def printable(name: str) -> str:
    r"""A file name as valid text: bytes that are no UTF-8, which Python holds as surrogates, become `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()
