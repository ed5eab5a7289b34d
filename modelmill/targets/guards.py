"""The one guard that several engines need: 7-bit weights on x86 without VNNI."""

from modelmill.targets.target import IsaGuard


def needs_vnni(kernels: str, source: str) -> IsaGuard:
    """The guard of an engine whose u8 x s8 kernels add in 16 bits without VNNI.

    kernels: whose they are, for the sentence that says why: "oneDNN's".
    """
    return IsaGuard(
        architectures=("x86_64", "AMD64"),
        needs_one_of=("avx512_vnni", "avx_vnni"),
        weight_bits=7,
        why=f"without VNNI {kernels} u8 x s8 kernels add pairs of products in 16 bits, which "
        "saturate with 8-bit weights",
        source=source,
    )
