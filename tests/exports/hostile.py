"""A result in which every text is one that some format could stumble over. No torch."""

from __future__ import annotations

from told_profiles import MIB, Story

from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Module, Phase

TEXT = "</pre></script><script>alert(1)</script>\"'&$x_{$\\frac{ \x1b[31m\n\u202e\ud800 名"


def hostile_profile() -> Profile:
    """A failure, a module, a parameter, an input and a workspace; all texts are `TEXT`."""
    story = Story()
    story.alloc(MIB, Category.PARAMETER, Phase.OUTSIDE, name=f"{TEXT}.{TEXT}.weight")
    story.alloc(MIB, Category.INPUT, Phase.OUTSIDE, name=TEXT, stack=[(f"{TEXT}.py", 12, TEXT)], operator=TEXT)
    kept = story.alloc(MIB, Category.ACTIVATION, module=1)
    story.free(kept, Phase.BACKWARD, module=1)
    story.alloc(MIB, Category.WORKSPACE, Phase.BACKWARD)
    story.event(Action.OOM, 1 << 40, Phase.BACKWARD, module=1)
    modules = (Module(name=TEXT, kind=TEXT, calls=1), Module(name=f"{TEXT}.{TEXT}", kind=TEXT, parent=0, calls=1))
    return story.profile(
        reserved=8 * MIB,
        modules=modules,
        alloc_conf=TEXT,
        device_name=TEXT,
        versions={TEXT: TEXT, "torch": TEXT},
        notes=(TEXT,),
        capacity=16 * MIB,
    )
