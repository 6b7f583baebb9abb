"""``python -m services``: start the service with the settings in the environment, until Ctrl-C."""

import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fastervlm_video.errors import CheckpointError, FasterVLMError, InvalidInputError
from services.settings import load_settings

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def _check_model(model: str) -> None:
    """Notice a mistyped path at once, instead of after the stages have tried in vain.

    Raises:
        CheckpointError: it is written like a path, and there is no such folder.
    """
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        raise CheckpointError(f"no model folder at {model}")


def main() -> int:
    """Run the service.

    Returns:
        The exit status: 2 for settings that cannot be used, 1 if a stage did not start, 130 if it was stopped
        before it was ready.
    """
    console = Console(stderr=True)
    asked_to_stop = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        asked_to_stop.set()
        raise KeyboardInterrupt

    # SIGINT, too: a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        settings = load_settings()
        _check_model(settings.model)
        with ExitStack() as stack:
            with console.status("Starting: Ray, Redis, and the stages …"):
                console.print(Text(f"Starting with the model {settings.model}; this takes about half a minute."))
                from services.run import running_service, wait_for_signal

                url = stack.enter_context(running_service(settings))
            if asked_to_stop.is_set():  # the exception was swallowed on its way, in a callback of a library
                raise KeyboardInterrupt
            console.print(f"Ready at [bold]{url}[/bold] (API pages: {url}/docs). Ctrl-C stops it.", soft_wrap=True)
            wait_for_signal()
            console.print("Stopping …")
    except KeyboardInterrupt:
        console.print("Stopped before it was ready.")
        return EXIT_INTERRUPTED
    except FasterVLMError as exc:
        console.print(Text.assemble(("error: ", "red"), " ".join(exc.message.split())), soft_wrap=True)
        return EXIT_BAD_INPUT if isinstance(exc, InvalidInputError | CheckpointError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
