"""The defense: gates behind every nonlinearity (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

In the backward pass, the gradient at neuron ``i`` of nonlinearity ``l`` passes only while the neuron stays within its
range on the real image ``x``::

    min(0, h(x)) <= h(e) <= max(0, h(x))

so an explanation ``e`` can only use features that the image has. The forward pass equals the network's own, bit for
bit. The defense has no hyperparameters.

Activation calls are intercepted while the network runs: modules, functions or methods, in place or not. Each *call* has
its own reference activation, identified by its position in the order of calls. Two checks, `audit` and `graph`, find
nonlinearities that cannot be intercepted. If a layer would have no gate next to it, as on the residual stream of a
transformer, sums, normalizations and attention are gated as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.defense.audit import Modules, Witness
from fgvis_lightning.defense.casts import Casts
from fgvis_lightning.defense.checks import Layout, judge_calls, judge_graph, require_open
from fgvis_lightning.defense.coverage import Coverage, Layer
from fgvis_lightning.defense.gates import LIMITS, GatedReLU, is_checkpointed
from fgvis_lightning.defense.graph import inspect
from fgvis_lightning.defense.interception import Interceptor, Surveyor
from fgvis_lightning.defense.reference import Reference, bounds, differentiable, share_closed
from fgvis_lightning.defense.selection import Selection
from fgvis_lightning.errors import one_of
from fgvis_lightning.method.gates import RULES
from fgvis_lightning.networks.classifier import check_module, constant, require_eval_mode
from fgvis_lightning.networks.outputs import own_network, select


class DefendedCNN(nn.Module):
    """A frozen classifier whose gradient is gated after every nonlinearity.

    Usage::

        defended = DefendedCNN(network)
        defended.record(x)  # h(x) determines the range of every neuron
        logits = defended(e)  # the network's own logits; their gradient to e is gated
        with defended.undefended():
            logits = defended(e)  # the same network without gates

    Args:
        network: a classifier in eval mode that takes normalized images (B,3,H,W) and returns logits (B,K).
        gate: ``strict``, the paper's gate, or ``restoring``, see `fgvis_lightning.method.gates`. A restoring gate
            depends on the direction of a step, so compute gradients of the *minimized* value: of ``-logits`` to raise a
            class.
        exempt: operations without a gate: functions by name, e.g. ``"sigmoid"``; classes of modules, e.g.
            ``"my_project.layers.LayerNorm"``, including everything inside; classes of custom autograd functions;
            or ``"residual"``, ``"normalization"``, ``"attention"``. Gradients through them are not defended.
        gated: operations to gate in addition to the activations of `fgvis_lightning.defense.nonlinearities`: functions
            by name, e.g. ``"maximum"``; classes of modules, e.g. ``"my_project.layers.Swish"``, whose output is gated,
            but nothing inside; or these kinds of gates in residual streams, to have them in any network.
        output: key, attribute or index of the logits among several outputs. None for the only output, or the one named
            ``logits``.
        fused: whether to fuse gates with their activations where possible: the same gradients, bit for bit, in less
            time and memory.

    Reference pass and gated pass must have the same batch size, data type, device and autocast, since a difference in
    the last bit closes gates; otherwise an error is raised. Another memory format is converted.

    Raises:
        InputError: if `check_module` refuses the network, or if ``gate``, ``exempt`` or ``gated`` is invalid.
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
        one_of(RULES, gate=gate)
        self.gate = gate
        self.fused = fused
        check_module(network)
        self.selection = Selection(network, exempt, gated)
        self.network = network
        self._name = type(own_network(network)).__name__
        self._weights = list(nn.Module.parameters(network))  # none if it is frozen
        self.output = output
        self.defended = True
        self.coverage = Coverage()
        self._references: list[Reference] | None = None
        self._layout: Layout | None = None
        self._recorded = Coverage()
        self._surveyed: dict[tuple[Any, ...], Coverage] = {}
        self._casts = Casts()

    def record(self, x: Tensor) -> Tensor:
        """Run the reference pass on ``x`` (B,3,H,W), keep h(x), and return the logits (B,K).

        The first pass for each shape and data type of input also checks the network, with one additional forward pass.
        If a layer would have no gate next to it, the residual stream, normalizations and attention are gated from then
        on, which takes two more forward passes once.

        Raises:
            UngatedActivationError: if the container cannot gate a nonlinearity.
            InputError: if x is empty or has integers, if the network is in training mode or not deterministic, if its
                logits do not depend on x, or if they cannot be found among its outputs.
        """
        logits = self._record(x)
        if self.coverage.gate_free and self.selection.widen():
            self._surveyed.clear()
            logits = self._record(x)
        return logits

    def _record(self, x: Tensor) -> Tensor:
        require_eval_mode(self.network)
        self._references = None
        self._casts.clear()  # the weights may have changed
        self.coverage = coverage = Coverage()
        references: list[Reference] = []
        outputs: list[tuple[Tensor, int]] = []
        layers: list[Layer] = []
        modules = Modules(own_network(self.network))

        def visit(name: str, h: Tensor) -> None:
            if self.selection.passes(name):
                return
            coverage.calls[name] += 1
            if name in self.selection.exempt:
                return
            fused = self.fused and name in LIMITS
            known = bounds(h, name, fused) if h.requires_grad else None
            references.append(Reference(name, known, fused and not is_checkpointed()))
            outputs.append((h, h._version))
            coverage.gated[name] += h.requires_grad
            if h.requires_grad:
                layers.append(Layer(name, modules.running()))

        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(x.device.type))
        interceptor = Interceptor(*self.selection.calls, visit, cast=self._casts.caster(self.network, x))
        witness = Witness(modules, lambda: interceptor.depth > 0) if key not in self._surveyed else None
        # With gradients, although they are not needed: networks may take another path without them.
        with differentiable(x) as image, interceptor, witness or nullcontext():
            if witness is not None:
                witness.watch(image)
            self._layout = Layout.of(image)
            logits = self._run(image)
        coverage.layers = tuple(layers)
        for reference, (h, version) in zip(references, outputs, strict=True):
            reference.fused &= h._version == version
        outputs.clear()
        self._references, self._recorded = references, coverage
        try:
            if witness is not None:
                judge_calls(self._name, witness, self.selection.exempt)
                found = self._survey(x, modules)
                self._surveyed[key] = replace(found, operators=witness.operators, layers=coverage.layers)
        except BaseException:
            self._references = None
            raise
        known = self._surveyed[key]
        if known.layers != coverage.layers:  # another path through the network
            del self._surveyed[key]
            return self._record(x)
        self._recorded = replace(coverage, operators=known.operators, exempt=known.exempt, gate_free=known.gate_free)
        self.coverage = self._recorded
        return logits.detach()

    def forward(self, e: Tensor) -> Tensor:
        """The network's logits (B,K) for ``e`` (B,3,H,W); their gradient to ``e`` is gated.

        Raises:
            RuntimeError: if there is no reference pass, or one with other calls or shapes.
            InputError: if the reference pass had another data type, device or autocast.
        """
        if not self.defended or (self.selection.stream and not (e.requires_grad and torch.is_grad_enabled())):
            self.coverage = coverage = Coverage()

            def count(name: str, h: Tensor) -> None:
                if not self.selection.passes(name):
                    coverage.calls[name] += 1

            with Interceptor(*self.selection.calls, count, cast=self._casts.caster(self.network, e)):
                return self._run(e)
        return self._replay(e, lambda reference, h: reference.gate(h, self.gate), fuse=torch.is_grad_enabled())

    def closed(self, e: Tensor) -> Tensor:
        """Share of closed gates at ``e`` (B,L) in [0,1], for each image and each layer of ``coverage.layers``."""
        shares: list[Tensor] = []
        with differentiable(e) as image:
            self._replay(image, lambda *call: shares.append(share_closed(len(e), *call)))
        self.coverage.closed = torch.stack(shares, 1) if shares else e.new_zeros(len(e), 0)
        return self.coverage.closed

    def verify(self, x: Tensor) -> None:
        """Check that every gate is open on the image ``x`` itself, computed in the same way as explanations.

        Raises:
            InputError: if a gate is closed, since then rounding or randomness would close gates during explanations.
        """
        require_open(self._name, self.coverage.layers, self.closed(x))

    @contextmanager
    def undefended(self) -> Iterator[DefendedCNN]:
        """Run the same network without gates inside this context."""
        before, self.defended = self.defended, False
        try:
            yield self
        finally:
            self.defended = before

    def _run(self, x: Tensor) -> Tensor:
        with constant(self._weights):  # so that what requires a gradient depends on the image
            return select(self.network(x), self.output, self._name)

    def _replay(
        self,
        e: Tensor,
        act: Callable[[Reference, Tensor], None],
        make: Callable[..., Interceptor] = Interceptor,
        fuse: bool = False,
    ) -> Tensor:
        """Run the network and call ``act(reference, h(e))`` at each gated call that is not fused."""
        references = self._references
        if references is None or self._layout is None:
            raise RuntimeError("Expected a reference pass before the gated pass, but got none. Call record(x) first.")
        e = self._layout.apply(e)
        self.coverage = coverage = replace(self._recorded, calls=Counter(), gated=Counter(), closed=None)
        done = 0

        def reference_of(name: str, h: Tensor) -> Reference:
            nonlocal done
            coverage.calls[name] += 1
            reference = references[done] if done < len(references) else Reference("nothing", None)
            done += 1
            if reference.name != name or (reference.h is not None and reference.h.shape != h.shape):
                shape = "" if reference.h is None else f" of shape {tuple(reference.h.shape)}"
                raise RuntimeError(
                    f"Expected the calls of the reference pass, next {reference.name}{shape}, but got {name} of shape "
                    f"{tuple(h.shape)}: record(x) needs the same batch size and the same path through the network."
                )
            coverage.gated[name] += reference.h is not None
            return reference

        def visit(name: str, h: Tensor) -> None:
            if self.selection.passes(name):
                return
            if name in self.selection.exempt:
                coverage.calls[name] += 1
                return
            reference = reference_of(name, h)
            if reference.h is not None:
                act(reference, h)

        def fused(name: str, x: Tensor, in_place: bool) -> Tensor | None:
            ready = done < len(references) and references[done].fused and references[done].name == name
            if not ready or not x.requires_grad:
                return None
            return GatedReLU.apply(x, reference_of(name, x).h, in_place, self.gate)

        with make(*self.selection.calls, visit, fused if fuse else None, self._casts.caster(self.network, e)):
            logits = self._run(e)
        if done < len(references):
            raise RuntimeError(
                f"Expected {len(references)} nonlinearity calls as in the reference pass, but got "
                f"{coverage.calls.total()} ({references[done].name} did not run): the network takes different paths "
                f"for e and x."
            )
        return logits

    def _survey(self, x: Tensor, modules: Modules) -> Coverage:
        """Check with a gated pass on the image itself that every gate is open and that no nonlinearity escapes."""
        surveyors: list[Surveyor] = []
        shares: list[Tensor] = []

        def make(*args: Any) -> Surveyor:
            surveyors.append(Surveyor(*args, modules=modules, selection=self.selection))
            return surveyors[-1]

        with differentiable(x) as image:
            logits = self._replay(image, lambda *call: shares.append(share_closed(len(x), *call)), make)
            if shares:
                require_open(self._name, self.coverage.layers, torch.stack(shares, 1))
            exempt = self.selection.exempt, self.selection.exempt_functions
            found = inspect(logits, image, surveyors[0].boundaries, surveyors[0].places, *exempt)
        judge_graph(self._name, found)
        return Coverage(exempt=found.exempt, gate_free=found.gate_free)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DefendedCNN:
        self._references = None  # the device or data type changes
        self._casts.clear()
        return super()._apply(fn, recurse)
