"""Planted faults: optimizers that are wrong in one way each, and some that are right in an unusual way."""

from __future__ import annotations

import itertools
import threading
import time

import torch
from torch.optim import AdamW, Optimizer


class Written(Optimizer):
    """AdamW (or SGD with momentum) written out, right as it stands; a fault overrides one part."""

    def __init__(self, params, **options):
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **options})
        self.steps_done = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps_done += 1
        for number, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.gradient(p, group), group, number)

    def gradient(self, p, group):
        return -p.grad if group.get("maximize") else p.grad

    def betas(self, group):
        return group["betas"]

    def rate(self, group, number):
        return group["lr"]

    def decay(self, p, group, lr):
        p.mul_(1 - lr * group["weight_decay"])

    def corrections(self, betas, t):
        return tuple(1 - beta**t for beta in betas)

    def denominator(self, v, correction, eps):
        return (v / correction).sqrt() + eps

    def kept(self, p):
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        return state

    def store(self, v):
        return v

    def move(self, p, change):
        p.sub_(change)

    def update(self, p, g, group, number):
        lr, (beta1, beta2), state = self.rate(group, number), self.betas(group), self.kept(p)
        state["step"] += 1
        self.decay(p, group, lr)
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = self.store(beta2 * state["v"] + (1 - beta2) * g * g)
        first, second = self.corrections((beta1, beta2), state["step"])
        self.move(p, lr * (state["m"] / first) / self.denominator(state["v"], second, group["eps"]))


class DoesNothing(Written):
    def step(self, closure=None):
        pass


def skipping(every):
    class Skipping(Written):
        def step(self, closure=None):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls % every:
                super().step()

    return Skipping


class NoBiasCorrection(Written):
    def corrections(self, betas, t):
        return 1.0, 1.0


class CorrectionOffByOne(Written):
    def corrections(self, betas, t):
        return super().corrections(betas, t + 1)


class WrongBetaPower(Written):
    def corrections(self, betas, t):
        return 1 - betas[0] ** t, 1 - betas[0] ** t


class EpsInside(Written):
    def denominator(self, v, correction, eps):
        return (v / correction + eps).sqrt()


class L2ForDecoupled(Written):
    def gradient(self, p, group):
        return super().gradient(p, group) + group["weight_decay"] * p

    def decay(self, p, group, lr):
        pass


class DecayTwice(Written):
    def decay(self, p, group, lr):
        super().decay(p, group, lr)
        super().decay(p, group, lr)


class DecayAfterwards(Written):
    def update(self, p, g, group, number):
        super().update(p, g, group, number)
        Written.decay(self, p, group, group["lr"])

    def decay(self, p, group, lr):
        pass


class DecayIgnoresSchedule(Written):
    def decay(self, p, group, lr):
        super().decay(p, group, group.setdefault("first_lr", group["initial_lr"]))


class StaleRate(Written):
    def rate(self, group, number):
        return group["initial_lr"]


class RateOneStepLate(Written):
    def rate(self, group, number):
        late = self.state.setdefault(id(group), [group["lr"]])
        late.append(group["lr"])
        return late[-1 - len(group["params"])] if len(late) > len(group["params"]) else late[0]


class SecondGroupIgnored(Written):
    def update(self, p, g, group, number):
        if number != 1:
            super().update(p, g, group, number)


class FirstGroupForAll(Written):
    def update(self, p, g, group, number):
        super().update(p, g, self.param_groups[0], number)


