"""With SOLUTIONS=1 the checks run on solutions.py in place of the stubs. And a system for exercise 9."""

import os

import pytest
import torch
from conftest import build_system

from data import columns


@pytest.fixture(autouse=True, scope="module")
def solved(request):
    if os.environ.get("SOLUTIONS"):
        from exercises import solutions

        for name, value in vars(solutions).items():
            if getattr(value, "__module__", None) == solutions.__name__ and hasattr(request.module, name):
                setattr(request.module, name, value)


@pytest.fixture(scope="session")
def teach():
    """records -> a tiny system: the backbone learns prompts and answers, then Zhyper, through it, the descriptions."""

    def train(records, most=(40, 40)):  # steps of each
        system = build_system("zhyper-diag", block_size=96)
        for B in system.hypernetwork.B.values():
            torch.nn.init.zeros_(B)
        prompts, answers, descriptions = columns(records)
        with torch.no_grad():
            system.hypernetwork.trunk.standardise.measure(system.embed(sorted(set(descriptions))))
        adapts = torch.nn.ModuleList([system.encoder, system.hypernetwork])
        trainings = (system.backbone, None, 1e-2), (adapts, descriptions, 5e-3)
        for steps, (part, read, rate) in zip(most, trainings, strict=True):
            optimizer = torch.optim.Adam(part.requires_grad_().parameters())
            for step in range(steps):
                loss = system.score(prompts, answers, read)[0].mean()
                if loss < 0.03 and step >= 10:  # every answer is right, and the adapter has moved
                    break
                optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 5)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
                optimizer.step()
            part.requires_grad_(False)
        assert all(B.any() for B in system.hypernetwork.B.values())  # a margin of 0 is not that of an untrained one
        return system.eval()

    return train
