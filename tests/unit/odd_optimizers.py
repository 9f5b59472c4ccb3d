"""Sound optimizers that are constructed or stepped in unusual ways, as published code and users write them."""

from __future__ import annotations

import dataclasses
import math

import torch

from harness.interfaces import OptimizerTraits


class Plain(torch.optim.Optimizer):
    """SGD with decoupled decay."""

    def __init__(self, params, lr=0.01, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        self.descend()

    def descend(self, factor=1.0):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group.get("weight_decay", 0.0)).sub_(p.grad * group["lr"] * factor)


class TensorRate(Plain):
    def __init__(self, params, lr=torch.tensor(0.01), weight_decay=0.0):  # noqa: B008  # what is tried
        super().__init__(params, lr, weight_decay)


class Sharp(Plain):
    """SAM as published: step(closure) after loss.backward(); notes what it finds on entry."""

    traits = OptimizerTraits(algorithm="sharp", granularity="model", closure=True)

    @torch.no_grad()
    def step(self, closure):
        parameters = [p for group in self.param_groups for p in group["params"]]
        there = [p for p in parameters if p.grad is not None]
        self.found = [*getattr(self, "found", []), {id(p): p.grad.clone() for p in there}]
        norm = torch.stack([p.grad.norm() for p in there]).norm() + 1e-12 if there else 1.0
        moves = [(p, p.grad * (0.05 / norm)) for p in there]
        for p, move in moves:
            p.add_(move)
        loss = torch.enable_grad()(closure)()
        for p, move in moves:
            p.sub_(move)
        self.descend()
        return loss


class SharpRestoring(Sharp):
    """Puts the parameters back to the bit, as published code does."""

    @torch.no_grad()
    def step(self, closure):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        for p in parameters:
            if p.grad is not None:
                p.add_(p.grad, alpha=0.05)
        loss = torch.enable_grad()(closure)()
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
        self.descend()
        return loss


class SharpWithout(SharpRestoring):
    traits = OptimizerTraits(algorithm="sharp", granularity="model", closure=True, gradients_on_entry=False)


class ClearsFirst(Plain):
    """Reads gradients on entry only to clear them."""

    traits = OptimizerTraits(algorithm="clears", granularity="element", closure=True)

    @torch.no_grad()
    def step(self, closure):
        self.zero_grad()
        loss = torch.enable_grad()(closure)()
        self.descend()
        return loss


class EvaluatesIfThereAreNone(Plain):
    """Wants gradients, and makes them itself where there are none."""

    traits = OptimizerTraits(algorithm="lazy", granularity="element", closure=True)

    @torch.no_grad()
    def step(self, closure):
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            torch.enable_grad()(closure)()
        self.descend()


class Searching(torch.optim.LBFGS):
    traits = OptimizerTraits(algorithm="searching", granularity="model", closure=True)

    def __init__(self, params, lr=0.1):
        params = [p for group in params for p in group["params"]]
        super().__init__(params, lr, line_search_fn="strong_wolfe")


class SharpDeclared(Sharp):
    traits = OptimizerTraits(algorithm="sharp", granularity="model", closure=True, gradients_on_entry=True)


