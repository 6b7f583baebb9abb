"""The container image, built and run for real on a Debian machine that has no container engine.

``python -m scripts.image_test`` (``make image-test``), as root. Steps: a base image out of Debian's own packages
(:mod:`.base`), the image on it, built by buildah in a chroot (:mod:`.builder`, with this machine's pip configuration,
:mod:`.pip_config`), and the image run in namespaces of its own with a read-only root (:mod:`.container`, :mod:`.enter`)
while it is asked and looked at from outside (:mod:`.checks`): as ``docker run`` would run it, with the settings and
mounts of the Kubernetes manifests (:mod:`.manifests`), and as KubeRay starts a head.
"""
