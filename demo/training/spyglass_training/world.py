"""The small world that the demo model knows: what things are called.

Owns the vocabulary. Knows nothing of how things are drawn or asked about.
"""

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey")
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "heart", "cross", "diamond", "oval")
COUNTS = ("one", "two", "three", "four")
SIDES = ("left", "right", "above", "below")
WORDS = (
    "apple", "baby", "ball", "bank", "bird", "blue", "book", "bus", "cake", "car", "cat", "city",
    "cold", "cup", "dog", "door", "down", "east", "exit", "fish", "food", "free", "game", "girl",
    "go", "good", "hat", "hello", "help", "home", "hot", "ice", "king", "left", "lion", "love",
    "map", "milk", "moon", "new", "no", "north", "off", "old", "open", "park", "push", "rain",
    "red", "right", "sale", "ship", "snow", "south", "star", "stop", "sun", "taxi", "tea", "tree",
    "up", "west", "win", "yes",
)  # fmt: skip
"""The words that the model can read."""
