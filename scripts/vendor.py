"""The model page's third-party scripts: fetches them from npm packages, and checks that nobody has changed them.

    python scripts/vendor.py fetch    # needs npm; after a change of the table below
    python scripts/vendor.py check    # needs nothing: compares the files with the hashes in vendor.json

Files are copied as they are published. Each package's licence lies beside its files.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "bridge" / "spyglass_bridge" / "page" / "vendor"
TESTS = ROOT / "tests" / "page" / "vendor"
MANIFEST = "vendor.json"
_LANGUAGES = ("bash", "css", "go", "java", "javascript", "json", "python", "rust", "sql", "typescript", "xml", "yaml")


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package, its licence as an SPDX expression, and which of its files are wanted under which names."""

    name: str
    version: str
    licence: str
    files: dict[str, str]


_PAGE_PACKAGES = (
    Package(
        name="marked",
        version="18.2.1",
        licence="MIT AND BSD-3-Clause",
        files={"lib/marked.esm.js": "marked.js", "LICENSE": "marked.LICENSE"},
    ),
    Package(
        name="dompurify",
        version="3.5.0",
        licence="Apache-2.0 OR MPL-2.0",
        files={"dist/purify.es.mjs": "purify.js", "LICENSE": "purify.LICENSE"},
    ),
    Package(
        name="idb-keyval",
        version="6.3.0",
        licence="Apache-2.0",
        files={"dist/index.js": "idb-keyval.js", "LICENCE": "idb-keyval.LICENSE"},
    ),
    # The standalone module contains preact, which has a licence of its own.
    Package(
        name="htm",
        version="3.1.1",
        licence="Apache-2.0",
        files={"preact/standalone.module.js": "preact.js", "LICENSE": "htm.LICENSE"},
    ),
    Package(name="preact", version="10.29.1", licence="MIT", files={"LICENSE": "preact.LICENSE"}),
    Package(
        name="@highlightjs/cdn-assets",
        version="11.12.0",
        licence="BSD-3-Clause",
        files={"es/core.min.js": "highlight/core.js", "LICENSE": "highlight/LICENSE"}
        | {f"es/languages/{name}.min.js": f"highlight/{name}.js" for name in _LANGUAGES},
    ),
)
_TEST_PACKAGES = (
    Package(
        name="axe-core",
        version="4.14.1",
        licence="MPL-2.0",
        files={"axe.min.js": "axe.js", "LICENSE": "axe.LICENSE"},
    ),
)
_FOLDERS = {PAGE: _PAGE_PACKAGES, TESTS: _TEST_PACKAGES}


def fetch(folder: Path, packages: tuple[Package, ...]) -> None:
    """Makes the folder anew from the packages."""
    shutil.rmtree(folder, ignore_errors=True)
    manifest: dict[str, Any] = {}
    for package in packages:
        with tempfile.TemporaryDirectory() as work:
            _unpack(package, Path(work))
            for published, name in package.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(work) / "package" / published, target)
        hashes = {name: _hash(folder / name) for name in sorted(package.files.values())}
        manifest[package.name] = {"version": package.version, "licence": package.licence, "files": hashes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def check(folder: Path, packages: tuple[Package, ...]) -> list[str]:
    """What differs between the folder, its manifest and the table here; nothing if all is well."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    wanted = {package.name: (package.version, package.licence, set(package.files.values())) for package in packages}
    told = {name: (entry["version"], entry["licence"], set(entry["files"])) for name, entry in manifest.items()}
    problems = [] if wanted == told else [f"{folder}/{MANIFEST} is of other packages: run scripts/vendor.py fetch"]
    hashes = {name: digest for entry in manifest.values() for name, digest in entry["files"].items()}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    problems += [f"{folder}/{name} is in no package" for name in sorted(found - hashes.keys())]
    problems += [f"{folder}/{name} is missing" for name in sorted(hashes.keys() - found)]
    changed = [name for name in sorted(found & hashes.keys()) if _hash(folder / name) != hashes[name]]
    return problems + [f"{folder}/{name} was changed" for name in changed]


def _unpack(package: Package, work: Path) -> None:
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    [archive] = work.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(words: list[str]) -> int:
    """Runs the command line; 1 when a check found something."""
    match words:
        case ["fetch"]:
            for folder, packages in _FOLDERS.items():
                fetch(folder, packages)
            return 0
        case ["check"]:
            problems = [problem for folder, packages in _FOLDERS.items() for problem in check(folder, packages)]
            print("\n".join(problems or ["the vendored scripts are as published"]))
            return bool(problems)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
