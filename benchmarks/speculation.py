"""Measures what speculation saves, and checks that it changes no answer.

    python benchmarks/speculation.py
    python benchmarks/speculation.py --prompts 10 --kinds quote json

Two engines in this process, one of which speculates, answer the same prompts in turn: texts to repeat and to correct,
JSON by a schema, answers whose text the caller predicts, and stories, one at a time; and stories with 32 at once. Each
prompt is run greedily and at a temperature of 1. Rates exclude the first token and are compared prompt by prompt.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

from bars import Bar, report
from contestants import load_engine
from processes import checkpoint_or_demo, run_as_engine
from spyglass_server.constraints.grammar import ConstraintKind, OutputConstraint, to_grammar
from spyglass_server.engine.messages import Drafted, EngineRequest, SamplingParams, TokenOutput
from spyglass_server.engine.worker.core import EngineCore
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message
from spyglass_server.prompt.prompt_maker import ChatInput

_BARS = {"quote": 1.6, "edit": 1.6, "json": 1.3, "prediction": 2.0, "free": 0.98, "free, 32 at once": 0.98}
_SENTENCES = (
    "The lighthouse stands on a cliff above the sea.",
    "Every evening the keeper climbs the stairs and lights the lamp.",
    "Ships pass far out, and their crews look for the light.",
    "In winter storms shake the tower, but the lamp never goes out.",
    "Children come in summer to see the view from the top.",
    "The baker opens his shop before the sun is up.",
    "A red train crosses the old bridge twice a day.",
    "The market sells apples, bread, cheese and flowers.",
    "Two dogs sleep in front of the station all afternoon.",
    "The river is low in August, and one can walk across.",
)
_THINGS = ("fox", "robot", "gardener", "ship", "mountain", "clock", "baker", "river")
_SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "family_name": {"type": "string", "maxLength": 12},
        "date_of_birth": {"type": "string", "maxLength": 10},
        "occupation": {"enum": ["engineer", "teacher", "doctor"]},
        "is_employed": {"type": "boolean"},
        "number_of_children": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["first_name", "family_name", "date_of_birth", "occupation", "is_employed", "number_of_children"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, and the grammar that constrains its answer."""

    text: str
    grammar: str = ""
    max_tokens: int = 96


def _quote(chance: random.Random) -> Question:
    text = " ".join(chance.sample(_SENTENCES, 5))
    return Question(text=f"Repeat this text word for word:\n\n{text}")


def _edit(chance: random.Random) -> Question:
    sentences = chance.sample(_SENTENCES, 5)
    sentences[2] = sentences[2].replace("the", "teh")
    return Question(text=f"Correct the spelling and repeat the text:\n\n{' '.join(sentences)}")


def _json(chance: random.Random) -> Question:
    grammar = to_grammar(OutputConstraint(ConstraintKind.JSON_SCHEMA, json.dumps(_SCHEMA)))
    return Question(text=f"Invent a person who has a {chance.choice(_THINGS)}.", grammar=grammar)


def _free(chance: random.Random) -> Question:
    one, other = chance.sample(_THINGS, 2)
    return Question(text=f"Tell me a story about a {one} and a {other}.")


_KINDS: dict[str, Callable[[random.Random], Question]] = {
    "quote": _quote,
    "edit": _edit,
    "json": _json,
    "prediction": _free,
    "free": _free,
    "free, 32 at once": _free,
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Answers, in tokens, and the tokens per second."""

    answers: list[list[int]]
    rate: float
    num_guessed: int = 0
    num_right: int = 0


@dataclass(slots=True)
class Engine:
    """An engine to ask."""

    core: EngineCore
    maker: PromptMaker
    ids: "count[int]" = field(default_factory=lambda: count(1))

    def ask(
        self, questions: Sequence[Question], sampling: SamplingParams, predictions: Sequence[Sequence[int]] = ()
    ) -> Outcome:
        """Asks all questions at once."""
        answers: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            prompt = self.maker.write(ChatInput((Message("user", (question.text,)),)))
            request = EngineRequest(
                id=next(self.ids),
                tokens=prompt.tokens,
                max_tokens=question.max_tokens,
                stop_token_ids=self.maker.stop_token_ids,
                sampling=sampling,
                grammar=question.grammar,
                prediction=tuple(predictions[number]) if predictions else (),
            )
            answers[request.id] = []
            self.core.submit(request)
        outcome = Outcome(answers=[], rate=0.0)
        began, num_first = 0.0, 0
        while self.core.has_work:
            for event in self.core.step():
                if isinstance(event, TokenOutput):
                    answers[event.id].append(event.token)
                elif isinstance(event, Drafted):
                    outcome.num_guessed += event.num_guessed
                    outcome.num_right += event.num_right
            if not began and all(answers.values()):
                began, num_first = time.perf_counter(), sum(map(len, answers.values()))
        outcome.answers = list(answers.values())
        outcome.rate = (sum(map(len, answers.values())) - num_first) / (time.perf_counter() - began)
        return outcome


def compare(
    plain: Engine, guessing: Engine, kind: str, given: argparse.Namespace
) -> tuple[list[float], list[str], str]:
    """Returns the ratios of the rates, which answers differ, and how many guesses were right, as text."""
    chance = random.Random(f"{kind} {given.seed}")
    ratios, different, num_guessed, num_right = list[float](), list[str](), 0, 0
    at_once = given.at_once if kind.endswith("at once") else 1
    for number in range(max(1, given.prompts // at_once)):
        questions = [_KINDS[kind](chance) for _ in range(at_once)]
        for temperature in (0.0, 1.0):
            sampling = SamplingParams(temperature=temperature, seed=number)
            without = plain.ask(questions, sampling)
            predictions = without.answers if kind == "prediction" else ()
            guessed = guessing.ask(questions, sampling, predictions)
            again = plain.ask(questions, sampling)
            if not without.answers == guessed.answers == again.answers:
                different.append(questions[0].text)
            if temperature == 0 or kind not in ("quote", "edit"):  # at 1 a small model does neither
                ratios.append(2 * guessed.rate / (without.rate + again.rate))
            num_guessed += guessed.num_guessed
            num_right += guessed.num_right
    return ratios, different, f"{num_right:,} of {num_guessed:,}"


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--model", type=Path, help="a checkpoint (default: the demo model)")
    add("--prompts", type=int, default=50, help="of each kind (default: %(default)s)")
    add("--kinds", nargs="+", choices=list(_KINDS), default=list(_KINDS), help="what is asked (default: all)")
    add("--at-once", type=int, default=32, help="stories at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything that is random (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script."""
    given = parser().parse_args(arguments)
    run_as_engine()
    folder = checkpoint_or_demo(given.model)
    maker = PromptMaker(folder, max_image_pixels=1)
    plain, guessing = (Engine(load_engine(folder, maker, way), maker) for way in ("off", "auto"))
    plain.ask([_free(random.Random(0))], SamplingParams())
    guessing.ask([_free(random.Random(0))], SamplingParams())
    bars = []
    for kind in given.kinds:
        ratios, different, told = compare(plain, guessing, kind, given)
        print(f"{kind}: {told} guesses were right", file=sys.stderr)
        bars.append(Bar.at_least(f"{kind}: tokens a second, times those without, median", median(ratios), _BARS[kind]))
        bars.append(Bar.none(f"{kind}: answers that differ", different))
    return report(bars)


if __name__ == "__main__":
    sys.exit(main())
