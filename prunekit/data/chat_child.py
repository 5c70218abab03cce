"""Renders conversations by a chat template, for a parent that has set limits: a template is a stranger's program.

stdin: {"template", "variables", "generation", "conversations"} as JSON. stdout: for each conversation {"text"} or
{"error"} as a line of JSON. transformers' own function is used, without torch, so nothing is rendered differently.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    asked = json.load(sys.stdin)
    from transformers.utils.chat_template_utils import render_jinja_template

    for messages in asked["conversations"]:
        try:
            # Its annotation says str.
            made: Any = render_jinja_template(
                conversations=[messages],
                chat_template=asked["template"],
                add_generation_prompt=asked["generation"],
                **asked["variables"],
            )
            said = {"text": made[0][0]}
        except Exception as error:  # a template may raise whatever it likes
            said = {"error": str(error).strip() or type(error).__name__}
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
