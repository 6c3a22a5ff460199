"""The CPU that kernels are compiled for: what it can do, and which body of a kernel's part that means.

LLVM knows the features of an x86 CPU, but on macOS it says none, and on Linux for AArch64 not all. So they come from
where the truth is, and LLVM is told what it did not see:

    x86                LLVM (cpuid)
    macOS, AArch64     sysctl hw.optional.arm.FEAT_…, and what every CPU of that name has
    Linux, AArch64     HWCAP and HWCAP2 of the auxiliary vector, and LLVM
    anything else      what every CPU of that name has

A **body** is one way to write a part of a kernel, such as a product of bytes: a row with a name and the features that
it needs. Rows are tried in order, the first that fits is compiled:

    DOT = choose("dot", [Body("avx512vnni", …), Body("avx2", …), Body("plain", …)])

Environment: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose another CPU, with what those of that name have and what the
features add or take away; GGUFKIT_BODIES ("dot=plain,permute=avx2") chooses bodies, whose features must be there.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ggufkit.errors import UsageError

__all__ = ["CHOSEN", "Body", "Cpu", "choose", "find_cpu", "performance_cores", "this_cpu"]

T = TypeVar("T")


@dataclass(frozen=True)
class Cpu:
    """A target of compilation.

    Attributes
    ----------
    name : LLVM's, e.g. ``"znver3"``.
    features : LLVM's names of what it can do ("avx2", "f16c", "dotprod" …).
    source : where the features are from.
    unseen : those among them that LLVM has to be told of.
    """

    name: str
    features: frozenset[str]
    source: str
    unseen: frozenset[str] = frozenset()


# ---- What CPUs of a name have -----------------------------------------------------------------------------------
#
# Only features that some kernel asks for. Source: LLVM's X86TargetParser.cpp and AArch64Processors.td.

_SSE = "sse2 sse3 ssse3 sse4.1 sse4.2 popcnt"
_AVX2 = f"{_SSE} avx avx2 fma f16c"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
_VNNI = f"{_AVX512} avx512vnni"
_NEON = "neon fp-armv8"
_HALF = f"{_NEON} fullfp16"
_DOT = f"{_HALF} dotprod"
_MATRIX = f"{_DOT} bf16 i8mm"

_NAMED: dict[str, str] = {
    "x86-64": "sse2",
    "x86-64-v2 nehalem westmere": _SSE,
    "sandybridge ivybridge": f"{_SSE} avx",
    "x86-64-v3 haswell broadwell skylake znver1 znver2 znver3": _AVX2,
    "alderlake raptorlake meteorlake gracemont sierraforest": f"{_AVX2} avxvnni",
    "arrowlake lunarlake arrowlake-s pantherlake": f"{_AVX2} avxvnni avxvnniint8",
    "x86-64-v4 skylake-avx512": _AVX512,
    "cascadelake icelake-client icelake-server tigerlake rocketlake znver4": _VNNI,
    "cooperlake": f"{_VNNI} avx512bf16",
    "sapphirerapids emeraldrapids graniterapids znver5": f"{_VNNI} avxvnni avx512bf16",
    "cortex-a53 cortex-a72": _NEON,  # Raspberry Pi 3 and 4, Graviton 1
    "cortex-a76 neoverse-n1 apple-a12": _DOT,  # Raspberry Pi 5; Graviton 2, Ampere Altra
    "apple-m1 apple-a13 apple-a14": _DOT,
    "apple-m2 apple-m3 apple-m4 apple-m5 apple-a15 apple-a16 apple-a17": _MATRIX,
    "neoverse-v1 neoverse-n2 neoverse-v2 ampere1 ampere1a ampere1b": _MATRIX,  # Graviton 3 and 4, AmpereOne
}
_FEATURES_OF = {name: frozenset(features.split()) for names, features in _NAMED.items() for name in names.split()}
_FEATURES_OF["znver4"] |= {"avx512bf16"}


# ---- Asking the system ------------------------------------------------------------------------------------------

_SYSCTL = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "fullfp16",
}

# bit → feature; AT_HWCAP and AT_HWCAP2 of Linux's asm/hwcap.h
_HWCAP = {0: "fp-armv8", 1: "neon", 10: "fullfp16", 20: "dotprod", 22: "sve"}
_HWCAP2 = {1: "sve2", 13: "i8mm", 14: "bf16"}
_AT_HWCAP, _AT_HWCAP2 = 16, 26


def _sysctl(name: str) -> int:
    """A number that macOS knows by name; 0 if it does not."""
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    found = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return value.value if found == 0 else 0


def _auxiliary(entry: int) -> int:
    """An entry of Linux's auxiliary vector; 0 if it is not there."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return getauxval(entry)


