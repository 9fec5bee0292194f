"""stdc1 and stdc2 in timm's registry, as backbones: ``import stdc_fast.timm_models`` is all it takes.

    backbone = timm.create_model("stdc1", features_only=True, out_indices=(2, 3, 4))

Nothing else imports this module, as it needs timm.
"""

from __future__ import annotations

from timm.models import register_model

from stdc_fast.errors import UserError
from stdc_fast.features import FeatureBackbone, create_model


def _backbone(name: str, pretrained: object, options: dict[str, object]) -> FeatureBackbone:
    """What :func:`stdc_fast.create_model` makes. timm gives options of its own, which are None."""
    given = {key: value for key, value in options.items() if value is not None}
    if not given.pop("features_only", False):
        raise UserError(f"{name} in timm is a backbone and no classifier; add features_only=True")
    taken = ("in_chans", "out_indices", "download")
    if odd := sorted(given.keys() - set(taken)):
        raise UserError(f"{name} in timm has no {', '.join(odd)}; it has {', '.join(taken)}")
    return create_model(name, pretrained, features_only=True, **given)


@register_model
def stdc1(pretrained: bool | str = False, **options: object) -> FeatureBackbone:
    """STDC1, the smaller one."""
    return _backbone("stdc1", pretrained, options)


@register_model
def stdc2(pretrained: bool | str = False, **options: object) -> FeatureBackbone:
    """STDC2."""
    return _backbone("stdc2", pretrained, options)
