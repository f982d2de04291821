"""instructor: a type from an answer, by tools and by JSON."""

import instructor
import openai
from common import BOB, KEY, MODEL, URL, Person

plain = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(plain, mode=mode)
    found = client.chat.completions.create(
        model=MODEL,
        response_model=Person,
        max_retries=1,
        temperature=0,
        max_tokens=80,
        messages=[{"role": "user", "content": BOB}],
    )
    assert (found.name, found.age) == ("Bob", 5), mode
