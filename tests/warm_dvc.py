"""What every DVC command works out again and comes to the same, kept by the server of tests/warm_server.py.

Of a warm `dvc repro` that is a third of the time. All of it follows from a text alone; what DVC does with files, Git and
the cache stays as it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def keep_what_is_known(pipeline: Path) -> None:
    """Change DVC in this process, and let it read a dvc.yaml, which most projects of tests have."""
    parse_each_text_once()
    check_each_text_once()
    read_each_expression_once()
    look_params_up_by_key()
    build_parser_once()
    strictyaml, file = import_module("dvc.utils.strictyaml"), import_module("dvc.dvcfile").ProjectFile
    _, text = strictyaml.load(str(pipeline), file.SCHEMA)
    interpolate = import_module("dvc.parsing.interpolate")
    for found in interpolate.get_matches(text):
        interpolate.get_expression(found)
    import_module("dvc.config").get_compiled_schema()


def parse_each_text_once() -> None:
    """Keep what a YAML text says: DVC reads params.yaml again for every stage."""
    module = import_module("dvc.utils.serialize._yaml")
    parse, known = module.parse_yaml, dict[str, bytes]()

    def parse_once(text: str, path: str, typ: str = "safe") -> Any:
        if typ != "safe":  # with comments and places, for an edit
            return parse(text, path, typ)
        if text not in known:
            known[text] = pickle.dumps(parse(text, path))
        return pickle.loads(known[text])

    module.parse_yaml = import_module("dvc.utils.strictyaml").parse_yaml = parse_once


def check_each_text_once() -> None:
    """Check a YAML text against a schema once: the outcome is an error or nothing."""
    module = import_module("dvc.utils.strictyaml")
    check, sound = module.validate, set[tuple[str, int]]()

    def check_once(data: Any, schema: Callable, text: str | None = None, *place: Any, **named: Any) -> Any:
        if text is None:
            return check(data, schema, text, *place, **named)
        if (text, id(schema)) not in sound:
            check(data, schema, text, *place, **named)
            sound.add((text, id(schema)))
        return data

    module.validate = check_once


def read_each_expression_once() -> None:
    """Keep how `${item.key}` is read."""
    module = import_module("dvc.parsing.interpolate")
    module.parse_expr = cache(module.parse_expr)


def look_params_up_by_key() -> None:
    """Go from key to key to a parameter: DVC compares all paths of params.yaml with the one that it wants."""
    module = import_module("dpath")
    get = module.get

    def get_by_key(params: Any, path: str, separator: str = "/", **default: Any) -> Any:
        found = params
        for key in path.split(separator):
            if not isinstance(found, dict) or key not in found or set("*?[") & set(key):
                return get(params, path, separator, **default)
            found = found[key]
        return found

    module.get = get_by_key


def build_parser_once() -> None:
    """Keep the parser of the command line, which each command builds and uses once."""
    module = import_module("dvc.cli.parser")
    parser = module.get_main_parser()
    module.get_main_parser = lambda: parser
