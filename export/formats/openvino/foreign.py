"""What OpenVINO IR of unknown origin may hold: public operators, and weights inside its .bin."""

from __future__ import annotations

import re
from pathlib import Path
from xml.parsers import expat

from prunekit.errors import PrunekitError

# No export of a decoder repeats anything inside its graph.
_LOOPS = ("Loop", "TensorIterator")


def check_openvino(path: Path) -> None:
    """Raises PrunekitError where ``path``, an .xml, is no IR, declares entities, has operators that an extension would
    have to bring or that repeat their work, or takes weights from beyond the end of the .bin beside it."""
    weights = path.with_suffix(".bin")
    most = weights.stat().st_size if weights.is_file() else 0
    elements: list[str] = []

    def begin(name: str, attributes: dict[str, str]) -> None:
        if not elements and name != "net":
            raise PrunekitError(f"{path} is no OpenVINO IR; export the model again.")
        elements.append(name)
        if name == "layer" and not re.fullmatch(r"opset\d{1,2}", attributes.get("version", "")):
            raise PrunekitError(
                f"{path} has the operator {attributes.get('type', '')!r} of {attributes.get('version', '')!r}, which "
                "needs an extension library; export the model again."
            )
        if name == "layer" and attributes.get("type") in _LOOPS:
            raise PrunekitError(
                f"{path} has the operator {attributes['type']}, which may repeat its work without end; export the "
                "model again."
            )
        if name == "data" and {"offset", "size"} <= set(attributes):
            place = [attributes["offset"], attributes["size"]]
            if not all(re.fullmatch(r"[0-9]{1,18}", each) for each in place) or sum(map(int, place)) > most:
                raise PrunekitError(f"{path} has a weight beyond the end of {weights.name}; copy the folder again.")

    def refuse(*_: object) -> None:
        raise PrunekitError(f"{path} declares a document type, which no OpenVINO IR does; export the model again.")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise PrunekitError(f"{path} is not valid XML ({error}); export the model again.") from None
