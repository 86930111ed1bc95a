"""One HTML file from the parts in this folder: page.html, page.css, the JavaScript modules and the data.

The modules are joined in the order of their imports into one script, because browsers load no modules from disk. A
Content-Security-Policy lists the hashes of that script and of the style sheet and allows nothing else: no request, no
other script.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent
ENTRY = "main.js"
IMPORT = re.compile(r"^import (\{[^}]*\}) from \"\./([\w]+)\.js\";\n", flags=re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|const) (\w+)", flags=re.MULTILINE)


def assemble(data: dict[str, Any]) -> str:
    """Return the page that shows `data`."""
    style, script = (PARTS / "page.css").read_text("utf-8"), bundle(ENTRY)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    # In a script element, only "<" could end the data early.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"policy": policy, "style": style, "script": script, "data": text}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (PARTS / "page.html").read_text("utf-8"))


def bundle(entry: str) -> str:
    """Return a module and all its imports as one script in strict mode, each with its own scope.

    Raises:
        ValueError: an import or export has another form than these: `import { name } from "./file.js";`, `export
            function name`, `export const name`.
    """
    modules: dict[str, str] = {}
    _collect(entry.removesuffix(".js"), modules)
    return '"use strict";\n' + "\n".join(modules.values())


def _collect(name: str, modules: dict[str, str]) -> None:
    if name in modules:
        return
    source = (PARTS / f"{name}.js").read_text("utf-8")
    for _, imported in IMPORT.findall(source):
        _collect(imported, modules)
    exported = ", ".join(found for _, found in EXPORT.findall(source))
    body = EXPORT.sub(r"\1 \2", IMPORT.sub(r"const \1 = \2_js;\n", source))
    if re.search(r"^(import|export)\b", body, flags=re.MULTILINE):
        raise ValueError(
            f'{name}.js: write import {{ name }} from "./file.js"; export function name; export const name'
        )
    modules[name] = f"const {name}_js = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
