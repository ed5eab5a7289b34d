"""Which engines work here: each is loaded in a worker, where a broken one does no harm."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelmill import plugins
from modelmill.runtimes.protocol import DeploymentError, EngineMissing, Runtime
from modelmill.runtimes.worker import probe


@dataclass(frozen=True)
class EngineStatus:
    """One engine here.

    supported  whether `version` lies in `versions`, the range that the adapter was made for
    pip        the line that installs a supported version; "" if nothing is to do
    problem    why an installed engine does not work; "" if it does
    """

    name: str
    installed: bool
    version: str
    versions: str
    supported: bool
    pip: str
    problem: str

    @property
    def works(self) -> bool:
        return self.installed and self.supported and not self.problem


def doctor() -> list[EngineStatus]:
    """The state of every engine that there is an adapter for, in the order of their names."""
    names = plugins.names("modelmill.runtimes")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_examine, names))


def _examine(name: str) -> EngineStatus:
    runtime: Runtime = plugins.load("modelmill.runtimes", name)
    low, high = runtime.supported
    versions = f">={low},<{high}"
    try:
        version = probe(name)
    except EngineMissing:
        return EngineStatus(name, False, "", versions, False, runtime.pip, "")
    except DeploymentError as error:
        return EngineStatus(name, True, "", versions, False, runtime.pip, str(error))
    supported = is_between(version, low, high)
    problem = "" if supported else f"version {version} is outside {versions}"
    return EngineStatus(
        name, True, version, versions, supported, "" if supported else runtime.pip, problem
    )


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
