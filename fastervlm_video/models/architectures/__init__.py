"""One module per architecture. A module that defines ``ADAPTER`` is all there is to adding one.

``ADAPTER`` is a class like :class:`~fastervlm_video.models.family.LlavaFamilyAdapter`, which most architectures can
inherit from; :mod:`fastervlm_video.models.registry` finds it. Nothing else in the project names an architecture. Such a
module may also be a plug-in's (:mod:`fastervlm_video.plugins`).
"""

__all__ = []
