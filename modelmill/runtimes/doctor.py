"""Which engines work here: each platform is loaded in a worker, where a broken one does no harm."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from modelmill import plugins
from modelmill.runtimes.platforms import Platform, load_runtime, platforms, unfinished
from modelmill.runtimes.protocol import DeploymentError
from modelmill.runtimes.worker import probe


@dataclass(frozen=True)
class EngineStatus:
    """One platform, or an engine that is installed nowhere.

    name       of the platform: `ncnn`, or `onnxruntime@1.24.4`
    supported  whether `version` lies in `versions`, the range that the adapter was made for
    folder     of an environment of its own, "" for this one
    pip        the line that installs a supported version; "" if nothing is to do
    problem    why an installed engine does not work; "" if it does
    """

    name: str
    installed: bool
    version: str
    versions: str
    supported: bool
    folder: str
    pip: str
    problem: str

    @property
    def works(self) -> bool:
        return self.installed and self.supported and not self.problem


def doctor() -> list[EngineStatus]:
    """The state of every platform, and of the engines that are missing, in the order of names."""
    found = platforms()
    there = {platform.runtime for platform in found}
    absent = [name for name in plugins.names("modelmill.runtimes") if name not in there]
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(_examine, found))
    states += [_absent(name) for name in absent]
    return sorted(states + [_broken_off(path.name, str(path)) for path in unfinished()], key=_order)


def _order(status: EngineStatus) -> tuple[str, str]:
    return status.name, status.version


def _absent(name: str) -> EngineStatus:
    runtime = load_runtime(name)
    return EngineStatus(name, False, "", _range(*runtime.supported), False, "", runtime.pip, "")


def _broken_off(name: str, folder: str) -> EngineStatus:
    again = f"modelmill doctor --install {name}"
    return EngineStatus(name, False, "", "", False, folder, again, "its installation broke off")


def _examine(platform: Platform) -> EngineStatus:
    runtime = load_runtime(platform.runtime)
    low, high = runtime.supported
    own = platform.folder is not None
    name = platform.name if own else platform.runtime
    mend = f"modelmill doctor --install {name}" if own else runtime.pip
    state = EngineStatus(
        name, True, "", _range(low, high), False, str(platform.folder or ""), mend, ""
    )
    try:
        version = probe(name)
    except (DeploymentError, ValueError) as error:
        return replace(state, version=platform.version, problem=str(error))
    supported = is_between(version, low, high)
    problem = "" if supported else f"version {version} is outside {_range(low, high)}"
    return replace(
        state,
        version=version,
        supported=supported,
        pip="" if supported else mend,
        problem=problem,
    )


def _range(low: str, high: str) -> str:
    return f">={low},<{high}"


def is_between(version: str, low: str, high: str) -> bool:
    """Whether low <= version < high, compared number by number ("1.9" < "1.20")."""
    return _numbers(low) <= _numbers(version) < _numbers(high)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:  # "0rc1": what follows a number says how far on the way to it
            break
    return tuple(numbers)
