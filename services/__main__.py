"""``python -m services``: start the service with the settings in the environment, until Ctrl-C."""

import sys

from rich.console import Console

from fastervlm_video.errors import FasterVLMError
from services.settings import load_settings


def main() -> int:
    """Run the service; the exit status is 2 for settings that cannot be used."""
    console = Console(stderr=True)
    try:
        settings = load_settings()
        from services.run import running_service, wait_for_signal

        console.print(f"Starting: model [bold]{settings.model}[/bold]. The first start takes half a minute …")
        with running_service(settings) as url:
            console.print(f"Ready at [bold]{url}[/bold] (API pages: {url}/docs). Ctrl-C stops it.")
            wait_for_signal()
            console.print("Stopping …")
    except FasterVLMError as exc:
        console.print(f"[red]error:[/red] {exc.message}", highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
