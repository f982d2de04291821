"""All targets by their names."""

from fuzz.answers import ANSWERS
from fuzz.bodies import BODIES
from fuzz.calls import CALLS
from fuzz.events import EVENTS
from fuzz.images import IMAGES
from fuzz.life_cycle import LIFE_CYCLE
from fuzz.shapes import SHAPES
from fuzz.starts import STARTS
from fuzz.templates import TEMPLATES
from fuzz.tool_calls import TOOL_CALLS

_ALL = (IMAGES, TOOL_CALLS, ANSWERS, TEMPLATES, SHAPES, STARTS, CALLS, BODIES, EVENTS, LIFE_CYCLE)
TARGETS = {target.name: target for target in _ALL}
