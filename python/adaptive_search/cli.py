"""The command ``adaptive-search``: entry point and error handling. The commands themselves are in ``commands.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRAS = ("typer", "rich", "tqdm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 after an error (told in one line on stderr), 130 after Ctrl-C.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; ``sys.argv[1:]`` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import typer

        from .commands import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _fail(f"the command line needs {package}: pip install 'adaptive-search[cli]'")
    try:
        code = app(given or ["--help"], prog_name="adaptive-search", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message())
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain again when it flushes stdout at exit.
        sys.stdout = None
        return 0
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        return _fail(str(error) or type(error).__name__)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted")
        return 130
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    sys.stderr.write(f"adaptive-search: error: {' '.join(message.split())}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
