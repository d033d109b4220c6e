"""The Triton kernels compiled for GPUs that are not there: their shared memory, their registers, their instructions."""

import re
import subprocess
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

triton = pytest.importorskip("triton", reason="Triton is there on Linux only")
contrastive = pytest.importorskip("glipv2_d2.kernels.contrastive")
if not isinstance(contrastive._forward_kernel, triton.JITFunction):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

# Compute capability: KiB of shared memory that a block may have (CUDA C++ Programming Guide, technical
# specifications), and the instruction of its tensor cores. sm_86 and sm_89 run code for sm_80 and have 99 KiB.
GPUS = {80: (99, "mma.sync"), 90: (227, "wgmma.mma_async"), 100: (227, "tcgen05.mma")}
POINTERS = {torch.float32: "*fp32", torch.int32: "*i32"}


@pytest.fixture
def launches(monkeypatch):
    """Kernels with their arguments, as a training step on a GPU would start them: 2,048 x 1,024 vectors of 256."""
    found = []
    monkeypatch.setattr(
        triton.JITFunction, "run", lambda kernel, *args, **options: found.append((kernel, args, options))
    )
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    with FakeTensorMode():
        vectors = [torch.empty(size, 256, device="cuda") for size in (2048, 1024)]
        groups = [torch.empty(len(side), dtype=torch.int64, device="cuda") for side in vectors]
        result = contrastive.logsumexp_forward(*vectors, *groups)
        contrastive.logsumexp_backward(*vectors, *groups, result, torch.empty_like(result))
    return found


def compile_launch(kernel, args, options, architecture):
    """Compile a kernel for the types, constants and warps of a launch. Pointers and sizes are multiples of 16."""
    options = {name: value for name, value in options.items() if name not in ("grid", "warmup")}
    constants = {name: options.pop(name) for name in kernel.arg_names if name in options}
    types = [POINTERS[arg.dtype] if isinstance(arg, torch.Tensor) else "i32" for arg in args]
    signature = dict(zip(kernel.arg_names, [*types, *("constexpr" for _ in constants)], strict=True))
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(args))}
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=options)


@pytest.mark.slow  # every compilation takes a second or two
@pytest.mark.parametrize("architecture", GPUS)
def test_kernels_fit_the_gpu_and_use_its_tensor_cores(launches, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    shared_limit, instruction = GPUS[architecture]
    assert [kernel.__name__ for kernel, *_ in launches] == ["_forward_kernel", "_backward_kernel", "_backward_kernel"]
    for launch in launches:
        compiled = compile_launch(*launch, architecture)
        assert compiled.metadata.shared <= shared_limit * 1024
        assert instruction in compiled.asm["ptx"]
        (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
        read = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", tmp_path / "kernel.cubin"]
        usage = subprocess.run(read, capture_output=True, text=True, check=True).stdout
        # What does not fit into the registers lies on the stack, in memory.
        assert re.search(r"STACK:(\d+)", usage)[1] == "0", usage
