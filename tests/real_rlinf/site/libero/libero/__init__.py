"""Where RLinf asks for LIBERO's folders."""


def get_libero_path(name: str) -> str:
    return f"/libero/{name}"


def set_libero_default_path(path: str) -> None:
    pass
