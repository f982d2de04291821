"""The cases of the contract under attack and under faults, by number, and where a test says which it is of."""

import re

CASES: dict[str, str] = {
    "A1": "image URL on loopback",
    "A2": "image URL on the link-local metadata address",
    "A3": "image URL with an address in an unusual form",
    "A4": "image URL on an IPv6 loopback",
    "A5": "image URL that redirects to loopback",
    "A6": "image URL whose name resolves to a private address",
    "A7": "image URL of another scheme",
    "A8": "image URL that parsers read differently",
    "A9": "image source that drips",
    "A10": "image source without an end",
    "A11": "PNG that declares 65500x65500 pixels",
    "A12": "truncated JPEG",
    "A13": "text labelled image/png",
    "A14": "base64 with junk",
    "A15": "GIF of 1,000 frames",
    "A16": "pictures of extreme shapes and kinds",
    "A17": "formats that are not enabled",
    "A18": "more images than the limit",
    "A19": "control tokens in text",
    "A20": "the image token in text",
    "A21": "a caller's own chat template",
    "A22": "numbers out of range",
    "A23": "numbers that are none",
    "A24": "stop strings",
    "A25": "logit_bias",
    "A26": "a prompt over the context",
    "A27": "expensive regular expressions",
    "A28": "nesting 30,000 deep",
    "A29": "references of schemas",
    "A30": "a malformed schema beside running streams",
    "A31": "5,000 different schemas",
    "A32": "bad keys",
    "A33": "paths and hosts that go around the key",
    "A34": "every route without a key",
    "A35": "large and many headers",
    "A36": "bodies over the cap",
    "A37": "a length and chunks together",
    "A38": "headers and bodies that drip",
    "A39": "hostile JSON",
    "A40": "a foreign origin",
    "A41": "a client that leaves its stream",
    "A42": "a client that leaves without a stream",
    "A43": "cancels and timeouts over gRPC",
    "A44": "a full queue",
    "A45": "one request id of two tenants, one idempotency key twice",
    "A46": "floods of HTTP/2 frames",
    "A47": "lines of the log that a caller forges",
    "F1": "kill -9 of server and engine under 16 streams",
    "F2": "an exception for one row of 16",
    "F3": "out of memory in a prefill",
    "F4": "an engine that hangs",
    "F5": "demand for three times the cache",
    "F6": "SIGTERM under 16 streams",
    "F7": "kill -9 of the bridge under 16 streams",
    "F8": "kill -9 of the server at random moments",
}

_TEST = re.compile(r"test_([af])(\d\d)_\w+")


def case_of(test_name: str) -> str | None:
    """The number that a test's name begins with, as `A7` for `test_a07_other_schemes`."""
    match = _TEST.match(test_name)
    return f"{match[1].upper()}{int(match[2])}" if match else None
