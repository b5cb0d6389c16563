"""The defense: gates behind every nonlinearity (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

On the way back through the network the gradient at neuron ``i`` of nonlinearity ``l`` passes only
while the neuron stays inside the range that it has on the real image ``x``::

    min(0, h(x)) <= h(e) <= max(0, h(x))

so an explanation ``e`` can use features that the image has, and no others. The forward pass is the
network's own, bit for bit. There is nothing to tune.

Activation calls are intercepted while the network runs, so it does not matter whether they are
modules, functions or methods, in place or not, or one module that is used several times: each
*call* has its own reference activation, found again by its place in the order of calls. What cannot
be intercepted is found by two checks (`fgvis_lightning.defense.audit`), and refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fgvis_lightning.defense.audit import Found, Modules, Witness, inspect
from fgvis_lightning.defense.coverage import Coverage, Layer
from fgvis_lightning.defense.gates import LIMITS, Ceiling, GatedReLU, gate
from fgvis_lightning.defense.interception import Interceptor, Surveyor
from fgvis_lightning.defense.nonlinearities import (
    ACTIVATIONS,
    GATED_MODULES,
    NONNEGATIVE,
    NORMALIZATION,
    NORMALIZATION_MODULES,
    NORMALIZATIONS,
    resolve,
    table,
)
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.method.gates import RULES, excess
from fgvis_lightning.networks.outputs import select

ATTENTION = frozenset({"softmax", "scaled_dot_product_attention"})


class UngatedActivationError(InputError):
    """A nonlinearity that the defense cannot gate."""


@dataclass
class _Reference:
    """What the reference pass kept of a call.

    Attributes:
        name: of the activation.
        h: h(x); None where no gradient to the image flows through.
        fused: whether the gate may be fused with the activation: nobody changes its output later, or computes it again
            for the way back.
    """

    name: str
    h: Tensor | Ceiling | None
    fused: bool = False

    def closed(self, h: Tensor) -> Tensor:
        """Which gates are closed at h(e)."""
        assert self.h is not None
        if isinstance(self.h, Ceiling):
            return self.h.closed(h)
        return excess(h, self.h) != 0

    def gate(self, h: Tensor, rule: str) -> None:
        """Put the gate on the gradient that arrives at h(e), if one does."""
        if not h.requires_grad or self.h is None:
            return
        if isinstance(self.h, Ceiling):
            ceiling, known = self.h, h.detach().clone()  # which may be changed in place later
            h.register_hook(lambda gradient: ceiling.select(gradient, known, rule))
        else:
            gate(h, self.h, rule, nonnegative=self.name in NONNEGATIVE)


class DefendedCNN(nn.Module):
    """A frozen classifier whose gradient is gated after every nonlinearity.

    Usage::

        defended = DefendedCNN(network)
        defended.record(x)  # h(x), the range of every neuron
        logits = defended(e)  # the network's own logits; their gradient to e is gated
        with defended.undefended():
            logits = defended(e)  # the same network without gates

    Args:
        network: a classifier in eval mode; takes normalized images (B,3,H,W), returns logits (B,K).
        gate: ``strict``, the paper's, or ``restoring``, see `fgvis_lightning.method.gates`. A restoring gate asks which
            way a step goes, so take gradients of what is *minimized*: of ``-logits`` to raise a class.
        exempt: what to leave without a gate: functions by name, e.g. ``"sigmoid"``; classes of modules, e.g.
            ``"my_project.layers.LayerNorm"``, with all that is within; custom autograd functions likewise.
            What flows through them is not defended.
        gated: what to gate beside the activations of `fgvis_lightning.defense.nonlinearities`: functions by name, e.g.
            ``"maximum"``; classes of modules, e.g. ``"my_project.layers.Swish"``, whose output is gated and nothing
            within.
        output: which of several outputs the logits are: a key, an attribute or an index. None for the only one,
            or the one that is called ``logits``.
        fused: whether gates are fused with the activation that they follow, where they can be: the same gradients, bit
            for bit, in less time and memory.

    Reference activations and gated pass must agree in batch size, precision and memory format:
    rounding differs otherwise, and a difference in the last bit closes a gate.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        gate: str = "strict",
        exempt: Collection[str | type] = (),
        gated: Collection[str | type] = (),
        output: str | int | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if gate not in RULES:
            raise InputError(
                f"Expected gate to be one of {', '.join(RULES)}, but got {gate!r}.{nearest(str(gate), RULES)}"
            )
        self.gate = gate
        self.fused = fused
        self.exempt, exempt_classes = resolve(exempt, "exempt")
        names, gated_classes = resolve(gated, "gated")
        if both := sorted(self.exempt & names) or [c.__name__ for c in gated_classes if c in exempt_classes]:
            raise InputError(f"Expected exempt and gated to have nothing in common, but got {both[0]!r} in both.")
        self.network = network
        self.output = output
        self.listed = {"exempt": sorted(map(_spelled, exempt)), "gated": sorted(map(_spelled, gated))}
        self.defended = True
        self.coverage = Coverage()
        self._functions = {**ACTIVATIONS, **NORMALIZATIONS, **table(names)}
        self._exempt_functions = tuple(c for c in exempt_classes if issubclass(c, Function))
        if wrong := [c for c in gated_classes if issubclass(c, Function)]:
            raise InputError(
                f"Expected gated to name classes of modules, but {wrong[0].__name__} is an autograd function: name the "
                f"module that applies it."
            )
        self._units: dict[nn.Module, str] = {}
        for module in network.modules():
            kind = type(module)
            if isinstance(module, gated_classes):
                self._units[module] = kind.__name__
            elif isinstance(module, tuple(c for c in exempt_classes if issubclass(c, nn.Module))):
                self._units[module] = kind.__name__
                self.exempt |= {kind.__name__}
            elif isinstance(module, GATED_MODULES):
                self._units[module] = kind.__name__
            elif isinstance(module, NORMALIZATION_MODULES):
                self._units[module] = NORMALIZATION
        self._references: list[_Reference] | None = None
        self._recorded = Coverage()
        self._surveyed: dict[tuple[Any, ...], Coverage] = {}
        self._casts: dict[int, dict[torch.dtype, Tensor]] = {}

    def record(self, x: Tensor) -> Tensor:
        """Run the reference pass on ``x`` (B,3,H,W), keep h(x), and return the logits (B,K).

        The first time for each shape and type of input the network is checked as well, with one more forward pass.

        Raises:
            UngatedActivationError: a nonlinearity ran that the container cannot gate.
            InputError: the network is not deterministic, or its logits cannot be found among its outputs.
        """
        self._check_eval_mode()
        self._references = None
        self._casts.clear()  # somebody may have changed the weights
        self.coverage = coverage = Coverage()
        references: list[_Reference] = []
        outputs: list[tuple[Tensor, int]] = []
        layers: list[Layer] = []
        modules = Modules(self.network)

        def visit(name: str, h: Tensor) -> None:
            if name == NORMALIZATION:
                return
            coverage.calls[name] += 1
            if name in self.exempt:
                return
            known: Tensor | Ceiling | None = None
            fused = self.fused and name in LIMITS
            if h.requires_grad:
                # A copy: the network may change its activation in place after the call.
                known = Ceiling(h, LIMITS[name]) if fused else h.detach().clone()
            references.append(_Reference(name, known, fused and not _is_checkpointed()))
            outputs.append((h, h._version))
            coverage.gated[name] += h.requires_grad
            if h.requires_grad:
                layers.append(Layer(name, modules.running()))

        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(x.device.type))
        interceptor = Interceptor(self._functions, self._units, visit, cast=self._caster(x))
        witness = Witness(modules, lambda: interceptor.depth > 0) if key not in self._surveyed else None
        # With a gradient, although none is needed: networks may take another path without.
        with _differentiable(x) as image, interceptor, witness or nullcontext():
            logits = self._run(image)
        coverage.layers = tuple(layers)
        if witness is not None:
            self._judge(witness)
        for reference, (h, version) in zip(references, outputs, strict=True):
            reference.fused &= h._version == version
        outputs.clear()
        self._references, self._recorded = references, coverage
        try:
            if witness is not None:
                self._surveyed[key] = replace(self._survey(x, modules), operators=witness.operators)
        except BaseException:
            self._references = None
            raise
        known = self._surveyed[key]
        self._recorded = replace(coverage, operators=known.operators, exempt=known.exempt, gate_free=known.gate_free)
        self.coverage = self._recorded
        return logits.detach()

    def forward(self, e: Tensor) -> Tensor:
        """The network's logits (B,K) for ``e`` (B,3,H,W); their gradient to ``e`` is gated.

        Raises:
            RuntimeError: no reference pass, or one with other calls or shapes.
        """
        if not self.defended:
            self.coverage = coverage = Coverage()

            def count(name: str, h: Tensor) -> None:
                if name != NORMALIZATION:
                    coverage.calls[name] += 1

            with Interceptor(self._functions, self._units, count, cast=self._caster(e)):
                return self._run(e)
        return self._replay(e, lambda reference, h: reference.gate(h, self.gate), fuse=torch.is_grad_enabled())

    def closed(self, e: Tensor) -> Tensor:
        """Share of closed gates at ``e`` (B,L) in [0,1], for each image and each layer of ``coverage.layers``."""
        shares: list[Tensor] = []
        with _differentiable(e) as image:
            self._replay(image, lambda *call: shares.append(_share_closed(len(e), *call)))
        self.coverage.closed = torch.stack(shares, 1) if shares else e.new_zeros(len(e), 0)
        return self.coverage.closed

    def verify(self, x: Tensor) -> None:
        """Check that every gate is open on the image ``x`` itself, computed in whichever way explanations are.

        Raises:
            InputError: one is closed, so rounding or randomness would close gates that features do not.
        """
        self._require_open(self.closed(x))

    @contextmanager
    def undefended(self) -> Iterator[DefendedCNN]:
        """Run the same network without gates inside this context."""
        before, self.defended = self.defended, False
        try:
            yield self
        finally:
            self.defended = before

    def _run(self, x: Tensor) -> Tensor:
        return select(self.network(x), self.output, type(self.network).__name__)

    def _caster(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Casts weights once where autocast, which keeps only what has a gradient, would do it in every pass."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return None
        dtype, own = torch.get_autocast_dtype(kind), self._casts
        if not own:  # those that the network computes are others in every pass
            own.update((id(weight), {}) for weight in self.network.buffers() if weight.dtype == torch.float32)

        def cast(weight: Tensor) -> Tensor:
            if id(weight) in own and dtype not in own[id(weight)]:
                own[id(weight)][dtype] = weight.to(dtype)
            return own.get(id(weight), {}).get(dtype, weight)

        return cast

    def _replay(
        self,
        e: Tensor,
        act: Callable[[_Reference, Tensor], None],
        make: Callable[..., Interceptor] = Interceptor,
        fuse: bool = False,
    ) -> Tensor:
        """Run the network and call ``act(reference, h(e))`` at each gated call that is not fused."""
        references = self._references
        if references is None:
            raise RuntimeError("Expected record(x) before the gated pass, but there are no reference activations.")
        self.coverage = coverage = replace(self._recorded, calls=Counter(), gated=Counter(), closed=None)
        done = 0

        def reference_of(name: str, h: Tensor) -> _Reference:
            nonlocal done
            coverage.calls[name] += 1
            reference = references[done] if done < len(references) else _Reference("nothing", None)
            done += 1
            if reference.name != name or (reference.h is not None and reference.h.shape != h.shape):
                shape = "" if reference.h is None else f" of shape {tuple(reference.h.shape)}"
                raise RuntimeError(
                    f"Expected the calls of the reference pass, there {reference.name}{shape}, but got {name} of shape "
                    f"{tuple(h.shape)}: record(x) must see the same batch size and take the same path."
                )
            coverage.gated[name] += reference.h is not None
            return reference

        def visit(name: str, h: Tensor) -> None:
            if name == NORMALIZATION:
                return
            if name in self.exempt:
                coverage.calls[name] += 1
                return
            reference = reference_of(name, h)
            if reference.h is not None:
                act(reference, h)

        def fused(name: str, x: Tensor, in_place: bool) -> Tensor | None:
            if name not in LIMITS or name in self.exempt or not x.requires_grad:
                return None
            if done == len(references) or not references[done].fused:
                return None
            return GatedReLU.apply(x, reference_of(name, x).h, in_place, self.gate)

        with make(self._functions, self._units, visit, fused if fuse else None, self._caster(e)):
            logits = self._run(e)
        if done < len(references):
            raise RuntimeError(
                f"Expected {len(references)} nonlinearity calls as in the reference pass, but got "
                f"{coverage.calls.total()} ({references[done].name} did not run): the network takes another path for e "
                f"than x."
            )
        return logits

    def _survey(self, x: Tensor, modules: Modules) -> Coverage:
        """One gated pass on the image itself: is every gate open, and does any nonlinearity escape them?"""
        surveyors: list[Surveyor] = []
        shares: list[Tensor] = []

        def why_not(name: str) -> str | None:
            return NORMALIZATION if name == NORMALIZATION else "exempt" if name in self.exempt else None

        def make(*args: Any) -> Surveyor:
            activations = {*self._functions.values(), *self._units.values()} - {NORMALIZATION}
            surveyors.append(Surveyor(*args, modules=modules, why_not=why_not, elementwise=activations))
            return surveyors[-1]

        def act(reference: _Reference, h: Tensor) -> None:
            shares.append(_share_closed(len(x), reference, h))

        with _differentiable(x) as image:
            logits = self._replay(image, act, make)
            if shares:
                self._require_open(torch.stack(shares, 1))
            found = inspect(
                logits, image, surveyors[0].boundaries, surveyors[0].places, self.exempt, self._exempt_functions
            )
        if not found.reached:
            raise InputError(
                f"Expected the logits of {type(self.network).__name__} to depend on the image by operators that have a "
                f"gradient, but they do not: the network detaches them, or runs under no_grad."
            )
        self._refuse(found.problems)
        attention = found.exempt["attention"] + found.exempt["softmax"]
        if found.gate_free and attention and found.convolutions <= 1 and not self.exempt & ATTENTION:
            raise InputError(
                f"Expected a convolutional network, but {type(self.network).__name__} is a vision transformer: "
                f"image and logits are joined by {attention} calls of attention and by residual connections, where "
                f"there is no gate, so the defense does not hold. List softmax as exempt to explain it all the same."
            )
        return Coverage(exempt=found.exempt, gate_free=found.gate_free)

    def _require_open(self, closed: Tensor) -> None:
        shut = [
            f"{layer.name} in {layer.module or 'the network itself'} ({100 * share:.2g} % of its neurons)"
            for layer, share in zip(self.coverage.layers, closed.amax(0).tolist(), strict=True)
            if share
        ]
        if shut:
            raise InputError(
                f"Expected every gate to be open on the image itself, but {len(shut)} of {closed.shape[1]} layers have "
                f"closed ones, first {shut[0]}: {type(self.network).__name__} does not compute the same twice. Likely "
                f"causes: randomness or state in the network; a precision, memory format or batch size that differs "
                f"between reference pass and explanation; kernels that are not deterministic (try "
                f"--trainer.deterministic true and --trainer.precision 32-true)."
            )

    def _judge(self, witness: Witness) -> None:
        """What the dispatcher saw."""
        name = type(self.network).__name__
        if witness.random:
            calls = _list(witness.random)
            raise InputError(
                f"Expected {name} to give the same result twice, but it draws random numbers: {calls}. Call "
                f"network.eval(), and give functions such as dropout training=self.training."
            )
        escaped = witness.missed + witness.steps
        self._refuse(Counter({call: n for call, n in escaped.items() if call[0] not in self.exempt}))

    def _refuse(self, problems: Found) -> None:
        if problems:
            raise UngatedActivationError(
                f"Expected every nonlinearity of {type(self.network).__name__} to be gated, but these cannot be: "
                f"{_list(problems)}. Write them with activations of torch.nn or torch.nn.functional, outside of "
                f"compiled and scripted code; or name the function, or the class of its module, in gated, to gate its "
                f"output; or in exempt: what flows through it is then not defended."
            )

    def _check_eval_mode(self) -> None:
        stateful = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        for path, module in self.network.named_modules():
            if isinstance(module, stateful) and module.training:
                raise InputError(
                    f"Expected {type(self.network).__name__} in eval mode, but {path} ({type(module).__name__}) is in "
                    f"training mode. Call network.eval()."
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DefendedCNN:
        self._references = None  # of another device or type from now on
        self._casts.clear()
        super()._apply(fn, recurse)
        return self


@contextmanager
def _differentiable(x: Tensor) -> Iterator[Tensor]:
    """A copy of ``x`` that requires a gradient and may be changed in place."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_().clone()


def _share_closed(batch: int, reference: _Reference, h: Tensor) -> Tensor:
    """Share of closed gates of one call for each image (B,)."""
    closed = reference.closed(h.detach())
    # Some networks fold parts of an image into the batch; where that cannot be told apart, all images together.
    closed = closed.reshape(batch, -1) if len(h) % batch == 0 else closed.reshape(1, -1).expand(batch, -1)
    return closed.float().mean(1)


def _is_checkpointed() -> bool:
    """Whether somebody else handles what autograd saves, as checkpoints do, which run parts of the network again."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None


def _spelled(entry: str | type) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}.{entry.__qualname__}"


def _list(found: Found) -> str:
    """``2 of pow in stages.0.act, 1 of where in head``, the most frequent first."""
    several = [f"{n} of {what}" + (f" in {place}" if place else "") for (what, place), n in found.most_common(3)]
    more = len(found) - len(several)
    return ", ".join(several) + (f", and in {more} more places" if more else "")