class SharpOptional(Plain):
    """The closure is optional in the signature and required in truth, gradients on entry as well."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM needs a closure"
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None])
        loss = torch.enable_grad()(closure)()
        self.descend(1 / (1 + float(norm.norm())))
        return loss


class ClosureOptional(Plain):
    """Does nothing without a closure."""

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            torch.enable_grad()(closure)()
            self.descend()


class KeywordClosure(Plain):
    def step(self, *, closure):
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            self.descend()
        return loss


class NeverEvaluates(Plain):
    traits = OptimizerTraits(algorithm="never", granularity="element", closure=True)


class Polyak(Plain):
    @torch.no_grad()
    def step(self, closure=None, loss=None):
        if loss is None:
            raise RuntimeError("pass loss=… to step()")
        self.losses = [*getattr(self, "losses", []), float(loss)]
        self.descend(abs(float(loss)))


class PolyakDeclared(Polyak):
    traits = OptimizerTraits(algorithm="polyak", granularity="model", loss=True)


class StepOfTheInstance(Plain):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr)
        self.step = torch.no_grad()(self.descend)


class RelativeStep(torch.optim.Optimizer):
    """``lr=None`` means that it finds its own rate."""

    def __init__(self, params, lr=None, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                rate = group["lr"]
                if rate is None:
                    rate = min(1e-2, 1 / math.sqrt(state["step"]))
                p.mul_(1 - rate * group["weight_decay"]).sub_(p.grad, alpha=rate)


class WordsForRates(Plain):
    def __init__(self, params, lr="auto", weight_decay=None, warmup=len):
        super(Plain, self).__init__(params, {"lr": lr, "weight_decay": weight_decay, "warmup": warmup})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01 * group["warmup"]("x"))


class NeedsModel(Plain):
    def __init__(self, model, lr=0.01, weight_decay=0.0):
        self.names = [name for name, _ in model.named_parameters()]
        super().__init__(model.parameters(), lr, weight_decay)


class NeedsNames(Plain):
    def __init__(self, named_parameters, lr=0.01, weight_decay=0.0):
        self.names, parameters = zip(*named_parameters, strict=True)
        super().__init__(parameters, lr, weight_decay)


class NeedsBoth(Plain):
    def __init__(self, params, model, *, lr=0.01):
        self.names = [name for name, _ in model.named_parameters()]
        super().__init__(params, lr)


class KeywordParameters(Plain):
    def __init__(self, *, params, lr=0.01):
        super().__init__(params, lr)


class OnlyMatrices(Plain):
    def __init__(self, params, lr=0.02, weight_decay=0.0):
        super().__init__(params, lr, weight_decay)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"only 2-D parameters are supported, got shape {tuple(p.shape)}")


class OnlyMatricesDeclared(OnlyMatrices):
    traits = OptimizerTraits(
        algorithm="only", granularity="matrix", matrices_only=True, rest="sgd/foreach", rest_options={"lr": 0.5}
    )


class Flagged(Plain):
    """Muon with an auxiliary Adam, as published: the groups say which is which."""

    traits = OptimizerTraits(algorithm="flagged", granularity="matrix", group_flags={"use_muon": "matrix"})

    def __init__(self, param_groups, lr=0.02):
        for group in param_groups:
            assert "use_muon" in group
        super().__init__(param_groups, lr)


class Unflagged(Flagged):
    traits = OptimizerTraits(algorithm="flagged", granularity="matrix")


class FlaggedWithDefaults(torch.optim.Optimizer):
    """Has another rate and decay for the groups that are not flagged."""

    traits = OptimizerTraits(algorithm="flagged", granularity="matrix", group_flags={"use_muon": "matrix"})

    def __init__(self, params, lr=0.02, weight_decay=0.1, adamw_lr=3e-4, adamw_wd=0.01):
        for group in params:
            group.setdefault("lr", lr if group["use_muon"] else adamw_lr)
            group.setdefault("weight_decay", weight_decay if group["use_muon"] else adamw_wd)
        super().__init__(params, {})


class PassesOptionsOn(torch.optim.AdamW):
    """Rate in the signature, everything else passed on."""

    def __init__(self, params, lr=1e-3, **options):
        super().__init__(params, lr=lr, **options)


class PassesEverythingOn(torch.optim.AdamW):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


class PassesPositionsOn(torch.optim.AdamW):
    def __init__(self, params, *arguments):
        super().__init__(params, *arguments)


class SwallowsOptions(torch.optim.AdamW):
    """Takes any option, and has its own."""

    def __init__(self, params, lr=1e-3, **_):
        super().__init__(params, lr=lr, weight_decay=0.03)


class DecaysAll(PassesOptionsOn):
    """Wrong: decays the groups that should not be decayed."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["weight_decay"] = 0.01
        super().step()


@dataclasses.dataclass(frozen=True)
class Options:
    lr: float = 2e-3
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 0.05


class TakesADataclass(torch.optim.AdamW):
    def __init__(self, params, options=Options()):  # what is tried
        super().__init__(params, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)


class KeepsADataclass(torch.optim.Optimizer):
    """Its groups hold the rate only; the rest it reads from the object."""

    def __init__(self, params, lr=1e-3, options=Options()):  # what is tried
        super().__init__(params, {"lr": lr})
        self.options = options

    @torch.no_grad()
    def step(self, closure=None):
        beta1, beta2 = self.options.betas
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(n=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["n"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.mul_(1 - group["lr"] * self.options.weight_decay)
                root = (state["v"] / (1 - beta2 ** state["n"])).sqrt()
                p.addcdiv_(state["m"] / (1 - beta1 ** state["n"]), root + 1e-8, value=-group["lr"])


class OtherName(torch.optim.Optimizer):
    """The decay is called ``wd``."""

    factor = 1.0

    def __init__(self, params, lr=0.01, wd=0.1):
        super().__init__(params, {"lr": lr, "wd": wd})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["wd"] * self.factor).sub_(p.grad, alpha=group["lr"])


class OtherNameWrong(OtherName):
    factor = 1.5


class LearningRate(torch.optim.Optimizer):
    """The rate has another name, in the constructor and in the groups."""

    def __init__(self, params, learning_rate=0.01, weight_decay=0.0):
        super().__init__(params, {"learning_rate": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["learning_rate"] * group["weight_decay"])
                    p.sub_(p.grad, alpha=group["learning_rate"])


def make(params, lr=0.01, weight_decay=0.0):
    """A factory."""
    return Plain(params, lr, weight_decay)


def make_adamw(params, lr=1e-3, **options):
    return torch.optim.AdamW(params, lr=lr, **options)


def make_sharp(params, lr=0.01):
    return SharpDeclared(params, lr)


make_sharp.traits = SharpDeclared.traits


def make_nothing(params, lr=0.01):
    return [params, lr]
