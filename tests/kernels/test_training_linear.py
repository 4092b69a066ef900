"""Training's linear layers on oneDNN: float32's exactness, and no module is computed as something that it is not."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mtl.errors import ConfigError
from mtl.kernels import training_linear
from mtl.kernels.linear import has_packed
from mtl.kernels.training import Faster as Mode
from mtl.kernels.training_linear import CHOICE, SMALLEST, Linear, amd_with_avx512, onednn

pytestmark = [
    pytest.mark.skipif(not has_packed(), reason="this build of torch has no oneDNN"),
    pytest.mark.usefixtures("onednn_everywhere"),
]


@pytest.fixture
def onednn_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CHOICE, "onednn")
    onednn.cache_clear()
    yield
    onednn.cache_clear()


def gradients(x: Tensor, weight: Tensor, bias: Tensor | None, upper: Tensor) -> list[Tensor]:
    """The product, and the gradients of all that goes in."""
    parts = [part.detach().requires_grad_() for part in (x, weight, bias) if part is not None]
    y = F.linear(*parts)
    return [y.detach(), *torch.autograd.grad(y, parts, upper)]


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 384, 33), (200, 384, 1536), (129, 1536, 384), (700, 48, 16)])
@pytest.mark.parametrize("biased", [True, False])
def test_as_exact_as_float32(shape: tuple[int, int, int], biased: bool) -> None:
    """Where AMX or native bfloat16 took part, errors would be a hundred times as large."""
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(rows)
    x, weight, upper = (
        torch.randn(a, b, generator=generator) for a, b in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    bias = torch.randn(outputs, generator=generator) if biased else None
    exact = gradients(x.double(), weight.double(), None if bias is None else bias.double(), upper.double())
    plain = gradients(x, weight, bias, upper)
    with Mode():
        found = gradients(x, weight, bias, upper)
        strided = gradients(x, weight, bias, torch.stack([upper, upper], 2)[:, :, 1])
    assert len(found) == len(exact) == 3 + biased
    for one, other, reference, same in zip(found, plain, exact, strided, strict=True):
        assert one.shape == reference.shape
        assert (one - reference).abs().max() <= 4 * (other - reference).abs().max() + 1e-6
        assert (one - reference).abs().max() < 1e-6 * (inputs + rows + outputs) ** 0.5 * reference.abs().max()
        assert torch.equal(one, same)


def taken(module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of a call's products oneDNN computes; the value and gradients are as without, but for rounding."""
    calls = []
    product = training_linear.product
    monkeypatch.setattr(training_linear, "product", lambda *parts: calls.append(1) or product(*parts))
    parts = [x.requires_grad_(), *module.parameters()]
    plain = module(x)
    expected = torch.autograd.grad(plain.square().sum(), parts)
    with Mode():
        y = module(x)
    assert y.dtype == plain.dtype
    forward = len(calls)
    for one, other in zip(torch.autograd.grad(y.square().sum(), parts), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(y, plain, atol=1e-5, rtol=1e-5)
    return forward


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(input=x, weight=self.weight.tril(), bias=self.bias)


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(32, 32), nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_modules_are_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 32)
    seen = []
    hooked = nn.Linear(32, 48)
    hooked.register_forward_hook(lambda module, inputs, y: seen.append(1) or y * 2)
    assert taken(hooked, x.clone(), monkeypatch) == 1
    assert len(seen) == 2
    assert taken(Masked(32, 32), x.clone(), monkeypatch) == 1
    assert taken(weight_norm(nn.Linear(32, 20)), x.clone(), monkeypatch) == 1
    assert taken(Adapted(), x.clone(), monkeypatch) == 1  # the narrow ones are torch's
    assert taken(nn.Linear(32, 20).double(), x.double(), monkeypatch) == 0
    assert taken(nn.Linear(32, SMALLEST - 1), x.clone(), monkeypatch) == 0
    assert taken(nn.Linear(32, 32), x[: SMALLEST - 1].clone(), monkeypatch) == 0
    assert taken(nn.Linear(32, 32), x.clone()[None], monkeypatch) == 0
    tied = nn.Linear(32, 32)
    tied.weight = nn.Parameter(torch.randn(32, 32).t())  # another layout
    assert taken(tied, x.clone(), monkeypatch) == 0


def test_autocast_is_left_alone() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with Mode():
            found = layer(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_what_needs_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(40, 32), torch.randn(48, 32, requires_grad=True)
    calls = []
    product = training_linear.product
    monkeypatch.setattr(training_linear, "product", lambda *parts: calls.append(1) or product(*parts))
    torch.autograd.grad(Linear.apply(x, weight, None).sum(), weight)
    assert len(calls) == 2  # the product, and the weights' gradient
    with Mode(), torch.no_grad():
        assert not F.linear(x, weight).requires_grad
    y = Linear.apply(x.requires_grad_(), weight, None)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_processor_or_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for vendor, capability, expected in (
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
    ):
        cpuinfo.write_text(f"vendor_id : {vendor}\n")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert amd_with_avx512(cpuinfo) is expected
    for choice, expected in (("onednn", True), ("torch", False)):
        onednn.cache_clear()
        monkeypatch.setenv(CHOICE, choice)
        assert onednn() is expected
        with monkeypatch.context() as patched:
            assert (taken(nn.Linear(32, 32), torch.randn(40, 32), patched) == 1) is expected
    onednn.cache_clear()
    monkeypatch.setenv(CHOICE, "mkl")
    with pytest.raises(ConfigError, match="expected onednn or torch"):
        onednn()
    onednn.cache_clear()
