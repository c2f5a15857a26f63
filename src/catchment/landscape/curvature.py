"""Curvature of the answer loss: products with its Hessian, its top eigenvalues (Lanczos), its trace (Hutch++).

    H = d^2 L / d theta_S^2,    L = mean cross-entropy of the right answers in nats per token,    theta_S of shape (k,)

Exact second derivatives by double backward, on models as they come: attention runs through its plain implementation
meanwhile, because no fused one has second derivatives (pytorch#116350).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from catchment.errors import InputError, ModelError
from catchment.landscape.directions import dot
from catchment.landscape.losses import Batch, accumulate_gradient, batch_loss, probing, scored_tokens, wide
from catchment.landscape.subspace import Subspace
from catchment.records import Curvature, Interval
from catchment.statistics import unbounded_paired_interval

Project = Callable[[str, Tensor], Tensor]
"""``project(name, tensor)``: the tensor with every entry outside the subspace set to zero."""


class Symmetric(Protocol):
    """A symmetric k x k matrix that is known by its products."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def apply(self, vectors: Tensor) -> Tensor:
        """Rows v of ``vectors``, shape (m, k), to rows H v."""
        ...


class Hessian:
    """Hessian of the mean answer loss over some weights, or over a sparse support in them.

    Vectors are flat: the entries of the support, tensor after tensor, shape (k,), in float32 (float64 for float64
    weights); :meth:`flatten` and :meth:`unflatten` go between them and tensors by name.

    Cost of one product: nine matrix multiplications for each one of a forward pass (forward 1, backward 2, backward of
    both 6), measured 9.5 to 11 bare forward passes. Vectors that are passed together share the first three. Memory: the
    vectors and their images, two dense copies of the weights, and the graph of one batch (attention scores included,
    because attention is not fused); measured 5 copies of 33M weights in all for one vector and 128 tokens, 12 for 512.

    Args:
        weights: By name, parameters of ``model`` (frozen ones too); a tied tensor once.
        project: Restricts to a sparse support; must only zero entries.

    Attributes:
        size: k.
        products: How many products were made so far.

    Raises:
        InputError: nothing is scored, no weights, or ``project`` keeps nothing or does more than zeroing.
    """

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, Tensor],
        batches: Sequence[Batch],
        project: Project | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.weights, self.batches = model, dict(weights), list(batches)
        self.tokens = scored_tokens(self.batches)
        if not self.weights:
            raise InputError("no weights to differentiate by; select at least one tensor.")
        first = next(iter(self.weights.values()))
        self.device = first.device
        self.dtype = wide(first.dtype)
        self.support = None if project is None else {n: _kept(project, n, w) for n, w in self.weights.items()}
        counts = self.weights if self.support is None else self.support
        self.size = sum(t.numel() for t in counts.values())
        if self.size == 0:
            raise InputError("the projection keeps none of the weights; expected a support with at least one entry.")
        self.products = 0
        self.check = check

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Entries of the support as one vector, shape (k,); what lies outside is dropped."""
        parts = [self._inside(name, tensors[name]) for name in self.weights]
        return torch.cat([part.to(device=self.device, dtype=self.dtype) for part in parts])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of :meth:`flatten`: tensors of the weights' shapes, zero outside the support."""
        tensors = {}
        for name, part in self._pieces(vector).items():
            weight = self.weights[name]
            part = part.to(weight.device)
            if self.support is not None:
                part = part.new_zeros(weight.numel()).index_put_((self.support[name],), part)
            tensors[name] = part.reshape(weight.shape)
        return tensors

    def product(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """P H P v by name, P the projection onto the support."""
        return self.unflatten(self.apply(self.flatten(vector)[None])[0])

    def apply(self, vectors: Tensor) -> Tensor:
        """Rows v of ``vectors``, shape (m, k), to rows H v: d(g . v)/d theta with g the gradient, batch by batch."""
        result = torch.zeros_like(vectors)
        with probing(self.model, self.weights) as leaves, sdpa_kernel(SDPBackend.MATH):
            pairs = [(name, leaf) for name, group in leaves.items() for leaf in group]
            inputs = [leaf for _, leaf in pairs]
            for batch in self.batches:
                self.check()
                loss = batch_loss(self.model, batch) / self.tokens
                if not loss.requires_grad:
                    continue  # it depends on none of the weights
                gradients = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
                # a gradient without a graph is constant: its derivative is zero
                used = [(n, g) for (n, _), g in zip(pairs, gradients, strict=True) if g is not None and g.requires_grad]
                for row, vector in enumerate(vectors if used else ()):
                    tangent = self.unflatten(vector)
                    parts = torch.autograd.grad(
                        [g for _, g in used],
                        inputs,
                        [tangent[n].to(g.dtype) for n, g in used],
                        retain_graph=row + 1 < len(vectors),
                        allow_unused=True,
                    )
                    del tangent
                    total = self._pieces(result[row])
                    for (name, _), part in zip(pairs, parts, strict=True):
                        if part is not None:  # parameters that share memory add up
                            total[name].add_(self._inside(name, part).to(self.device))
        self.products += len(vectors)
        return result

    def _pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector: the entries of each tensor."""
        counts = self.weights if self.support is None else self.support
        return dict(zip(counts, torch.split(vector, [t.numel() for t in counts.values()]), strict=True))

    def _inside(self, name: str, tensor: Tensor) -> Tensor:
        """The entries of the support in one tensor, flat."""
        flat = tensor.detach().reshape(-1)
        return flat if self.support is None else flat[self.support[name]]


def _kept(project: Project, name: str, weight: Tensor) -> Tensor:
    """Flat indices of the entries that ``project`` keeps."""
    mask = project(name, torch.ones_like(weight, dtype=wide(weight.dtype))).reshape(-1)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            f"the projection turns ones into other values than 0 and 1 in {name!r}; expected one that only zeroes "
            f"entries. Curvature in a rotated frame is not supported."
        )
    return mask.nonzero()[:, 0]


def _images(operator: Symmetric, vectors: Tensor) -> Tensor:
    """Rows v to rows H v.

    Raises:
        ModelError: One of them is not finite.
    """
    images = operator.apply(vectors)
    _finite("products with the Hessian", images)
    return images


def _finite(what: str, values: Tensor | Sequence[float]) -> None:
    if not all(math.isfinite(float(end)) for end in torch.aminmax(torch.as_tensor(values))):  # NaN wins in both
        raise ModelError(
            f"{what} are not finite; expected finite numbers. Second derivatives overflow in float16: use bfloat16 or "
            "float32. Otherwise the weights are broken."
        )


def _against(vector: Tensor, basis: Tensor) -> Tensor:
    """The part of ``vector`` orthogonal to the rows of ``basis``; twice, because once leaves rounding behind."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _normal(rows: int, operator: Symmetric, generator: torch.Generator) -> Tensor:
    """Independent standard normal entries, shape (rows, k); drawn on the CPU, so that every device has the same."""
    drawn = torch.randn((rows, operator.size), generator=generator, dtype=operator.dtype)
    return drawn.to(operator.device)


def _signs(rows: int, operator: Symmetric, generator: torch.Generator) -> Tensor:
    """Independent random signs, shape (rows, k)."""
    drawn = torch.randint(0, 2, (rows, operator.size), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(device=operator.device, dtype=operator.dtype)


def lanczos(operator: Symmetric, steps: int, seed: int) -> tuple[Tensor, list[float], list[float]]:
    """``steps`` Lanczos vectors with full re-orthogonalisation from a random start.

    Returns:
        The basis Q, shape (steps, k), and the diagonals of Q H Q^T: ``steps`` and ``steps - 1`` numbers. Fewer steps
        where k is smaller. Where the Krylov space closes, a new random start goes on, with 0 off the diagonal.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = min(steps, operator.size)
    basis = torch.zeros((steps, operator.size), dtype=operator.dtype, device=operator.device)
    diagonal: list[float] = []
    off: list[float] = []
    vector = _normal(1, operator, generator)[0]
    tiny = 10 * torch.finfo(operator.dtype).eps
    for step in range(steps):
        basis[step] = vector / vector.norm()
        image = _images(operator, basis[step : step + 1])[0]
        size = float(image.norm())
        diagonal.append(float(basis[step] @ image))
        if step + 1 == steps:
            break
        vector = _against(image, basis[: step + 1])
        off.append(float(vector.norm()))
        if off[-1] <= tiny * size or size == 0.0:
            off[-1] = 0.0
            vector = _against(_normal(1, operator, generator)[0], basis[: step + 1])
    return basis, diagonal, off


def top_eigenvalues(
    operator: Symmetric, k: int = 3, steps: int = 20, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...], Tensor]:
    """The k largest (most positive) eigenvalues by Lanczos, with real residuals.

    A residual is ||H v - lambda v|| for the unit vector v returned, from one more product each, and not the Lanczos
    bound: an eigenvalue of H lies within it, whatever rounding did before. Which one is not known: a larger eigenvalue
    may have been missed after few steps. Cost: steps + k products. Memory: steps + k vectors, or 4 k.

    Args:
        k: How many; fewer come back where the matrix is smaller.

    Returns:
        Eigenvalues (descending) as Rayleigh quotients, residuals, and unit vectors of shape (k, operator.size).

    Raises:
        InputError: k below 1, or more eigenvalues than steps.
        ModelError: A product is not finite.

    Source: Lanczos 1950; Parlett 1998, The Symmetric Eigenvalue Problem, chapter 13 and theorem 4.5.1.
    """
    from scipy.linalg import eigh_tridiagonal

    if not 1 <= k <= steps:
        raise InputError(f"k={k} eigenvalues from {steps} steps; expected 1 <= k <= steps. Take more steps.")
    basis, diagonal, off = lanczos(operator, steps, seed)
    _finite("Lanczos coefficients", [*diagonal, *off])
    _, small = eigh_tridiagonal(diagonal, off)
    chosen = torch.tensor(small[:, ::-1][:, :k].T.copy(), dtype=operator.dtype, device=operator.device)
    vectors = chosen @ basis
    del basis
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    images = _images(operator, vectors)
    values = (vectors * images).sum(dim=1)
    residuals = (images - values[:, None] * vectors).norm(dim=1)
    order = values.argsort(descending=True)
    return tuple(values[order].tolist()), tuple(residuals[order].tolist()), vectors[order]


def trace(operator: Symmetric, products: int = 30, seed: int = 0, level: float = 0.95) -> Interval:
    """Trace by Hutch++: exact on a sketched range, Hutchinson's estimate on the rest.

        tr H = tr(Q H Q^T) + E z' (1 - P) H (1 - P) z,    P = Q^T Q,    z of random signs

    with the rows of Q an orthonormal basis of H S for s = products/3 normal vectors S. The first term is exact
    given Q; the rest is a mean over independent probes, unbiased, with Student's t-interval over them. The interval
    trusts the central limit theorem over probes, and is about probes alone, not about items. Matrices of rank up to s
    come out exact. Cost: at most ``products`` products. Memory: products vectors, 2 more at most.

    Raises:
        InputError: fewer than 4 products.
        ModelError: A product is not finite.

    Source: Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649, algorithm 1.
    """
    if products < 4:
        raise InputError(
            f"{products} products; expected at least 4: one to sketch, one to use it, two to see a spread."
        )
    generator = torch.Generator().manual_seed(seed)
    sketch = min(products // 3, operator.size)
    basis = _orthonormal(_images(operator, _normal(sketch, operator, generator)))
    exact = sum(_along(basis, _images(operator, basis))) if len(basis) else 0.0
    probes = _signs(products - 2 * sketch, operator, generator)
    for row in range(len(probes)):
        probes[row] = _against(probes[row], basis)
    rest = _along(probes, _images(operator, probes))
    interval = unbounded_paired_interval([0.0] * len(rest), rest, level)
    return replace(
        interval,
        estimate=exact + interval.estimate,
        low=exact + interval.low,
        high=exact + interval.high,
        method="hutch++",
    )


def _along(vectors: Tensor, images: Tensor) -> list[float]:
    """v . H v of each row, in float64."""
    return [dot(vector, image) for vector, image in zip(vectors, images, strict=True)]


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows, without those that the others span up to sqrt(eps). Overwrites ``rows``."""
    threshold = math.sqrt(torch.finfo(rows.dtype).eps)
    kept = 0
    for row in rows:
        part = _against(row, rows[:kept])
        size = float(part.norm())
        if size > threshold * float(row.norm()):
            rows[kept] = part / size
            kept += 1
    return rows[:kept]


def vectors(steps: int, k: int, products: int) -> int:
    """Vectors of the subspace that :func:`curvature` holds at most, float32, beside the copies of whole weights that a
    product takes: the larger of ``steps + k`` (or 4 k) for Lanczos and about ``products`` for the trace."""
    sketch = products // 3
    return max(steps + max(k, 2), 4 * k, sketch + 2 * (products - 2 * sketch))


def curvature_memory(subspace: Subspace, steps: int = 20, k: int = 3, products: int = 30) -> int:
    """Most bytes that :func:`curvature` needs, activations and their graph left out: :func:`vectors`, and four dense
    copies of the weights in float32 (the gradient, its tangent, the product and its parts; measured 3.8)."""
    entries = sum(math.prod(shape) for shape in subspace.shapes.values())
    return 4 * (subspace.size * vectors(steps, k, products) + 4 * entries)


def curvature(
    model: Any,
    weights: Mapping[str, Tensor],
    batches: Sequence[Batch],
    *,
    k: int = 3,
    steps: int = 20,
    products: int = 30,
    seed: int = 0,
    level: float = 0.95,
    project: Project | None = None,
    check: Callable[[], None] = lambda: None,
) -> Curvature:
    """Loss, gradient norm, top eigenvalues and trace of the Hessian over the subspace.

    Cost: about 10 (steps + k + products) bare forward passes over the batches, the products of the trace 7 each.
    Memory: :func:`curvature_memory`, and the graph of one batch.

    Args:
        steps: Lanczos steps. products: for the trace. seed: of the start vector and of the probes.
        check: called before every pass over a batch; raises where no more may be measured.

    Raises:
        InputError: see :class:`Hessian`, :func:`top_eigenvalues`, :func:`trace`.
        ModelError: the loss, or a product with the Hessian, is not finite.
    """
    hessian = Hessian(model, weights, batches, project, check)
    loss, gradient = accumulate_gradient(model, weights, batches)
    slope = float(hessian.flatten(gradient).norm())
    del gradient
    top, residuals = top_eigenvalues(hessian, k, steps, seed)[:2]  # the eigenvectors are not kept for the trace
    whole = trace(hessian, products, seed, level)
    _finite("results of the curvature", [slope, *top, *residuals, whole.estimate, whole.low, whole.high])
    items = {item for batch in batches for item in batch.items}
    return Curvature(loss, slope, top, residuals, whole, hessian.size, hessian.products, len(items), hessian.tokens)
