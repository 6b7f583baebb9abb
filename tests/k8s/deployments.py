"""What the application's builder makes of the settings: the deployments that Serve is given."""

from typing import Any

from ray.serve._private.build_app import build_app as resolve

from services.app import APP_NAME, bind_stages
from services.settings import Settings


def deployments_of(settings: Settings) -> dict[str, Any]:
    """Serve's deployments by name. Needs no Ray cluster; GPUs are those that the settings name."""
    handle: Any = lambda deployment, _: deployment.name  # noqa: E731
    application = bind_stages(settings, available_gpus=0.0)
    built = resolve(application, name=APP_NAME, make_deployment_handle=handle)
    return {deployment.name: deployment for deployment in built.deployments}