def _bits(word: int, names: Mapping[int, str]) -> set[str]:
    return {name for bit, name in names.items() if word >> bit & 1}


def find_cpu(
    llvm_name: str,
    llvm_features: Iterable[str],
    *,
    system: str = sys.platform,
    machine: str = platform.machine(),
    sysctl: Callable[[str], int] = _sysctl,
    auxiliary: Callable[[int], int] = _auxiliary,
) -> Cpu:
    """The CPU of a machine, of which LLVM says `llvm_name` and `llvm_features`."""
    seen, of_name = frozenset(llvm_features), _FEATURES_OF.get(llvm_name, frozenset())
    if machine.lower() not in ("arm64", "aarch64"):
        return Cpu(llvm_name, seen or of_name, "LLVM" if seen else "its name")
    found: set[str] = set()
    source = "its name"
    if system == "darwin":
        found = {feature for name, feature in _SYSCTL.items() if sysctl(name)} | set(_NEON.split())
        source = "sysctl"
    elif system.startswith("linux"):
        found = _bits(auxiliary(_AT_HWCAP), _HWCAP) | _bits(auxiliary(_AT_HWCAP2), _HWCAP2)
        source = "HWCAP"
    if not found:
        found, source = set(_NEON.split()), "its name"
    # A system that is too old to name a feature has a CPU that is not.
    features = frozenset(found) | seen | (of_name if source != "HWCAP" else frozenset())
    return Cpu(llvm_name, features, source, features - seen - of_name)


def _named_cpu(name: str, features: str) -> Cpu:
    """The CPU that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES describe."""
    listed = [feature.strip() for feature in features.split(",") if feature.strip()]
    added = {feature[1:] for feature in listed if feature[0] == "+"}
    removed = {feature[1:] for feature in listed if feature[0] == "-"}
    found = (_FEATURES_OF.get(name, frozenset()) | added) - removed
    return Cpu(name, frozenset(found), "NUMBA_CPU_NAME")


def this_cpu(name: str | None = None, features: str | None = None) -> Cpu:
    """The CPU that Numba compiles for: this machine's, or what its settings `name` and `features` say."""
    import llvmlite.binding as llvm

    host = llvm.get_host_cpu_name()
    if features is not None or name not in (None, host):
        return _named_cpu(name or host, features or "")
    return find_cpu(host, [feature for feature, present in llvm.get_host_cpu_features().items() if present])


def performance_cores() -> int | None:
    """How many of the CPUs are of the fast kind, where there are two; None if all are alike, or no one says."""
    if sys.platform == "darwin":
        if _sysctl("hw.nperflevels") < 2:
            return None
        return _sysctl("hw.perflevel0.logicalcpu") or None
    capacities = []
    for cpu in range(os.cpu_count() or 1):
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity", encoding="ascii") as file:
                capacities.append(int(file.read()))
        except (OSError, ValueError):
            return None
    fast = sum(2 * capacity > max(capacities) for capacity in capacities)
    return fast if fast < len(capacities) else None


# ---- Bodies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body(Generic[T]):
    """One way to write a part of a kernel.

    Attributes
    ----------
    name : of the row.
    needs : features, separated by spaces.
    value : what the part is made with.
    """

    name: str
    needs: str
    value: T

    def fits(self, features: frozenset[str]) -> bool:
        return features.issuperset(self.needs.split())


CHOSEN: dict[str, str] = {}  # part → name of its body


def _forced() -> dict[str, str]:
    pairs = (entry.partition("=") for entry in os.environ.get("GGUFKIT_BODIES", "").split(",") if entry.strip())
    return {part.strip(): name.strip() for part, _, name in pairs}


def choose(part: str, bodies: Sequence[Body[T]], features: frozenset[str]) -> T:
    """The value of the first body that the CPU can run, or of the one that GGUFKIT_BODIES names.

    Raises
    ------
    UsageError : GGUFKIT_BODIES names one that is not there, or that the CPU cannot run.
    """
    forced = _forced().get(part)
    for body in bodies:
        if body.name == forced or (forced is None and body.fits(features)):
            if missing := set(body.needs.split()) - features:
                raise UsageError(f"GGUFKIT_BODIES: {part}={forced} needs a CPU with {', '.join(sorted(missing))}")
            CHOSEN[part] = body.name
            return body.value
    names = ", ".join(body.name for body in bodies)
    raise UsageError(f"GGUFKIT_BODIES: {part}={forced} is not one of {names}")
