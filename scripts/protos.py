"""Generates the stubs of the protocol and checks it.

    python scripts/protos.py generate   write the stubs, after lint and breaking-change checks
    python scripts/protos.py check      fail when lint, compatibility or a committed stub is off
    python scripts/protos.py release    call what there is now the protocol of the version before

`protos/released.binpb` is the surface that clients rely on, and what stubs for other languages are made
from: `generate` refuses a change that breaks it and then records the new surface there. `protos/previous.binpb`
is that of the version before, which tests let talk to this one. buf works on descriptor images, because the imports
of google.rpc come from a Python package and not from buf's registry.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
RELEASED = PROTOS / "released.binpb"
PREVIOUS = PROTOS / "previous.binpb"
SITE = Path(sysconfig.get_paths()["purelib"])
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> None:
    """Runs a command in the repository's root; ends the script when it fails."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def protoc(*options: str) -> None:
    sources = sorted(str(path.relative_to(ROOT)) for path in PROTOS.rglob("*.proto"))
    run(sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", "-I", "protos", "-I", SITE, *options, *sources)


def write_stubs(folder: Path) -> None:
    plugins = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    protoc(
        *(f"--plugin={name}={BIN / name}" for name in plugins),
        f"--python_out={folder}",
        f"--mypy_out=quiet:{folder}",
        f"--grpc_python_out={folder}",
        f"--mypy_grpc_out=quiet:{folder}",
    )
    for path in folder.rglob("*_pb2_grpc.py*"):  # files without a service need no gRPC stub
        proto = PROTOS / path.relative_to(folder).with_name(path.name.split("_pb2")[0] + ".proto")
        if "\nservice " not in proto.read_text():
            path.unlink()


def write_image(target: Path) -> None:
    """Writes the image, with the comments of our own files: those of others differ between versions."""
    protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={target}")
    image = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    for file in image.file:
        if not file.name.startswith("spyglass/"):
            file.ClearField("source_code_info")
    target.write_bytes(image.SerializeToString(deterministic=True))


def write_previous() -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes())
    for file in image.file:
        file.ClearField("source_code_info")
    PREVIOUS.write_bytes(image.SerializeToString(deterministic=True))


def check_surface(image: Path) -> None:
    config = ("--config", ROOT / "buf.yaml")
    run(BIN / "buf", "lint", f"{image}#format=binpb", *config)
    if RELEASED.exists():
        run(BIN / "buf", "breaking", f"{image}#format=binpb", "--against", f"{RELEASED}#format=binpb", *config)


def drift(fresh: Path) -> list[str]:
    """Names the stubs that differ from, or are missing beside, what the protos generate."""
    made = {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*_pb2*") if path.is_file()}
    kept = {
        path.relative_to(PROTOS): path.read_bytes() for path in PROTOS.rglob("*_pb2*") if path.suffix in (".py", ".pyi")
    }
    return sorted(str(name) for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=["generate", "check", "release"])
    action = parser.parse_args().action
    if action == "release":
        write_previous()
        return
    with tempfile.TemporaryDirectory() as scratch:
        image, fresh = Path(scratch, "image.binpb"), Path(scratch, "stubs")
        fresh.mkdir()
        write_image(image)
        check_surface(image)
        if action == "generate":
            write_stubs(PROTOS)
            RELEASED.write_bytes(image.read_bytes())
            return
        write_stubs(fresh)
        stale = drift(fresh)
        if image.read_bytes() != RELEASED.read_bytes():
            stale.append(RELEASED.name)
        if stale:
            sys.exit("these differ from the protos, run `make protos`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
