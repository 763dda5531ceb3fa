"""The operations of a loss that a diagnosis asks for: maps, activations, norms, sums, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from vegrad.activations import ACTIVATIONS
from vegrad.arrays.cached import cached_property
from vegrad.flow.reading import INPUT, MAPS
from vegrad.jax.program import SHAPES, Program
from vegrad.jax.steps import Step
from vegrad.jax.uses import Uses, body_of, factors_of

NORMS = {"layer_norm": "layer", "rms_norm": "rms", "batch_norm": "batch"}
ROOTS = {"rsqrt", "sqrt", "pow", "cbrt"}
OPAQUE = ("scan", "while", "cond", "custom_vjp_call", "shard_map")


@dataclass
class Node:
    """An operation, at the value that it makes."""

    kind: str
    value: int
    path: str
    below: frozenset[int]
    """Places of the nodes that its inputs come from; INPUT too."""
    leaves: tuple[int, ...] = ()
    """Numbers of the parameters that it uses, the weights of a map first."""
    step: int = 0
    edge: tuple[int, int] | None = None
    """The step and the place among its inputs at which data come into a map."""
    units: tuple[int, ...] = ()
    """The axes on which the units of a map stand."""
    fans: tuple[int, int] = (0, 0)
    root: int = INPUT
    """The value that an activation is a function of."""
    terms: tuple[int, ...] = ()
    """The two values that a sum adds; the logits that a softmax is taken of."""
    axes: tuple[int, ...] = ()
    """Those over which a softmax sums to 1."""
    activation: int = INPUT
    """The place of the activation that follows a map."""
    norm: str | None = None
    rescaled: bool = False


@dataclass(eq=False)
class Nodes:
    """The nodes of a program in the order in which they run, and what each comes from."""

    program: Program
    nodes: list[Node] = field(default_factory=list)
    foreign: str = ""
    """The first operation that no chain of layers has."""
    origin: list[frozenset[int]] = field(default_factory=list)
    """Of each node: the maps from which it comes through no other."""
    near: dict[int, frozenset[int]] = field(default_factory=dict)
    """Of each value: the nodes that it is made of, through no other."""
    end: int = 0
    """How many nodes the model has; what comes later is within the loss."""

    @property
    def maps(self) -> list[int]:
        """Places of linear maps and convolutions."""
        return [n for n, one in enumerate(self.nodes) if one.kind in MAPS]

    def path(self) -> list[int]:
        """Return the places of the longest chain of maps that ends at the loss; [] of others."""
        maps = self.maps
        weights = [self.nodes[n].leaves[:1] for n in maps]
        if self.foreign or not maps or len(set(weights)) < len(maps):
            return []
        longest: dict[int, list[int]] = {INPUT: []}
        for place in maps:
            ways = (longest.get(one, []) for one in self.below(place))
            longest[place] = [*max(ways, key=len, default=[]), place]
        top = self.near.get(self.program.loss, frozenset())
        last = frozenset[int]().union(*(self.origin[n] for n in top if n != INPUT))
        chain = max((longest[one] for one in last), key=len, default=[])
        return chain if len(chain) >= 0.6 * len(maps) else []

    @cached_property
    def addends(self) -> frozenset[int]:
        """Numbers of the leaves that are only added to what the batch makes, or put beside it."""
        uses = Uses.of(self.program, self.program.data)
        return frozenset(n for n in range(self.program.leaves) if uses.only_added(n))

    @cached_property
    def scales(self) -> frozenset[int]:
        """Numbers of the leaves that are vectors, whatever axes of 1 they have: gates, scales."""
        uses = Uses.of(self.program, self.program.data)
        return frozenset(n for n in range(self.program.leaves) if uses.only_scales(n))

    @cached_property
    def factors(self) -> frozenset[int]:
        """Numbers of the leaves that are multiplied together to weights."""
        return factors_of(self.program)

    @cached_property
    def within(self) -> dict[int, Node]:
        """The nodes in scans that use leaves, by the leaves' numbers."""
        found = dict[int, Node]()
        for step in self.program.steps:
            if step.name == "scan":
                body, own = body_of(self.program, step)
                graph = type(self)(body)
                uses = [one for one in graph.nodes if one.kind in (*MAPS, *NORMS, "embedding")]
                for one in (*uses, *graph.within.values()):
                    leaves = tuple(leaf for n in one.leaves for leaf in own[n])
                    for leaf in leaves:
                        found.setdefault(leaf, replace(one, leaves=leaves))
        return found

    def below(self, place: int) -> frozenset[int]:
        """Return the maps whose outputs come to a map's input through no other, or INPUT."""
        ways = (frozenset([n]) if n == INPUT else self.origin[n] for n in self.nodes[place].below)
        return frozenset[int]().union(*ways)

    def attends(self, node: Node) -> bool:
        """Return True of the product of a softmax with values."""
        below = (self.nodes[n] for n in node.below if n != INPUT)
        return node.kind == "matmul" and any(one.kind == "softmax" for one in below)

    def entering(self) -> frozenset[int]:
        """Return the numbers of the parts of the batch that come into the model."""
        p, found = self.program, set[int]()
        for one in self.nodes[: self.end]:
            if one.leaves:
                for n in p.steps[one.step].takes:
                    found |= p.inputs.get(n, frozenset())
        return frozenset(n - p.leaves for n in found)

    def activation_of(self, place: int) -> str:
        """Return the name of the activation that follows a map."""
        node = self.nodes[place]
        kind = "identity" if node.activation == INPUT else self.nodes[node.activation].kind
        return kind if kind in ACTIVATIONS else "identity"


