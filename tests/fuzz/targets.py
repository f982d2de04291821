"""All targets by their names."""

from fuzz.answers import ANSWERS
from fuzz.calls import CALLS
from fuzz.images import IMAGES
from fuzz.shapes import SHAPES
from fuzz.starts import STARTS
from fuzz.templates import TEMPLATES
from fuzz.tool_calls import TOOL_CALLS

TARGETS = {target.name: target for target in (IMAGES, TOOL_CALLS, ANSWERS, TEMPLATES, SHAPES, STARTS, CALLS)}
