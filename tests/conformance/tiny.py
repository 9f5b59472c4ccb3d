"""A model small enough for hundreds of cells, with every role of parameter and blocks to shard."""

import torch
from torch import nn
from torch.nn import functional

from harness.interfaces import WorkloadSize, WorkloadTraits

VOCABULARY, WIDTH, HIDDEN, CONTEXT = 64, 96, 128, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Tiny:
    traits = WorkloadTraits(
        summary="two residual blocks between an embedding and a head",
        source="tokens drawn by position",
        sizes={"small": WorkloadSize(parameters=62336, global_batch=16, activation_bytes_per_sample=20000)},
        default_size="small",
        metrics={"validation_loss": "lower"},
        blocks=("blocks.*",),
        embeddings=("embed.weight",),
        heads=("head.weight",),
    )

    def __init__(self, size=None, data=None):
        self.size = size

    def build(self):
        return Model()

    def initialise(self, name, tensor, seed):
        generator = torch.Generator().manual_seed(seed * 1009 + sum(map(ord, name)))
        if "norm.weight" in name:
            tensor.fill_(1)
        elif tensor.ndim < 2:
            tensor.zero_()
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)

    def batches(self, shard):
        step = 0
        while True:
            generator = torch.Generator().manual_seed(shard.seed * 7919 + step % 5)
            tokens = torch.randint(0, VOCABULARY, (shard.global_batch, CONTEXT + 1), generator=generator)
            for micro in range(shard.accumulation):
                rows = tokens[list(shard.positions(micro))]
                yield {"tokens": rows[:, :-1].contiguous(), "next": rows[:, 1:].contiguous()}
            step += 1

    def loss(self, model, batch):
        logits = model(batch["tokens"])
        return functional.cross_entropy(logits.float().flatten(0, 1), batch["next"].flatten())

    def evaluate(self, model):
        batch = next(
            self.batches(
                type(
                    "Shard",
                    (),
                    {
                        "seed": 1,
                        "global_batch": 16,
                        "accumulation": 1,
                        "positions": staticmethod(lambda micro: range(16)),
                    },
                )()
            )
        )
        return {"validation_loss": float(self.loss(model, batch))}