@dataclass(eq=False)
class Graph(Nodes):
    """The nodes as they are found in the steps."""

    def __post_init__(self) -> None:
        start = [n for n in self.program.data if n not in self.program.maker]
        self.near |= dict.fromkeys(start, frozenset([INPUT]))
        self.reduced: dict[int, tuple[int, ...]] = {}
        self.rooted: dict[int, tuple[int, ...]] = {}
        self.ends: dict[int, tuple[int, str]] = {}
        self.at: dict[int, int] = {}
        for place, step in enumerate(self.program.steps):
            self._step(place, step)
        ends = (n for n, one in enumerate(self.nodes) if one.leaves or self.attends(one))
        self.end = max(ends, default=INPUT) + 1
        for place, node in enumerate(self.nodes):
            ways = (frozenset([n]) if n == INPUT else self.origin[n] for n in node.below)
            own = node.kind in MAPS
            self.origin.append(frozenset([place]) if own else frozenset[int]().union(*ways))
            self._follow(place, node)

    # One step after another ---------------------------------------------------------------------

    def _step(self, place: int, step: Step) -> None:
        p = self.program
        data = [n for n in step.takes if n in p.data]
        if not data:
            return
        below = frozenset[int]().union(*(self.near.get(n, frozenset()) for n in data))
        for n in step.makes:
            self.near.setdefault(n, below)
        out, node = step.makes[0], self._node(place, step, data, below)
        self._statistics(step, data, out)
        if node is not None:
            self._add(node)
        if out in self.ends:
            root, name = self.ends.pop(out)
            self._add(Node(name, out, self._scope(place), self.near[root], step=place, root=root))

    def _scope(self, place: int) -> str:
        names = [one for one in self.program.paths[place].split("/") if not one.endswith("()")]
        return ".".join(names)

    def _add(self, node: Node) -> None:
        number = len(self.nodes)
        self.nodes.append(node)
        self.near[node.value] = frozenset([number])
        self.at[node.value] = number
        p = self.program
        if node.root == INPUT and node.value in p.learns and p.shapes[node.value].ndim > 1:
            end, name = p.activation(node.value)
            if name != "identity" and end not in self.ends:
                self.ends[end] = (node.value, name)

    def _node(
        self, place: int, step: Step, data: Sequence[int], below: frozenset[int]
    ) -> Node | None:
        """Return the node that a step ends, if it is one that is asked for."""
        p, out, path = self.program, step.makes[0], self._scope(place)
        own = [n for n in step.takes if p.parts.get(n)]
        leaves = tuple(sorted(leaf for n in own for leaf in p.parts[n]))
        product = step.name in ("dot_general", "conv_general_dilated")
        if product and len(own) == 1 and len(data) == 1:
            return self._map(place, step, below, leaves)
        if product and sum(n in p.learns for n in data) == 2:
            self.foreign = self.foreign or "matmul"
            return Node("matmul", out, path, below, step=place)
        if step.name == "stop_gradient" and p.learns.issuperset(data):
            return Node("detach", out, path, below, step=place)
        if step.name == "gather" and own and out in p.data:
            return Node("embedding", out, path, below, leaves, place)
        if step.name.startswith(OPAQUE) and (leaves or out in p.learns):
            if leaves:
                self.foreign = self.foreign or step.name
            return Node(step.name, out, path, below, leaves, place)
        if step.name in ("add", "add_any") and len(data) == 2 and p.learns.issuperset(data):
            same = all(p.shapes[n].shape == p.shapes[out].shape for n in data)
            if same and p.root[out] == out:  # no sum within an activation
                return Node("add", out, path, below, step=place, terms=tuple(data))
        if step.name == "div" and self._is_softmax(step):
            logits, axes = self._logits(step)
            return Node("softmax", out, path, below, step=place, terms=(logits,), axes=axes)
        if step.name in ("mul", "div") and len(data) == 2:
            scale = next((n for n in step.takes if n in self.rooted), None)
            rest = [n for n in data if n != scale]
            if scale is not None and rest and rest[0] not in self.reduced:
                kind = self._norm_kind(scale, rest[0])
                end, more = self._tail(out, ("mul", "add", "sub"), 0)
                taken = (*self.rooted[scale], *more)
                return Node(kind, end, path, below, tuple(dict.fromkeys(taken)), place)
        return None

    def _map(self, place: int, step: Step, below: frozenset[int], leaves: tuple[int, ...]) -> Node:
        """Return the node of a product with weights, with the bias that is added to it."""
        p, out = self.program, step.makes[0]
        side = next(n for n, one in enumerate(step.takes) if p.parts.get(one))
        shape, weight = p.shapes[out], p.shapes[step.takes[side]].shape
        if step.name == "dot_general":
            kind = "linear"
            contract, batch = (one[side] for one in step.eqn.params["dimension_numbers"])
            count = len(weight) - len(contract) - len(batch)
            first = len(batch) if side == 0 else shape.ndim - count
            units = tuple(range(first, first + count))
            inputs = prod(weight[n] for n in contract)
        else:
            numbers = step.eqn.params["dimension_numbers"]
            spatial = len(weight) - 2
            moved = any(one > 1 for one in step.eqn.params["lhs_dilation"])
            kind = f"conv{'_transpose' * moved}{spatial}d"
            units = (numbers.out_spec[1],)
            inputs = prod(weight) // weight[numbers.rhs_spec[0]]
        outputs = prod(shape.shape[n] for n in units)
        end, bias = self._tail(out, ("add", "sub"), outputs)
        for value in self._between(out, end):
            step_of = p.steps[p.maker[value]]
            if step_of.name == "transpose":
                units = tuple(step_of.eqn.params["permutation"].index(n) for n in units)
            self.near[value] = frozenset([len(self.nodes)])
        largest = sorted(leaves, key=lambda n: -prod(p.shapes[n].shape))
        field_size = inputs if kind == "linear" else inputs // max(weight[numbers.rhs_spec[1]], 1)
        fan_out = outputs if kind == "linear" else outputs * field_size
        known = (kind if kind in MAPS else "linear", end, self._scope(place), below)
        return Node(*known, (*largest, *bias), place, (place, 1 - side), units, (inputs, fan_out))

    def _between(self, start: int, end: int) -> list[int]:
        """Return the values from the one after a start up to an end, each made of the last."""
        found = list[int]()
        while start != end:
            (place,) = self.program.takers[start]
            start = self.program.steps[place].makes[0]
            found.append(start)
        return found

    def _tail(self, value: int, names: Sequence[str], size: int) -> tuple[int, tuple[int, ...]]:
        """Follow what is added to a value (or multiplied with it) of parameters of a size.

        Returns:
            The last value, and the leaves.
        """
        p, leaves, ahead, end = self.program, list[int](), value, value
        while len(p.takers.get(ahead, ())) == 1:
            step = p.steps[p.takers[ahead][0]]
            others = [n for n in step.takes if n != ahead]
            if step.name in names and len(others) == 1 and p.parts.get(others[0]):
                own = p.parts[others[0]]
                if size and sum(prod(p.shapes[n].shape) for n in own) != size:
                    break
                leaves += sorted(own)
                ahead = end = step.makes[0]
            elif step.name in ("transpose", "convert_element_type") and not others:
                ahead = step.makes[0]
                end = ahead if step.name == "transpose" and not leaves else end
            else:
                break
        return end, tuple(leaves)

    def _statistics(self, step: Step, data: Sequence[int], out: int) -> None:
        """Note values that are sums over axes, and roots of them."""
        p = self.program
        if step.name.startswith("reduce_") and "axes" in step.eqn.params:
            self.reduced[out] = tuple(step.eqn.params["axes"])
        elif (step.elementwise or step.name in SHAPES) and all(n in self.reduced for n in data):
            self.reduced[out] = self.reduced[data[0]]
            leaves = [leaf for n in step.takes for leaf in p.parts.get(n, ())]
            if step.name in ROOTS or any(n in self.rooted for n in data):
                kept = [leaf for n in data for leaf in self.rooted.get(n, ())]
                self.rooted[out] = tuple(dict.fromkeys([*kept, *leaves]))

    def _is_softmax(self, step: Step) -> bool:
        above, below = step.takes
        made = self.program.maker.get(above)
        exp = made is not None and self.program.steps[made].name == "exp"
        return exp and below in self.reduced and below not in self.rooted

    def _logits(self, step: Step) -> tuple[int, tuple[int, ...]]:
        """Return the logits of a softmax, before the largest is taken off, and its axes."""
        p, (above, below) = self.program, step.takes
        value = p.steps[p.maker[above]].takes[0]
        made = p.steps[p.maker[value]] if value in p.maker else None
        value = made.takes[0] if made is not None and made.name == "sub" else value
        return value, self.reduced[below]

    def _norm_kind(self, scale: int, value: int) -> str:
        """Return how a normalization is called, by the axes that it goes over."""
        if 0 in self.reduced[scale] and self.program.shapes[value].ndim > 1:
            return "batch_norm"
        made = self.program.maker.get(value)
        centred = made is not None and self.program.steps[made].name == "sub"
        return "layer_norm" if centred else "rms_norm"

    def _follow(self, place: int, node: Node) -> None:
        """Give the layer that a norm or an activation belongs to its due."""
        owner = max((n for n in self.origin[place] if n != INPUT), default=INPUT)
        if owner in (INPUT, place):
            return
        layer = self.nodes[owner]
        if node.kind in NORMS and layer.activation == INPUT:
            layer.norm, layer.rescaled = NORMS[node.kind], node.below == {owner}
        elif node.root != INPUT and layer.activation == INPUT:
            layer.activation = place
