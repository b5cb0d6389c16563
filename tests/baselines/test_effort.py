"""Which methods are run at less than their authors' effort."""

from __future__ import annotations

import fgvis_lightning.baselines as baselines
from fgvis_lightning.baselines import LIME, RISE, IntegratedGradients, Method, Occlusion, SmoothGrad
from fgvis_lightning.experiments.comparison import shown


def test_what_is_called_cheap_is_cheap_and_nothing_else() -> None:
    kinds = {name: getattr(baselines, name) for name in baselines.__all__ if name not in ("Captum", "OtherClass")}
    methods = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Method)}
    made = {name: kind() for name, kind in methods.items() if not getattr(kind, "__abstractmethods__", None)}
    assert {name for name, method in made.items() if method.cheap} == {n for n in made if n.startswith("Cheap")}
    assert len(made) > 25


def test_a_lower_number_is_enough_to_be_called_cheap() -> None:
    cheap = [RISE(masks=3999), LIME(samples=999), Occlusion(stride=9), IntegratedGradients(19), SmoothGrad(samples=49)]
    assert all(method.cheap for method in cheap)
    assert not RISE(masks=4000).cheap
    assert shown("RISE", RISE(masks=500)) == "RISE (cheap)"
    assert shown("Cheap RISE", RISE(masks=500)) == "Cheap RISE"
    assert shown("RISE", RISE()) == "RISE"