class SharedMomentum(Written):
    def kept(self, p):
        return self.state.setdefault(
            f"shared {tuple(p.shape)}", {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        )

    def state_dict(self):
        return {"held": self.state, "param_groups": [{**g, "params": []} for g in self.param_groups]}

    def load_state_dict(self, state):
        self.state.update(state["held"])


class StateNotSaved(Written):
    def state_dict(self):
        return {**super().state_dict(), "state": {}}


class CountNotSaved(Written):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for kept in self.state.values():
            kept["step"] = 0


class LastElementSkipped(Written):
    def move(self, p, change):
        if p.dim():
            p.view(-1)[:-1].sub_(change.reshape(-1)[:-1])

    def decay(self, p, group, lr):
        if p.dim():
            p.view(-1)[:-1].mul_(1 - lr * group["weight_decay"])


class NarrowSecondMoment(Written):
    def store(self, v):
        return v.bfloat16().float()


class WrongUnderMaximise(Written):
    def gradient(self, p, group):
        return p.grad


class FirstBetaOff(Written):
    def betas(self, group):
        return group["betas"][0] + 1e-3, group["betas"][1]


class SecondBetaOff(Written):
    def betas(self, group):
        return group["betas"][0], group["betas"][1] - 1e-3


class EpsOff(Written):
    def denominator(self, v, correction, eps):
        return super().denominator(v, correction, 2 * eps)


class StaleGradient(Written):
    def gradient(self, p, group):
        state = self.kept(p)
        earlier = state.get("earlier", torch.zeros_like(p))
        state["earlier"] = super().gradient(p, group).clone()
        return earlier


class FirstGradientForever(Written):
    def gradient(self, p, group):
        return self.kept(p).setdefault("first", super().gradient(p, group).clone())


class SteppedTwice(Written):
    def update(self, p, g, group, number):
        super().update(p, g, group, number)
        super().update(p, g, group, number)


class SignError(Written):
    def move(self, p, change):
        p.add_(change)


class Clipped(Written):
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        super().step()


class LateThread(AdamW):
    """Returns before its thread has done the work."""

    def step(self, closure=None):
        kept = [(p, None if p.grad is None else p.grad.clone()) for g in self.param_groups for p in g["params"]]
        before = getattr(self, "thread", None)
        if before is not None:
            before.join()

        def work():
            time.sleep(0.01)
            for p, g in kept:
                p.grad = g
            super(LateThread, self).step()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()


class NeverMaximises(Written):
    """Decays what should not."""

    def decay(self, p, group, lr):
        p.mul_(1 - lr * max(g["weight_decay"] for g in self.param_groups))


FAULTS: dict[str, tuple[type[Optimizer], str | None]] = {
    "step does nothing": (DoesNothing, "the step does nothing"),
    "every second step does nothing": (skipping(2), "every second step does nothing"),
    "every seventh step is skipped": (skipping(7), "every seventh step does nothing"),
    "no bias correction": (NoBiasCorrection, "no bias correction"),
    "bias correction off by one step": (CorrectionOffByOne, "bias correction off by one step"),
    "wrong beta power": (WrongBetaPower, None),
    "eps inside the root": (EpsInside, "eps inside the root"),
    "L2 for decoupled": (L2ForDecoupled, "L2 penalty instead of decoupled decay"),
    "decay applied twice": (DecayTwice, "decay applied twice"),
    "decay on the updated parameter": (DecayAfterwards, "decay on the updated parameter"),
    "decay that ignores the schedule": (DecayIgnoresSchedule, "decay that ignores the schedule"),
    "stale lr after a scheduler": (StaleRate, "the learning rate is stale: what a scheduler sets is ignored"),
    "lr one step late": (RateOneStepLate, None),
    "second group ignored": (SecondGroupIgnored, "parameter group 2 ignored"),
    "first group for all": (FirstGroupForAll, "the first group's hyperparameters are used for every group"),
    "momentum shared": (SharedMomentum, "state is shared between parameters of one shape"),
    "state not saved": (StateNotSaved, "state is lost on saving and loading"),
    "step count not saved": (CountNotSaved, "the step count is lost on saving and loading"),
    "last element skipped": (LastElementSkipped, "the last element of each tensor is skipped"),
    "bf16 second moment": (NarrowSecondMoment, "second moment kept in bfloat16"),
    "sign under maximise": (WrongUnderMaximise, "sign of the gradient under maximise"),
    "beta1 off by 1e-3": (FirstBetaOff, "beta1 is 0.901, not 0.9"),
    "beta2 off by 1e-3": (SecondBetaOff, "beta2 is 0.998, not 0.999"),
    "eps twice as large": (EpsOff, "eps is 2e-08, not 1e-08"),
    "the gradient before": (StaleGradient, "the gradient of the step before is used"),
    "the first gradient": (FirstGradientForever, "the first gradient is used in every step"),
    "stepped twice": (SteppedTwice, "each step is done twice"),
    "sign error": (SignError, None),
    "clipped unasked": (Clipped, "gradients are clipped to a global norm of 1"),
    "late thread": (LateThread, "step() returns before its work is done"),
    "decay of all groups": (NeverMaximises, "groups that should not decay do"),
}
"""What is planted -> the class, and the cause that must be named; None: caught, whatever it is called."""


class Reordered(Written):
    """As in Kingma and Ba's section 2: the step size takes the corrections."""

    def update(self, p, g, group, number):
        lr, (beta1, beta2), state = group["lr"], group["betas"], self.kept(p)
        state["step"] += 1
        t = state["step"]
        state["m"].lerp_(g, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (1 - beta2**t) ** 0.5
        size = lr * root / (1 - beta1**t)
        change = size * state["m"] / (state["v"].sqrt() + group["eps"] * root)
        p.copy_(p - lr * group["weight_decay"] * p - change)


class Flattened(Written):
    """Steps one flat buffer a group."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            # One buffer holds the tensors of one count of steps: a tensor's count is its own.
            live = [p for p in group["params"] if p.grad is not None]
            live.sort(key=lambda p: self.kept(p)["step"])
            for _, same in itertools.groupby(live, key=lambda p: self.kept(p)["step"]):
                self.step_flat(list(same), group)

    def step_flat(self, live, group):
        states = [self.kept(p) for p in live]
        flat = [torch.cat([x.reshape(-1) for x in xs]) for xs in self.columns(live, states, group)]
        p, g, m, v = flat
        t = states[0]["step"] + 1
        beta1, beta2 = group["betas"]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p * (1 - group["lr"] * group["weight_decay"])
        p = p - group["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        start = 0
        for tensor, state in zip(live, states, strict=True):
            part = slice(start, start + tensor.numel())
            tensor.copy_(p[part].view_as(tensor))
            state.update(step=t, m=m[part].view_as(tensor), v=v[part].view_as(tensor))
            start += tensor.numel()

    def columns(self, live, states, group):
        gradients = [self.gradient(p, group) for p in live]
        return live, gradients, [s["m"] for s in states], [s["v"] for s in states]


class Consuming(Written):
    def update(self, p, g, group, number):
        super().update(p, g, group, number)
        p.grad = None


class ScribblingOnGradients(Written):
    def update(self, p, g, group, number):
        super().update(p, g.clone(), group, number)
        p.grad.fill_(7.0)


SOUND: dict[str, type[Optimizer]] = {
    "written out": Written,
    "reordered arithmetic": Reordered,
    "flattened buffers": Flattened,
    "consumed gradients": Consuming,
    "gradients used as scratch": ScribblingOnGradients,
}
"""Correct rewrites, none of which may be called wrong."""
