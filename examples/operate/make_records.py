"""200 test records that need no knowledge: sums, copying, finding, JSON. Yours should be of your own work.

python make_records.py records.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("Anna Kovac", "Li Wei", "Omar Haddad", "Maria Silva", "John Smith", "Yuki Tanaka", "Ivan Petrov", "Sara Lind")
CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Kyoto", "Boston", "Vienna", "Nairobi")
WORDS = ("river", "stone", "cloud", "green", "paper", "silver", "window", "garden")
EACH = 50


def records(seed: int = 7) -> Iterator[dict[str, Any]]:
    """Rows of `prunekit accept --records`."""
    rng = random.Random(seed)
    for number in range(EACH):
        a, b, sign = rng.randint(2, 20), rng.randint(2, 20), rng.choice("+-")
        text = f"What is {a} {sign} {b}? Answer with the number only."
        right = a + b if sign == "+" else a - b
        yield row(f"sum-{number}", "arithmetic", text, check="numeric", reference=right)
    for number in range(EACH):
        words = " ".join(rng.sample(WORDS, 4))
        text = f"Repeat exactly this text and nothing else: {words}"
        yield row(f"copy-{number}", "copying", text, check="contains", reference=words, case=False)
    for number in range(EACH):
        name, city, order = rng.choice(NAMES), rng.choice(CITIES), str(rng.randint(1000, 9999))
        what, right = rng.choice([("name of the customer", name), ("city", city), ("order number", order)])
        text = f"Order {order}: {name} from {city} bought two lamps.\nWhat is the {what}? Answer with it only."
        yield row(f"find-{number}", "extraction", text, check="contains", reference=right, words=True)
    for number in range(EACH):
        name, city = rng.choice(NAMES), rng.choice(CITIES)
        text = f'Write this as JSON with the keys "name" and "city", and nothing else: {name} lives in {city}.'
        keys = {"name": {"const": name}, "city": {"const": city}}
        schema = {"type": "object", "required": ["name", "city"], "properties": keys}
        yield row(f"json-{number}", "json", text, check="json-schema", schema=schema, fence="any", max_tokens=40)


def row(name: str, group: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "group": group, "messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps(each) + "\n" for each in records()), encoding="utf-8")
