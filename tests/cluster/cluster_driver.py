"""Deploys the service with the settings in the environment on the cluster that ``RAY_ADDRESS`` names; then ends.

Serve goes on by itself. HTTP enters at the head alone: on one machine the proxies of all nodes would share a port,
while on real machines a load balancer stands before them.
"""

import ray
from ray import serve

from services.app import APP_NAME, build_app
from services.settings import load_settings


def main() -> None:
    """Deploy."""
    settings = load_settings()
    ray.init(log_to_driver=False)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None},
    )
    serve.run(build_app(settings), name=APP_NAME, route_prefix="/")


if __name__ == "__main__":
    main()
